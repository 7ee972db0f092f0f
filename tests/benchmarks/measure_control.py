"""What steering does to the trained demo: painted words, a style reference, a change of prompt, a
picture to start from, to vary, and to keep a part of.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``. Numbers are the demo scorer's;
two figures beside RESULTS.md.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from harness import HERE, report
from PIL import Image

from ediffi_core import draws
from ediffi_core.control import Phrase, sigma_after, switched
from ediffi_core.encoders import encode_prompts
from ediffi_core.guidance import guided
from ediffi_core.noise import edm_grid
from ediffi_core.sampling import SOLVERS
from pipelines.demo.drawings import ARTISTS, CONCEPTS, indices
from pipelines.demo.scenes import GROUNDS, PAIRED, PLACES, compose, draw
from pipelines.demo.scorer import EmojiScenes
from pipelines.lineage.lookup import find_model
from pipelines.models.painting import SIDE
from pipelines.models.sheet import grid
from pipelines.models.text_to_image import TextToImage
from pipelines.models.watch import Pictures
from pipelines.spec.loading import load

matplotlib.use("Agg")
COUNT, SEED = 96, 11
HALVES = ("left", "right")
DEMO = load(HERE.parents[1] / "pipelines/specs/demo.yaml")
DRAWN = indices(DEMO.data.train.concepts)
"""The concepts that the demo is trained on."""


def loaded() -> tuple[TextToImage, EmojiScenes]:
    """The trained demo's model, and its scorer."""
    storage = os.environ.get("EDIFFI_STORE", "ediffi-store")
    model = TextToImage.load(find_model("emoji-scenes", storage))
    scorer = EmojiScenes()
    scorer.open(
        max(Path(storage).glob("nodes/metric/emoji-scenes-*"), key=lambda f: f.stat().st_mtime)
    )
    return model, scorer


def half(place: str) -> torch.Tensor:
    mask = torch.zeros(SIDE, SIDE)
    mask[:, : SIDE // 2] = 1
    return mask if place == "left" else mask.flip(1)


def pairs(concepts: Sequence[int]) -> list[tuple[int, int]]:
    """Two of these concepts each, drawn with a fixed seed."""
    rng = np.random.default_rng(SEED)
    two = [rng.choice(concepts, 2, replace=False) for _ in range(COUNT)]
    return [(int(a), int(b)) for a, b in two]


def noun(concept: int) -> str:
    name = CONCEPTS[concept].name
    return name if name == "grapes" else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def at(scorer: EmojiScenes, pictures: Pictures, order: tuple[str, str]) -> np.ndarray:
    """Which of the asked things are read at their places: bool [N, 2]."""
    read = scorer.read(pictures).concepts
    places = [PLACES.index(place) for place in order]
    return np.array([[read[n, p] == c for c, p in zip(two, places)] for n, two in PAIRS])


PAIRS = list(enumerate(pairs(PAIRED)))
ANY = list(enumerate(pairs(DRAWN)))
"""For what is shown one thing at a time."""


def painting(model: TextToImage, scorer: EmojiScenes) -> tuple[list[str], Pictures]:
    """The prompts name no place. How often is the asked thing in the painted half?"""
    prompts = [f"{noun(a)} and {noun(b)}" for _, (a, b) in PAIRS]

    def phrases(order: tuple[str, str], strength: float) -> list[list[Phrase]]:
        return [
            [Phrase(noun(c), half(p), strength) for c, p in zip(two, order, strict=True)]
            for _, two in PAIRS
        ]

    swapped = (HALVES[1], HALVES[0])
    plain = model.sample(prompts, seed=SEED)
    rows = [
        "| painted | strength w' | guidance | things in their halves | in the halves swapped |",
        "|---|---|---|---|---|",
    ]
    shown = [plain[:6]]
    for label, order, strength, guidance in (
        ("nothing", HALVES, 0.0, 1.0),
        *(("left, right", HALVES, w, 1.0) for w in (0.4, 1.0, 2.0)),
        ("right, left", swapped, 1.0, 1.0),
        ("left, right", HALVES, 2.0, 2.0),
        ("right, left", swapped, 2.0, 2.0),
    ):
        options = {"paint": phrases(order, strength), "sampling": {"base.guidance": guidance}}
        pictures = model.sample(prompts, seed=SEED, **options) if strength else plain
        found = (at(scorer, pictures, order), at(scorer, pictures, order[::-1]))
        rows.append(
            f"| {label} | {strength or '–'} | {guidance} "
            f"| {' | '.join(f'{f.mean():.2f}' for f in found)} |"
        )
        if strength == 1.0:
            shown.append(pictures[:6])
    return rows, np.concatenate(shown)


def references() -> tuple[list[Image.Image], list[tuple[int, int, int]]]:
    """Pictures of one thing, none of them the asked one, and its concept, ground and artist."""
    pictures, shown = [], []
    scenes = ((i, compose(SEED, "validation", i, DRAWN)) for i in itertools.count())
    numbers = (i for i, scene in scenes if len(scene.items) == 1)
    for index in itertools.islice(numbers, COUNT):
        scene, picture = draw(SEED, "validation", index, DRAWN)
        pictures.append(Image.fromarray(picture))
        ground, artist = list(GROUNDS).index(scene.ground), list(ARTISTS).index(scene.artist)
        shown.append((scene.items[0].concept, ground, artist))
    return pictures, shown


def starting(model: TextToImage, scorer: EmojiScenes) -> list[str]:
    """Image-to-image: is the asked thing there, and the picture's own thing and ground still?"""
    pictures, shown = references()
    rows = ["| first σ | the asked thing | the picture's thing | its ground |", "|---|---|---|---|"]
    for sigma in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 80.0):
        drawn = np.concatenate(
            [
                model.sample([noun(a)], seed=[SEED + n], image=pictures[n], sigma=sigma)
                for n, (a, _) in ANY
            ]
        )
        read = scorer.read(drawn)
        found = [
            np.mean([a in read.concepts[n] for n, (a, _) in ANY]),
            np.mean([t in read.concepts[n] for n, (t, _, _) in enumerate(shown)]),
            np.mean(read.grounds == [g for _, g, _ in shown]),
        ]
        rows.append(f"| {sigma:g} | " + " | ".join(f"{share:.2f}" for share in found) + " |")
    return rows


