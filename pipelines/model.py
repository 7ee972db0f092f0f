"""A trained ensemble as something that draws pictures: what ``ediffi sample`` and MLflow load."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.checkpoint import load_denoiser
from ediffi_core.conditioning import Conditioning
from ediffi_core.encoders import CLIP, T5, encode_prompts
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.guidance import guided
from ediffi_core.noise import Interval, NoiseDistribution, edm_grid
from ediffi_core.sampling import SOLVERS
from pipelines.store.artifacts import Store

MANIFEST = "ensemble.json"


def load_encoders(store: Store, folder: str | None, named: Mapping[str, str]) -> tuple[T5, CLIP]:
    """The encoders made by a node (its folder), or those named in the spec.

    ValueError if one cannot be loaded.
    """
    if folder:
        return T5(str(store.local(f"{folder}/t5"))), CLIP(str(store.local(f"{folder}/clip")))
    try:
        return T5(named["t5"]), CLIP(named["clip"], pretrained=named["clip_pretrained"])
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"encoders t5 {named['t5']!r} and clip {named['clip']!r} cannot be loaded "
            f"({' '.join(str(error).split())[:300]}); set `encoders.t5` and `encoders.clip` to "
            "names that can be downloaded, or to folders"
        ) from error


def load_ensemble(
    store: Store, experts: Mapping[str, tuple[str, Interval]]
) -> tuple[Ensemble, int]:
    """Name → (weights' path in the store, interval) becomes an ensemble and its resolution.

    ValueError if the intervals do not cover p(σ) once, or a checkpoint is damaged, is another
    expert's, or was trained on another interval.
    """
    loaded, resolutions, noises = [], set(), set()
    for name, (path, interval) in experts.items():
        denoiser, card = load_denoiser(store.local(path), expert=name, interval=interval)
        loaded.append(Expert(name, interval, denoiser))
        resolutions.add(card.network.resolution)
        noises.add(card.noise)
    if len(resolutions) > 1 or len(noises) > 1:
        raise ValueError(
            f"experts {', '.join(experts)} differ in resolution or noise distribution "
            f"({sorted(resolutions)}, {noises}); an ensemble needs one of each"
        )
    noise: NoiseDistribution = noises.pop()
    return Ensemble(loaded, noise), resolutions.pop()


@torch.inference_mode()
def draw(
    ensemble: torch.nn.Module,
    cond: Conditioning,
    *,
    resolution: int,
    guidance: float,
    steps: int,
    solver: str,
    seed: int,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Pictures for a conditioning, uint8 [N, R, R, 3]. Picture i depends on (seed, i) alone."""
    sigmas = edm_grid(steps)
    pictures = []
    for at in range(0, len(cond), batch):
        rows = cond[slice(at, at + batch)]
        index = torch.arange(at, at + len(rows))
        x = draws.normal(seed, "sample", index, (3, resolution, resolution)) * float(sigmas[0])
        x = SOLVERS[solver](guided(ensemble, rows, guidance), x, sigmas)
        pictures.append(((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1))
        if progress:
            progress(at + len(rows))
    return torch.cat(pictures)


@dataclass
class TextToImage:
    """An ensemble with the encoders it was trained on and its sampling defaults."""

    ensemble: Ensemble
    resolution: int
    t5: T5
    clip: CLIP
    sampling: Mapping[str, Any]

    @staticmethod
    def load(manifest: str | Path) -> TextToImage:
        """Loads ``ensemble.json``, as the promote node wrote it."""
        file = Path(manifest)
        if not file.is_file():
            raise ValueError(f"there is no ensemble at {manifest}; give the path of its {MANIFEST}")
        try:
            d = json.loads(file.read_text())
            store = Store.at(d["store"])
            experts = {
                name: (e["weights"], Interval(*e["interval"])) for name, e in d["experts"].items()
            }
            sampling, tiny, named = d["sampling"], d["encoders_folder"], d["encoders"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{manifest} is no ensemble manifest ({error!r})") from error
        ensemble, resolution = load_ensemble(store, experts)
        t5, clip = load_encoders(store, tiny, named)
        return TextToImage(ensemble, resolution, t5, clip, sampling)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        guidance: float | None = None,
        steps: int | None = None,
        solver: str | None = None,
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One picture a prompt, uint8 [N, R, R, 3]; unset options are the ensemble's own."""
        given = {"guidance": guidance, "steps": steps, "solver": solver}
        options = {**self.sampling, **{k: v for k, v in given.items() if v is not None}}
        if options["solver"] not in SOLVERS:
            raise ValueError(f"solver {solver!r} is unknown; there are {', '.join(SOLVERS)}")
        cond = encode_prompts(self.t5, self.clip, prompts)
        pictures = draw(self.ensemble, cond, resolution=self.resolution, seed=seed, **options)
        out: np.ndarray[Any, np.dtype[np.uint8]] = pictures.numpy()
        return out


def grid(
    pictures: np.ndarray[Any, np.dtype[np.uint8]], *, columns: int, scale: int, gap: int = 4
) -> Any:
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
