"""Text-to-image inference with a trained cascade, for ``ediffi sample`` and MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ediffi_core import cascade
from ediffi_core.cascade import CascadeStage
from ediffi_core.checkpoint import read_checked
from ediffi_core.conditioning import Conditioning
from ediffi_core.control import Phrase, paint_with_words, with_style
from ediffi_core.encoders import CLIP, T5, EmbeddingKind, TextEncoder, clip_side, encode_prompts
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from ediffi_core.residency import Load, SwappedEnsemble
from ediffi_core.sampling import SOLVERS
from pipelines.models.champions import MANIFEST
from pipelines.store.artifacts import Store

Residency = Literal["all", "current", "disk"]
Pictures = np.ndarray[Any, np.dtype[np.uint8]]
Weights = Mapping[str, Mapping[str, Any]]


def encoder_sources(store: Store, folder: str | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Names or folders of the encoders.

    Args:
        folder: folder of a node that made T5 and CLIP; None to use those named in the spec.
        named: the spec's ``encoders`` settings.
    """
    if not folder:
        return dict(named)
    return {**named, **{role: str(store.local(f"{folder}/{role}")) for role in ("t5", "clip")}}


def load_t5(sources: Mapping[str, Any], device: str = "cpu") -> T5:
    """Load the T5 encoder; ValueError if it cannot be loaded."""
    with _loading("t5", sources["t5"]):
        return T5(
            sources["t5"], device=device, dtype=getattr(torch, sources.get("t5_dtype", "float32"))
        )


def load_clip(
    sources: Mapping[str, Any],
    device: str = "cpu",
    *,
    trained_with: Mapping[str, str] | None = None,
) -> CLIP:
    """Load the CLIP encoder; ValueError if it cannot be loaded.

    Args:
        trained_with: identity of the CLIP that the training shards were encoded with. Older shards
            lack the key ``how``; their CLIP used the activation of the model's own configuration.
    """
    with _loading("clip", sources["clip"]):
        return CLIP(
            sources["clip"],
            pretrained=sources.get("clip_pretrained"),
            device=device,
            follow_tag=trained_with is None or "how" in trained_with,
        )


