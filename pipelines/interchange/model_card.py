"""The model card of an exported ensemble: what the store knows about it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from ediffi_core.checkpoint import Card
from ediffi_core.noise import Interval, sigma_text
from ediffi_core.published import is_path
from pipelines.formatting import join_words
from pipelines.models.champions import MANIFEST
from pipelines.store.artifacts import MANIFEST as NODE_MANIFEST
from pipelines.store.artifacts import Store

UNKNOWN_LICENSE = (
    "The license of the weights was not given at the export (`--license`). Whoever publishes them "
    "should say under which license, after a look at those of the data."
)
CONTROLS = {
    "shuffled/": "captions shuffled",
    "enlarged/": "stage before, enlarged",
    "real/": "real pictures",
}
"""Prefix of a measure's name → what was measured in place of the ensemble's pictures."""

NOT_SHOWN = ("untrained/", "val_loss/")
"""Prefixes of measures of fewer pictures, and of parts of the noise distribution."""

LOWER_IS_BETTER = ("val_loss", "kernel_distance", "frechet_distance", "fid", "kid", "cmmd")


def text(
    store: Store,
    d: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    license: str | None,
    dtype: str = "float32",
) -> str:
    """The card as Markdown, with the metadata of the Hugging Face Hub.

    Args:
        d: the ensemble's manifest.
        stages: name, resolution, experts, sampling, ``cards`` and ``ema_length`` of every stage.
        license: identifier of the license of the weights; None if unknown.
        dtype: type of the weights in the folder.
    """
    promotion = _promotion(store, d)
    sections = [
        _introduction(d, stages),
        "## Use\n\n" + _use(stages),
        "## Experts\n\n" + _experts(store, d, stages),
        "## Data\n\n" + _data(store, d),
        "## Training\n\n" + _training(store, d, stages),
        "## Evaluation\n\n" + _evaluation(store, promotion, stages, dtype),
        "## Sampling defaults\n\n" + _sampling(stages),
        "## Limits, bias and misuse\n\n" + _limits(stages),
        "## License\n\n" + _license(license),
        "## Papers\n\n" + PAPERS,
    ]
    return f"---\n{_metadata(license)}\n---\n\n" + "\n\n".join(s.strip() for s in sections) + "\n"


def _metadata(license: str | None) -> str:
    from huggingface_hub import ModelCardData

    found = ModelCardData(
        license=license or "other",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", "ediff-i", "mixture-of-denoisers", "pixel-space"],
    )
    return str(found.to_yaml())


def _introduction(d: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    sides = [f"{s['resolution']}×{s['resolution']}" for s in stages]
    experts = sum(len({e["folder"] for e in s["experts"].values()}) for s in stages)
    kind = f"a cascade of {len(stages)} stages ({', '.join(sides)})" if len(sides) > 1 else sides[0]
    return (
        f"# {d['model']}\n\n"
        f"Text to image in pixel space: {kind} with {experts} expert denoisers, trained as in "
        "[eDiff-I](https://arxiv.org/abs/2211.01324). Each expert serves a range of noise levels, "
        "and each sampling step runs one of them."
    )


def _use(stages: Sequence[Mapping[str, Any]]) -> str:
    further = stages[1]["name"] if len(stages) > 1 else None
    example = f'"{further}.steps": 20' if further else '"threshold": "dynamic"'
    return f"""In a shell whose `PYTHONPATH` has this folder, or where `ediffi` is installed:

```python
from ediffi_core.diffusers_pipeline import EdiffiPipeline

pipe = EdiffiPipeline.from_pretrained("FOLDER").to("cuda")
image = pipe("a prompt", guidance_scale=3.0, seed=7, sampling={{{example}}}).images[0]
```

This needs `torch`, `diffusers`, `transformers` and `open_clip_torch`. No code of the folder runs \
but what you import. `guidance_scale` is w + 1. `seed=7` draws what `ediffi sample --seed 7` does. \
The same through `DiffusionPipeline`, which runs the folder's `pipeline.py`:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(
    "FOLDER", custom_pipeline="FOLDER", trust_remote_code=True
)
```

The denoisers alone, with nothing but `torch`, `numpy` and `safetensors`:

```python
from ediffi_core.pretrained import load_cascade