def varying(model: TextToImage, scorer: EmojiScenes) -> list[str]:
    """Variations by CLIP's image embedding: what of the picture is in them?"""
    pictures, shown = references()
    rows = ["| | the picture's thing | its ground | its artist |", "|---|---|---|---|"]
    for label, prompts in (
        ("without a prompt", [""] * COUNT),
        ("the prompt names the thing", [noun(t) for t, _, _ in shown]),
    ):
        drawn = np.concatenate(
            [
                model.sample([p], seed=[SEED + n], variation=pictures[n])
                for n, p in enumerate(prompts)
            ]
        )
        read = scorer.read(drawn)
        found = [
            np.mean([t in read.concepts[n] for n, (t, _, _) in enumerate(shown)]),
            np.mean(read.grounds == [g for _, g, _ in shown]),
            np.mean(read.artists == [a for _, _, a in shown]),
        ]
        rows.append(f"| {label} | " + " | ".join(f"{share:.2f}" for share in found) + " |")
    return rows


def style(model: TextToImage, scorer: EmojiScenes) -> list[str]:
    """Prompts without ground and artist; the reference shows another thing on one, by one."""
    pictures, shown = references()
    prompts = [noun(asked) for _, (asked, _) in ANY]
    styled = np.concatenate(
        [model.sample([p], seed=[SEED + n], style=[pictures[n]]) for n, p in enumerate(prompts)]
    )
    plain = model.sample(prompts, seed=[SEED + n for n in range(COUNT)])
    rows = ["| | its ground | its artist | the asked thing |", "|---|---|---|---|"]
    for label, drawn in (("with a reference", styled), ("without", plain)):
        read = scorer.read(drawn)
        found = [
            float(np.mean(read.grounds == [g for _, g, _ in shown])),
            float(np.mean(read.artists == [a for _, _, a in shown])),
            float(np.mean([a in read.concepts[n] for n, (a, _) in ANY])),
        ]
        rows.append(f"| {label} | " + " | ".join(f"{share:.2f}" for share in found) + " |")
    return rows


def switching(
    model: TextToImage, scorer: EmojiScenes
) -> tuple[list[str], dict[float, tuple[float, float]]]:
    """From one prompt to another after a share of the base's steps: which is in the picture?"""
    stage = model.stages[0]
    prompts = [[noun(two[k]) for _, two in ANY] for k in (0, 1)]
    sigmas = edm_grid(stage.steps)
    shape = (3, stage.resolution, stage.resolution)
    start = draws.normal(SEED, "switch", torch.arange(COUNT), shape) * float(sigmas[0])
    denoise = [
        guided(stage.denoiser, encode_prompts(model.t5, model.clip, p, model.more), stage.guidance)
        for p in prompts
    ]
    curve = {}
    for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.93, 1.0):
        with torch.inference_mode():
            both = switched(*denoise, sigma_after(sigmas, share))
            x = SOLVERS[stage.solver](both, start, sigmas).clamp(-1, 1)
        read = scorer.read(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        found = [np.mean([two[k] in read.concepts[n] for n, two in ANY]) for k in (0, 1)]
        curve[share] = (float(found[0]), float(found[1]))
    rows = ["| changed after | first prompt's thing | second prompt's |", "|---|---|---|"]
    rows += [f"| {100 * s:.0f} % | {a:.2f} | {b:.2f} |" for s, (a, b) in curve.items()]
    return rows, curve


def main() -> None:
    import matplotlib.pyplot as plt

    torch.set_num_threads(2)
    model, scorer = loaded()
    painted, pictures = painting(model, scorer)
    grid(pictures, columns=6, scale=2).save(HERE / "painted.png")
    styled = style(model, scorer)
    switch, curve = switching(model, scorer)

    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for k, label in enumerate(("first prompt", "second prompt")):
        axes.plot([100 * s for s in curve], [v[k] for v in curve.values()], "o-", label=label)
    axes.set(xlabel="steps before the prompt changes, %", ylabel="asked thing in the picture")
    axes.legend(frameon=False)
    figure.savefig(HERE / "switching.png", dpi=120)
    report(
        "Control, on the demo",
        [
            f"{COUNT} prompts of two things without places, at 64×64; painted.png: nothing, left "
            "and right, right and left.",
            "",
            *painted,
            "",
            f"Style, {COUNT} prompts of one thing; the reference shows another:",
            "",
            *styled,
            "",
            f"A prompt changed midway, at the base's 16×16 ({Path('switching.png')}):",
            "",
            *switch,
            "",
            "Image-to-image: the prompt asks for one thing, the picture shows another:",
            "",
            *starting(model, scorer),
            "",
            "Variations of these pictures:",
            "",
            *varying(model, scorer),
        ],
    )


if __name__ == "__main__":
    main()
