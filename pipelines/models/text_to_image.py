"""A trained cascade as something that draws pictures: what ``ediffi sample`` and MLflow load."""

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
from ediffi_core.checkpoint import read_as
from ediffi_core.conditioning import Conditioning
from ediffi_core.control import Phrase, paint_with_words, with_style
from ediffi_core.encoders import CLIP, T5, Kind, TextEncoder, clip_side, encode_prompts
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


def encoder_places(store: Store, folder: str | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Where the encoders are: made by a node (its folder), or those named in the spec."""
    if not folder:
        return dict(named)
    return {**named, **{role: str(store.local(f"{folder}/{role}")) for role in ("t5", "clip")}}


def load_t5(places: Mapping[str, Any], device: str = "cpu") -> T5:
    """ValueError if it cannot be loaded."""
    with _loading("t5", places["t5"]):
        return T5(
            places["t5"], device=device, dtype=getattr(torch, places.get("t5_dtype", "float32"))
        )


def load_clip(
    places: Mapping[str, Any], device: str = "cpu", *, trained_with: Mapping[str, str] | None = None
) -> CLIP:
    """ValueError if it cannot be loaded.

    Args:
        trained_with: what the shards said of their CLIP, for a model that was trained on them.
            Those that do not say how it worked are older, and their CLIP followed no tag.
    """
    with _loading("clip", places["clip"]):
        return CLIP(
            places["clip"],
            pretrained=places.get("clip_pretrained"),
            device=device,
            follow_tag=trained_with is None or "how" in trained_with,
        )


def check_trained_with(
    encoders: Mapping[str, T5 | CLIP | TextEncoder], trained_with: Mapping[str, Mapping[str, str]]
) -> None:
    """ValueError for an encoder that works otherwise than the one of the training shards."""
    for role, encoder in encoders.items():
        told = trained_with.get(role, {}).get("how", encoder.how)
        if told != encoder.how:
            raise ValueError(
                f"encoder {role} works otherwise than the one that this ensemble was trained with "
                f"({encoder.how}; not {told}): restore its configuration, or train again"
            )


def load_more(
    places: Mapping[str, Any], device: str = "cpu"
) -> dict[str, tuple[TextEncoder, Kind]]:
    """The further encoders; ValueError if one cannot be loaded, or is of another width."""
    found: dict[str, tuple[TextEncoder, Kind]] = {}
    for name, given in places.get("more", {}).items():
        with _loading(f"more.{name}", given["model"]):
            encoder = TextEncoder(given["model"], device=device)
        if encoder.dim != given["dim"]:
            raise ValueError(
                f"encoder {name} ({given['model']}) has vectors of width {encoder.dim}; write "
                f"`dim: {encoder.dim}` instead of {given['dim']}"
            )
        found[name] = encoder, given["kind"]
    return found


def side_for_clip(places: Mapping[str, Any]) -> int:
    """Side of the pictures that CLIP reads, without loading it; ValueError if it is unknown."""
    with _loading("clip", places["clip"]):
        return clip_side(places["clip"])


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
class Seat:
    """A place in an ensemble: an interval, and who works on it."""

    path: str
    """Of the weights, in the store."""

    expert: str
    """Whose they are: the seat's own, or an ancestor's that it did not beat."""

    interval: Interval


def load_ensemble(
    store: Store,
    seats: Mapping[str, Seat],
    residency: Residency = "all",
    device: torch.device | str = "cpu",
) -> Ensemble:
    """Name → seat becomes an ensemble.

    ValueError if the intervals do not cover p(σ) once, a checkpoint is damaged, is another
    expert's, or was not trained on its seat's interval, or the experts are of different kinds.

    Args:
        residency: where the experts' weights are: ``all`` on the device, ``current`` one of them
            there and the others in host memory, ``disk`` one there and the next being read.
    """
    read = {
        seat.path: read_as(store.local(seat.path), expert=seat.expert, interval=seat.interval)
        for seat in seats.values()
    }
    cards = [card for _, card in read.values()]
    if len({(c.noise, c.network, c.sigma_data) for c in cards}) > 1:
        raise ValueError(
            f"experts {', '.join(seats)} differ in noise distribution, network or sigma_data; "
            "an ensemble needs one of each"
        )

    def built(weights: Mapping[str, Tensor]) -> Denoiser:
        denoiser = Denoiser.of(cards[0].network, cards[0].sigma_data)
        denoiser.load_state_dict(weights)
        return denoiser.eval().requires_grad_(False).to(device)

    if residency == "all":
        once = {path: built(weights) for path, (weights, _) in read.items()}
        loaded = [Expert(name, s.interval, once[s.path]) for name, s in seats.items()]
        return Ensemble(loaded, cards[0].noise)
    load: dict[str, Load] = {}
    for name, seat in seats.items():
        place = store.local(seat.path)
        load[name] = (
            partial(lambda w: w, read[seat.path][0])
            if residency == "current"
            else partial(lambda p: read_as(p)[0], place)
        )
    slot = built(next(iter(read.values()))[0])
    intervals = {name: seat.interval for name, seat in seats.items()}
    return SwappedEnsemble(slot, intervals, load, cards[0].noise)


def load_stages(
    store: Store,
    stages: Sequence[Mapping[str, Any]],
    weights: Weights,
    residency: Residency = "all",
    device: torch.device | str = "cpu",
) -> list[CascadeStage]:
    """A node's stage settings become a cascade.

    Args:
        weights: ``stage/seat`` → the path of the weights in the store, and whose they are.
    """

    def at(seat: str) -> tuple[str, str]:
        return weights[seat]["path"], weights[seat]["expert"]

    return [
        CascadeStage(
            name=s["name"],
            denoiser=load_ensemble(
                store,
                {e: Seat(*at(f"{s['name']}/{e}"), Interval(*q)) for e, q in s["experts"].items()},
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
    """Stage → its pictures, uint8 [N, R, R, 3]. Picture i depends on (seed, i) alone.

    Args:
        seed: one for all; or one a picture, and then it depends on that alone.
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
    """A cascade with the encoders it was trained on."""

    stages: list[CascadeStage]
    t5: T5
    clip: CLIP
    device: torch.device
    more: Mapping[str, tuple[TextEncoder, Kind]] = field(default_factory=dict)
    """Further encoders of the prompt: embedding → encoder, and which embedding of it."""

    @staticmethod
    def load(manifest: str | Path, residency: Residency = "all") -> TextToImage:
        """Loads ``ensemble.json``, as the promote node wrote it; onto a GPU where there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        file = Path(manifest)
        if not file.is_file():
            raise ValueError(f"there is no ensemble at {manifest}; give the path of its {MANIFEST}")
        try:
            d = json.loads(file.read_text())
            store = Store.at(d["store"])
            stages = load_stages(store, d["stages"], d["weights"], residency, device)
            places = encoder_places(store, d["encoders_folder"], d["encoders"])
            trained_with = d.get("trained_with") or {}
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{manifest} is no ensemble manifest ({error!r})") from error
        t5, more = load_t5(places), load_more(places)
        clip = load_clip(places, trained_with=trained_with.get("clip", {}))
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
        """One picture a prompt, uint8 [N, R, R, 3]; unset options are the ensemble's own.

        Args:
            seed: one for all, which draw different pictures of equal prompts; or one a prompt,
                whose picture is then the same whatever else is asked for.
            guidance, steps, solver: of the base; super-resolution keeps its own.
            style: PIL pictures whose style all pictures take, in equal parts.
            paint: for each prompt its painted phrases, none for some.
            up_to: the stage whose pictures are wanted; the last by default.
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
    """Pictures in rows on white, each enlarged smoothly; a PIL picture."""
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