def check_trained_with(
    encoders: Mapping[str, T5 | CLIP | TextEncoder], trained_with: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise ValueError for an encoder that differs from the one of the training shards."""
    for role, encoder in encoders.items():
        expected = trained_with.get(role, {}).get("how", encoder.recipe)
        if expected != encoder.recipe:
            raise ValueError(
                f"encoder {role} differs from the one that this ensemble was trained with "
                f"({encoder.recipe}; not {expected}): restore its configuration, or train again"
            )


def load_extra_encoders(
    sources: Mapping[str, Any], device: str = "cpu"
) -> dict[str, tuple[TextEncoder, EmbeddingKind]]:
    """Load ``encoders.more``; ValueError if one cannot be loaded, or has another width."""
    found: dict[str, tuple[TextEncoder, EmbeddingKind]] = {}
    for name, given in sources.get("more", {}).items():
        with _loading(f"more.{name}", given["model"]):
            encoder = TextEncoder(given["model"], device=device)
        if encoder.dim != given["dim"]:
            raise ValueError(
                f"encoder {name} ({given['model']}) has vectors of width {encoder.dim}; write "
                f"`dim: {encoder.dim}` instead of {given['dim']}"
            )
        found[name] = encoder, given["kind"]
    return found


def side_for_clip(sources: Mapping[str, Any]) -> int:
    """Side in pixels of CLIP's input, without loading the model; ValueError if it is unknown."""
    with _loading("clip", sources["clip"]):
        return clip_side(sources["clip"])


@contextmanager
def _loading(role: str, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"encoder {role} {name!r} cannot be loaded ({' '.join(str(error).split())[:300]}); set "
            f"`encoders.{role}` to a name that can be downloaded, or to a folder"
        ) from error


@dataclass(frozen=True)
class Slot:
    """One slot of an ensemble: an interval, and the weights that serve it."""

    path: str
    """Path of the weights in the store."""

    expert: str
    """Expert that the weights belong to: the slot's own, or an ancestor that it did not beat."""

    interval: Interval


def load_ensemble(
    store: Store,
    slots: Mapping[str, Slot],
    residency: Residency = "all",
    device: torch.device | str = "cpu",
) -> Ensemble:
    """Load an ensemble from its slots by name.

    Args:
        residency: where the experts' weights are. ``all``: on the device. ``current``: one on the
            device, the others in host memory. ``disk``: one on the device, the next being read.

    Raises:
        ValueError: The intervals do not cover p(σ) exactly once; a checkpoint is damaged, belongs
            to another expert or was not trained on its slot's interval; or the experts differ in
            architecture, noise distribution or sigma_data.
    """
    read = {
        slot.path: read_checked(store.local(slot.path), expert=slot.expert, interval=slot.interval)
        for slot in slots.values()
    }
    cards = [card for _, card in read.values()]
    if len({(c.noise, c.network, c.sigma_data) for c in cards}) > 1:
        raise ValueError(
            f"experts {', '.join(slots)} differ in noise distribution, network or sigma_data; "
            "an ensemble needs one of each"
        )

    def built(weights: Mapping[str, Tensor]) -> Denoiser:
        denoiser = Denoiser.of(cards[0].network, cards[0].sigma_data)
        denoiser.load_state_dict(weights)
        return denoiser.eval().requires_grad_(False).to(device)

    if residency == "all":
        once = {path: built(weights) for path, (weights, _) in read.items()}
        loaded = [Expert(name, s.interval, once[s.path]) for name, s in slots.items()]
        return Ensemble(loaded, cards[0].noise)
    load: dict[str, Load] = {}
    for name, slot in slots.items():
        file = store.local(slot.path)
        load[name] = (
            partial(lambda w: w, read[slot.path][0])
            if residency == "current"
            else partial(lambda f: read_checked(f)[0], file)
        )
    network = built(next(iter(read.values()))[0])
    intervals = {name: slot.interval for name, slot in slots.items()}
    return SwappedEnsemble(network, intervals, load, cards[0].noise)


def load_stages(
    store: Store,
    stages: Sequence[Mapping[str, Any]],
    weights: Weights,
    residency: Residency = "all",
    device: torch.device | str = "cpu",
) -> list[CascadeStage]:
    """Load the stages of a cascade from a node's settings.

    Args:
        stages: name, experts and sampling settings of every stage, from the smallest on.
        weights: ``stage/slot`` → ``path`` of the weights in the store, and their ``expert``.
    """

    def at(slot: str) -> tuple[str, str]:
        return weights[slot]["path"], weights[slot]["expert"]

    return [
        CascadeStage(
            name=s["name"],
            denoiser=load_ensemble(
                store,
                {e: Slot(*at(f"{s['name']}/{e}"), Interval(*q)) for e, q in s["experts"].items()},
                residency,
                device,
            ),
            resolution=s["resolution"],
            **s["sampling"],
        )
        for s in stages
    ]


def draw(
    stages: Sequence[CascadeStage],
    cond: Conditioning,
    *,
    seed: int | Sequence[int],
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Generate images with every stage of a cascade.

    Args:
        cond: conditioning of N images.
        seed: one seed for all, then image i depends on (seed, i) alone; or one seed per image, then
            it depends on its seed alone.
        batch: images generated at once.
        progress: called with the number of finished images.

    Returns:
        Stage name → images, uint8 [N, R, R, 3].
    """
    found: dict[str, list[Tensor]] = {stage.name: [] for stage in stages}
    for at in range(0, len(cond), batch):
        rows = cond[slice(at, at + batch)]
        mine, first = (seed, at) if isinstance(seed, int) else (seed[at : at + batch], 0)
        for name, x in cascade.sample(stages, rows, seed=mine, first=first):
            found[name].append(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
        if progress:
            progress(at + len(rows))
    return {name: torch.cat(parts) for name, parts in found.items()}


@dataclass
class TextToImage:
    """A cascade with the encoders that it was trained on."""

    stages: list[CascadeStage]
    t5: T5
    clip: CLIP
    device: torch.device
    more: Mapping[str, tuple[TextEncoder, EmbeddingKind]] = field(default_factory=dict)
    """Further text encoders: embedding name → encoder, and ``sequence`` or ``pooled``."""

    @staticmethod
    def load(manifest: str | Path, residency: Residency = "all") -> TextToImage:
        """Load an ``ensemble.json`` that a promote node wrote, onto a GPU if there is one.

        Raises:
            ValueError: The manifest, a checkpoint or an encoder is missing or does not fit.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        file = Path(manifest)
        if not file.is_file():
            raise ValueError(f"there is no ensemble at {manifest}; give the path of its {MANIFEST}")
        try:
            d = json.loads(file.read_text())
            store = Store.at(d["store"])
            stages = load_stages(store, d["stages"], d["weights"], residency, device)
            sources = encoder_sources(store, d["encoders_folder"], d["encoders"])
            trained_with = d.get("trained_with") or {}
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{manifest} is not an ensemble manifest ({error!r})") from error
        t5, more = load_t5(sources), load_extra_encoders(sources)
        clip = load_clip(sources, trained_with=trained_with.get("clip", {}))
        check_trained_with(
            {"t5": t5, "clip": clip, **{n: e for n, (e, _) in more.items()}}, trained_with
        )
        return TextToImage(stages, t5, clip, device, more=more)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        guidance: float | None = None,
        steps: int | None = None,
        solver: str | None = None,
        style: Sequence[Any] = (),
        paint: Sequence[Sequence[Phrase]] | None = None,
        up_to: str | None = None,
    ) -> Pictures:
        """Generate one image per prompt; unset options are the ensemble's own.

        Args:
            seed: one seed for all, then equal prompts give different images; or one seed per
                prompt, then an image does not depend on the other prompts.
            guidance, steps, solver: for the base stage; super-resolution stages keep their own.
            style: PIL images whose style all images take, in equal parts.
            paint: painted phrases of each prompt; may be empty.
            up_to: name of the last stage to run; all stages by default.

        Returns:
            uint8 [N, R, R, 3].

        Raises:
            ValueError: An option, a prompt or a painted phrase is invalid.
        """
        names = [stage.name for stage in self.stages]
        if up_to is not None and up_to not in names:
            raise ValueError(f"there is no stage {up_to!r}; the cascade has {', '.join(names)}")
        if solver is not None and solver not in SOLVERS:
            raise ValueError(f"solver {solver!r} is unknown; there are {', '.join(SOLVERS)}")
        given = {"guidance": guidance, "steps": steps, "solver": solver}
        changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        stages = self.stages[: names.index(up_to) + 1] if up_to else self.stages
        stages = [replace(stages[0], **changes), *stages[1:]]

        cond = encode_prompts(self.t5, self.clip, prompts, self.more)
        if style:
            cond = with_style(cond, self.clip.image(style))
        if paint is not None:
            spans = {"t5": self.t5.spans(prompts), "clip_text": self.clip.spans(prompts)}
            tokens = {n: e for n, (e, kind) in self.more.items() if kind == "sequence"}
            spans |= {name: encoder.spans(prompts) for name, encoder in tokens.items()}
            cond = replace(cond, paint=paint_with_words(paint, spans))
        out: Pictures = draw(stages, cond.to(self.device), seed=seed)[stages[-1].name].numpy()
        return out


def grid(pictures: Pictures, *, columns: int, scale: int, gap: int = 4) -> Any:
    """Lay out images, uint8 [N, R, R, 3], in rows on white.

    Args:
        columns: images per row.
        scale: factor by which every image is enlarged, bicubic.
        gap: white pixels between images.

    Returns:
        A PIL image.
    """
    from PIL import Image

    side = pictures.shape[1] * scale
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    size = (columns * (side + gap) + gap, rows * (side + gap) + gap)
    canvas = Image.new("RGB", size, "white")
    for i, picture in enumerate(pictures):
        big = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        canvas.paste(big, (gap + i % columns * (side + gap), gap + i // columns * (side + gap)))
    return canvas