stages = load_cascade("FOLDER", "cuda")
```

Both check every file of weights against its sha256."""


# -- experts -------------------------------------------------------------------------------------


def _experts(store: Store, d: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for stage in stages:
        rows = list(_expert_rows(store, d, stage))
        head = ("expert", "noise levels", "share of p(σ)", "trained on images", "starts from")
        parts.append(f"**{stage['name']}**, {stage['resolution']} pixels\n\n" + table(head, rows))
    return (
        "An expert starts from its parent's weights. The experts in bold are in the ensemble; the "
        "others are their ancestors.\n\n" + "\n\n".join(parts)
    )


def _expert_rows(
    store: Store, d: Mapping[str, Any], stage: Mapping[str, Any]
) -> Iterator[tuple[str, ...]]:
    """The experts of the ensemble, high noise first, then their ancestors."""
    noise = next(iter(stage["cards"].values())).noise

    def row(name: str, interval: Interval, images: int, parent: str | None) -> tuple[str, ...]:
        sigmas = sigma_text(*interval.bounds(noise))
        return name, sigmas, _share(interval), f"{images:,}", parent or "–"

    served: dict[str, list[str]] = {}
    for slot in stage["experts"]:
        path = d["weights"][f"{stage['name']}/{slot}"]["path"]
        served.setdefault(path, []).append(slot)
    nodes = {path: path.rpartition("/")[0] for path in served}
    experts, ancestors = [], {}
    for path, slots in served.items():
        card: Card = stage["cards"][slots[0]]
        others = [s for s in slots if s != card.expert]
        name = f"**{card.expert}**" + (f", serves {join_words(others, 'and')}" if others else "")
        parent = str((card.parent or {}).get("name") or "").rpartition("/")[2]
        experts.append((card.interval.q_lo, row(name, card.interval, card.images, parent)))
        for at, manifest in _ancestors(store, nodes[path]):
            of = manifest["settings"]
            interval = Interval(*of["interval"])
            above = manifest["inputs"].get("parent", {}).get("node", "").rpartition("/")[2]
            if at not in nodes.values():
                found = row(of["expert"], interval, of["images"], above)
                ancestors[at] = (interval.q_lo, found)
    for group in (experts, list(ancestors.values())):
        yield from (found for _, found in sorted(group, key=lambda pair: -pair[0]))


def _share(interval: Interval) -> str:
    return f"{(interval.q_hi - interval.q_lo) * 100:.4g} %"


def _ancestors(store: Store, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Folder and manifest of a training's ancestors that the store has, the nearest first."""
    manifest = _manifest(store, folder)
    while parent := manifest.get("inputs", {}).get("parent"):
        folder = _folder(parent)
        if manifest := _manifest(store, folder):
            yield folder, manifest


def _manifest(store: Store, folder: str | None) -> dict[str, Any]:
    """The manifest of a node; empty if the store does not have it."""
    found = store.read_json(f"{folder}/{NODE_MANIFEST}") if folder else None
    return dict(found or {})


def _folder(of: Mapping[str, str]) -> str:
    return f"nodes/{of['node']}-{of['fingerprint']}"


# -- data ----------------------------------------------------------------------------------------


def _data(store: Store, d: Mapping[str, Any]) -> str:
    data = d.get("data") or {}
    rows, makers = [], set()
    for split in ("train", "validation"):
        folder = (data.get(split) or {}).get("folder")
        manifest = _manifest(store, folder)
        metrics = manifest.get("metrics", {})
        if "rows" not in metrics:
            continue
        made = manifest.get("inputs", {}).get("data")
        maker = _manifest(store, _folder(made) if made else None).get("settings", {}).get("make")
        makers.add(maker)
        keys = ("rows", "filtered", "quarantined", "repeated")
        counts = (f"{int(metrics[k]):,}" if k in metrics else "–" for k in keys)
        source = f"made by ediffi (`{maker}`)" if maker else "the trainer's own pairs"
        rows.append((split, source, *counts))
    encoders = _encoders(d)
    if not rows:
        return f"The store no longer has the data of this ensemble.\n\n{encoders}"
    head = ("split", "source", "pairs", "filtered out", "refused", "repeated")
    found = "Pairs of a picture and a caption.\n\n" + table(head, rows)
    if "emoji-scenes" in makers:
        found += "\n\n" + _attribution()
    if "fashion-mnist" in makers:
        found += (
            "\n\nThe pictures are of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv "
            "1708.07747), © 2017 Zalando SE, under the MIT License."
        )
    if None in makers:
        found += (
            "\n\nThe store records no origin and no license of the trainer's own pairs: unknown "
            "here."
        )
    return f"{found}\n\n{encoders}"


def _attribution() -> str:
    """The licenses of the demo's drawings, without the page's own heading and links."""
    page = resources.files("pipelines.demo").joinpath("packages/ATTRIBUTION.md")
    _, _, body = page.read_text(encoding="utf-8").partition("\n\n")
    body = body.replace("None of them is in this repository: npm", "npm")
    body = body.replace("Pictures in this repository that", "Pictures that")
    return "**Licenses of the drawings.** " + body.strip()


def _encoders(d: Mapping[str, Any]) -> str:
    named = {role: d["encoders"].get(role) for role in ("t5", "clip")}
    named |= {name: more["model"] for name, more in d["encoders"].get("more", {}).items()}
    if d.get("encoders_folder"):
        named |= {"t5": None, "clip": None}
    told = [
        f"`{role}` " + (f"({_public(name)})" if name else "(trained by ediffi on this data)")
        for role, name in named.items()
    ]
    return f"Frozen encoders: {join_words(told, 'and')}. Their licenses are their publishers'."


def _public(name: str) -> str:
    """A published encoder's name; of a path the last part alone."""
    return f"the folder `{name.rstrip('/').rpartition('/')[2]}`" if is_path(name) else f"`{name}`"


# -- training and evaluation ---------------------------------------------------------------------

_OPTIMIZERS = {
    "adamw": "AdamW",
    "muon": "Muon, with AdamW for all but the blocks' matrices and kernels,",
}


def _training(store: Store, d: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    rows, optimizers = [], set()
    for stage in stages:
        for slot in sorted(stage["experts"], key=lambda s: -stage["experts"][s]["interval"][0]):
            card: Card = stage["cards"][slot]
            path = d["weights"][f"{stage['name']}/{slot}"]["path"]
            manifest = _manifest(store, path.rpartition("/")[0])
            how = manifest.get("settings", {}).get("training")
            if how is None:
                continue
            rate, schedule = how.get("learning_rate"), how.get("schedule")
            optimizers.add(_OPTIMIZERS[how.get("optimizer", "adamw")])
            row = (
                f"{stage['name']}/{card.expert}",
                _count(manifest.get("info", {}).get("parameters")),
                _count(how.get("batch")),
                ", ".join(_shown(v) for v in (rate, schedule) if v is not None) or "–",
                _shown(how.get("weight_decay")) or "–",
                _shown(how.get("precision")) or "–",
                _count(how.get("ema_halflife_images")),
            )
            if row not in rows:
                rows.append(row)
    noise = {stage["name"]: next(iter(stage["cards"].values())).noise for stage in stages}
    told = "; ".join(f"{name}: P_mean {n.P_mean:g}, P_std {n.P_std:g}" for name, n in noise.items())
    trained = f"{' or '.join(sorted(optimizers))} on the" if optimizers else "The"
    intro = (
        f"{trained} denoising loss of EDM (arXiv:2206.00364), with the noise levels "
        f"ln σ ~ N(P_mean, P_std²) ({told}). The weights are averages over training (EMA)."
    )
    for stage in stages:
        if length := stage["ema_length"]:
            intro += (
                f" Those of {stage['name']} are power averages of length σ_rel = {length:g} "
                "(arXiv:2312.02696), in place of the half-life below."
            )
    if not rows:
        return intro + " The store no longer has the settings of the trainings."
    head = ("expert", "parameters", "batch", "learning rate", "weight decay", "precision")
    return f"{intro}\n\n" + table((*head, "EMA half-life, images"), rows)


def _count(value: int | None) -> str:
    return f"{value:,}" if value else "–"


def _evaluation(
    store: Store,
    promotion: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    dtype: str,
) -> str:
    parts = []
    for stage in stages:
        of = promotion.get("inputs", {}).get(f"evaluation/{stage['name']}")
        manifest = _manifest(store, _folder(of) if of else None)
        if measured := manifest.get("metrics"):
            parts.append(f"**{stage['name']}**\n\n" + _measures(measured))
    if not parts:
        return "The store has no evaluation of this ensemble."
    cast = "" if dtype == "float32" else f" The weights were float32, not {dtype} as here."
    return (
        "On captions of the validation data, with the sampling defaults below, conditioned on text "
        "alone. ± is half of a 95 % interval over the pictures, of one training; N is the number "
        f"of pictures. Arrows show which way is better.{cast}\n\n" + "\n\n".join(parts)
    )


def _measures(metrics: Mapping[str, float]) -> str:
    names = [n for n in metrics if not n.endswith(("_ci95", "_pictures"))]
    controls = [p for p in CONTROLS if any(n.startswith(p) for n in names)]
    own = [n for n in names if not n.startswith((*CONTROLS, *NOT_SHOWN))]
    rows = []
    for name in own:
        count = metrics.get(f"{name}_pictures")
        rows.append(
            (
                name + (" ↓" if name.startswith(LOWER_IS_BETTER) else " ↑"),
                _estimate(metrics, name),
                *(_estimate(metrics, prefix + name) for prefix in controls),
                f"{count:,.0f}" if count else "–",
            )
        )
    return table(("measure", "ensemble", *(CONTROLS[p] for p in controls), "N"), rows)


def _estimate(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "–"
    half = metrics.get(f"{name}_ci95")
    return f"{metrics[name]:.3f}" + (f" ±{half:.3f}" if half else "")


def _promotion(store: Store, d: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the node that wrote the ensemble's manifest; empty if it is not found."""
    for file in store.files("nodes/promote"):
        folder, _, name = f"nodes/promote/{file}".rpartition("/")
        if name == MANIFEST and store.read_json(f"{folder}/{name}") == d:
            return _manifest(store, folder)
    return {}


# -- the rest ------------------------------------------------------------------------------------


def _sampling(stages: Sequence[Mapping[str, Any]]) -> str:
    every = [s["sampling"] for s in stages]
    names = [key for key in every[0] if any(_shown(sampling[key]) for sampling in every)]
    rows = [(f"`{key}`", *(_shown(sampling[key]) or "–" for sampling in every)) for key in names]
    return (
        "`guidance` is w of D = D_c + w (D_c − D_u). `sampling={…}` of the pipeline changes any of "
        "these by name.\n\n" + table(("setting", *(s["name"] for s in stages)), rows)
    )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        if set(value) == {"scale", "experts", "interval"} and not any(
            (value["experts"], value["interval"])
        ):
            return f"{value['scale']:g}"
        return ", ".join(f"{k} {v}" for k, v in value.items() if v not in (None, {}))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _limits(stages: Sequence[Mapping[str, Any]]) -> str:
    side = stages[-1]["resolution"]
    return f"""- It draws pictures of {side}×{side} pixels and no other size.
- What it draws well is what its data shows. Nothing beyond the evaluation above was measured; \
sameness with training pictures was not, unless a measure above says so.
- There is no filter of prompts or pictures, and pictures carry no watermark.
- Data sets of pictures and captions have biases, of whom and what they show and how captions name \
it. The model learns them and shows them. The frozen text encoders bring those of their own data.
- Models that draw what a text says can be misused for deceptive or harmful pictures, and make it \
harder to trust that a picture is genuine. Do not use it to deceive, to harass, or to depict real \
persons without their consent."""


def _license(license: str | None) -> str:
    weights = f"The weights: {license}." if license else UNKNOWN_LICENSE
    return (
        f"{weights} The code in `ediffi_core/` and `pipeline.py` is Apache-2.0. The encoders in "
        "`encoders/` have their publishers' licenses."
    )


PAPERS = """- eDiff-I: Balaji et al., [arXiv:2211.01324](https://arxiv.org/abs/2211.01324)
- EDM: Karras et al., [arXiv:2206.00364](https://arxiv.org/abs/2206.00364)"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; ``|`` in cells is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)
