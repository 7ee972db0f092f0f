"""What the scorers' classifiers of pictures have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.metrics import Pictures, Progress

SIDE = 64
"""Side of the networks' input in pixels."""


def trunk(width: int) -> nn.Sequential:
    """The convolutions of a classifier: [N, 3, 64, 64] in [-1, 1] → [N, 4 · width, 4, 4]."""

    def layer(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
        )

    w = width
    return nn.Sequential(
        nn.Conv2d(3, w, 4, 4),
        nn.BatchNorm2d(w),
        nn.ReLU(),
        layer(w, w, 1),
        layer(w, 2 * w, 2),
        layer(2 * w, 2 * w, 1),
        layer(2 * w, 4 * w, 2),
        layer(4 * w, 4 * w, 1),
    )


def train(
    network: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    batch: int,
    progress: Progress,
) -> None:
    """Train a classifier with AdamW and one cycle of the learning rate.

    Args:
        network: trained in place; in evaluation mode afterwards.
        loss_of: step → the loss of its batch.
        batch: images in a batch, for ``progress``.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    network.train()
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49 or step + 1 == steps:
            progress((step + 1) * batch, steps * batch)
    network.eval()


def as_input(pictures: Pictures) -> Tensor:
    """uint8 [N, R, R, 3] → [N, 3, R, R] in [-1, 1]"""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pictures(x: Tensor) -> Pictures:
    """The inverse of :func:`as_input`."""
    out: Pictures = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return out


def upsampled(x: Tensor) -> Tensor:
    """Upsample bilinearly to the network's 64 pixels."""
    if x.shape[2] == SIDE:
        return x
    return F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def coarse_and_grainy(x: Tensor, side: int, of: int, random: torch.Generator) -> Tensor:
    """Training pictures as a metric sees them: reduced, upsampled, and each with noise.

    Args:
        x: [N, 3, of, of] in [-1, 1].
        side: side in pixels to reduce them to; divides ``of``.
    """
    x = upsampled(F.avg_pool2d(x, of // side))
    grain = 0.1 * torch.rand(len(x), 1, 1, 1, generator=random)
    return x + grain * torch.randn(x.shape, generator=random)
