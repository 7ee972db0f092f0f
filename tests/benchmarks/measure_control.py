"""What steering does to the trained demo: painted words, a style reference, a change of prompt.

Needs a finished demo (``make demo``). Numbers by the demo's scorer; two figures beside RESULTS.md.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from harness import HERE, report

from ediffi_core import draws
from ediffi_core.control import Phrase, sigma_after, switched
from ediffi_core.encoders import encode_prompts
from ediffi_core.guidance import guided
from ediffi_core.noise import edm_grid
from ediffi_core.sampling import SOLVERS
from pipelines.cli.drawing import find_model
from pipelines.demo.captions import DIGITS
from pipelines.demo.scenes import INKS, PAPERS
from pipelines.demo.scorer import Scorer
from pipelines.model import Pictures, TextToImage, grid
from pipelines.painting import SIDE

matplotlib.use("Agg")
COUNT, SEED = 96, 11
PLACES = ("left", "right")


def half(place: str) -> torch.Tensor:
    mask = torch.zeros(SIDE, SIDE)
    mask[:, : SIDE // 2] = 1
    return mask if place == "left" else mask.flip(1)


def pairs() -> list[tuple[str, str]]:
    """Two digits of different inks, drawn with a fixed seed."""
    rng = np.random.default_rng(SEED)
    nouns = []
    for _ in range(COUNT):
        inks = rng.choice(list(INKS), 2, replace=False)
        nouns.append(
            tuple(
                f"{'an' if ink == 'orange' else 'a'} {ink} {DIGITS[rng.integers(10)]}"
                for ink in inks
            )
        )
    return nouns  # type: ignore[return-value]


def painting(model: TextToImage, scorer: Scorer, base: str) -> tuple[list[str], Pictures]:
    """The prompts name no place. How often is the asked ink in the painted half?"""
    nouns = pairs()
    prompts = [f"{a} and {b}" for a, b in nouns]

    def phrases(order: tuple[str, str], strength: float) -> list[list[Phrase]]:
        return [
            [Phrase(n, half(p), strength) for n, p in zip(pair, order, strict=True)]
            for pair in nouns
        ]

    def wanted(order: tuple[str, str]) -> list[str]:
        left, right = order
        return [f"{a} on the {left} and {b} on the {right}" for a, b in nouns]

    swapped = (PLACES[1], PLACES[0])
    plain = model.sample(prompts, seed=SEED, up_to=base)
    rows = [
        "| painted | strength w' | inks in their halves | in the halves swapped |",
        "|---|---|---|---|",
    ]
    shown = [plain[:6]]
    for label, order, strength in (
        ("nothing", PLACES, 0.0),
        *(("left, right", PLACES, w) for w in (0.2, 0.4, 1.0, 2.0)),
        ("right, left", swapped, 1.0),
    ):
        pictures = (
            model.sample(prompts, seed=SEED, up_to=base, paint=phrases(order, strength))
            if strength
            else plain
        )
        right, wrong = (scorer.score(pictures, wanted(o)).colours for o in (PLACES, swapped))
        rows.append(f"| {label} | {strength or '–'} | {right:.2f} | {wrong:.2f} |")
        if strength == 1.0:
            shown.append(pictures[:6])
    return rows, np.concatenate(shown)


def style(model: TextToImage, scorer: Scorer, base: str) -> list[str]:
    """Captions without a paper; the reference is a scene on one. How often is it taken over?"""
    from PIL import Image

    from pipelines.demo.scenes import draw

    papers = list(PAPERS)
    references: dict[str, list[Image.Image]] = {paper: [] for paper in papers}
    for index in itertools.count():
        scene, picture = draw(SEED, "validation", index)
        references[scene.paper].append(Image.fromarray(picture))
        if all(len(r) >= 4 for r in references.values()):
            break
    prompts = [a for a, _ in pairs()][:32]
    rows = ["| reference | its paper | the opposite's |", "|---|---|---|"]
    opposite = {"white": "grey", "grey": "white", "cream": "pink", "pink": "cream"}
    for paper in papers:
        found = scorer.read(
            model.sample(prompts, seed=SEED, up_to=base, style=references[paper][:4])
        ).papers
        share = {p: float((found == papers.index(p)).mean()) for p in (paper, opposite[paper])}
        rows.append(
            f"| four scenes on {paper} | {share[paper]:.2f} | {share[opposite[paper]]:.2f} |"
        )
    return rows


def switching(model: TextToImage, scorer: Scorer) -> tuple[list[str], dict[float, list[float]]]:
    """From one prompt to another after a share of the steps: which one is in the picture?"""
    stage = model.stages[0]
    nouns = pairs()
    first, second = [f"{a} on the left" for a, _ in nouns], [f"{b} on the right" for _, b in nouns]
    sigmas = edm_grid(stage.steps)
    shape = (3, stage.resolution, stage.resolution)
    start = draws.normal(SEED, "switch", torch.arange(COUNT), shape) * float(sigmas[0])
    denoise = [
        guided(stage.denoiser, encode_prompts(model.t5, model.clip, p), stage.guidance)
        for p in (first, second)
    ]
    curve = {}
    for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.93, 1.0):
        with torch.inference_mode():
            both = switched(*denoise, sigma_after(sigmas, share))
            x = SOLVERS[stage.solver](both, start, sigmas).clamp(-1, 1)
        pictures = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        curve[share] = [scorer.score(pictures, p).colours for p in (first, second)]
    rows = ["| changed after | first prompt's ink | second prompt's ink |", "|---|---|---|"]
    rows += [f"| {100 * s:.0f} % | {a:.2f} | {b:.2f} |" for s, (a, b) in curve.items()]
    return rows, curve


def main() -> None:
    import matplotlib.pyplot as plt

    torch.set_num_threads(2)
    model = TextToImage.load(find_model("digit-scenes", None))
    model = replace(model, stages=model.stages[:1])
    base = model.stages[0].name
    scorer = Scorer.fit(model.stages[0].resolution)
    painted, pictures = painting(model, scorer, base)
    grid(pictures, columns=6, scale=6).save(HERE / "painted.png")
    styled = style(model, scorer, base)
    switch, curve = switching(model, scorer)

    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for k, label in enumerate(("first prompt", "second prompt")):
        axes.plot([100 * s for s in curve], [v[k] for v in curve.values()], "o-", label=label)
    axes.set(xlabel="steps before the prompt changes, %", ylabel="asked ink at the asked place")
    axes.legend(frameon=False)
    figure.savefig(HERE / "switching.png", dpi=120)
    report(
        "Control, on the demo's base",
        [
            f"{COUNT} prompts of two digits without places; painted.png: nothing, left and right, "
            "right and left.",
            "",
            *painted,
            "",
            "Style, 32 prompts without a paper:",
            "",
            *styled,
            "",
            f"A prompt changed midway ({Path('switching.png')}):",
            "",
            *switch,
        ],
    )


if __name__ == "__main__":
    main()
