"""Where the pixels of a drawing attend to which token, by stage and range of noise levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ediffi_core.analysis import attention_probabilities, token_names
from ediffi_core.conditioning import Conditioning, Tokens
from ediffi_core.ensemble import Ensemble
from ediffi_core.sampling import Denoise
from ediffi_core.unet.attention import CrossAttention
from ediffi_core.unet.net import UNet

PARTS = 3
"""Ranges of a stage with one expert, of equal numbers of steps."""


@dataclass(eq=False)
class AttentionRange:
    """Cross-attention of one expert, summed over its evaluations of a range of noise levels.

    Only evaluations with the rows' own prompts count: neither guidance's other half nor a second
    prompt.
    """

    stage: str
    expert: str
    """Empty if the stage has a single denoiser without a name."""

    names: list[str]
    """Of the tokens: ``null`` or the embedding, as of :func:`ediffi_core.analysis.token_names`."""

    total: Tensor
    """Probabilities, mean over heads and layers, each resized to the side of the largest layer.
    [N, T, side, side] float32 on the CPU"""

    counts: Tensor
    """Evaluations of each row; fewer for rows that left. [N] int64"""

    sigmas: set[float] = field(default_factory=set)
    """Noise levels that were evaluated."""

    @property
    def sigma(self) -> tuple[float, float]:
        """Highest and lowest noise level."""
        return max(self.sigmas), min(self.sigmas)

    def of(self, row: int) -> dict[str, Tensor]:
        """Embedding → maps of its tokens for a row, mean over evaluations. → [L, side, side]"""
        mean = self.total[row] / self.counts[row].clamp(min=1)
        return {
            name: mean[[i for i, n in enumerate(self.names) if n == name]]
            for name in dict.fromkeys(self.names)
        }


class AttentionRecorder:
    """Collects an :class:`AttentionRange` of each expert that a drawing evaluates.

    A stage with one expert has :data:`PARTS` ranges instead. Networks without cross-attention, and
    stages in tiles, have none.
    """

    def __init__(self) -> None:
        self.ranges: dict[tuple[str, str | int], AttentionRange] = {}
        """From high σ to low, one stage after another."""

    def following(
        self,
        denoise: Denoise,
        *,
        stage: str,
        denoiser: Any,
        sigmas: Tensor,
        rows: Sequence[int],
        count: int,
    ) -> Denoise:
        """``denoise``, recorded.

        Args:
            denoiser: of the stage: an ensemble or a single denoiser of a U-Net, which ``denoise``
                calls.
            sigmas: the stage's grid.
            rows: numbers of the rows that ``denoise`` is given, the first ones of the network's.
            count: rows of the whole drawing.
        """

        def recorded(x: Tensor, sigma: Tensor) -> Tensor:
            level = float(sigma)
            expert = denoiser.expert_at(level) if isinstance(denoiser, Ensemble) else None
            net = (expert.denoiser if expert else denoiser).net
            with _layers(net) as (names, layers):
                out = denoise(x, sigma)
            if layers:
                key = expert.name if expert and len(denoiser.experts) > 1 else _part(level, sigmas)
                side = max(layer.shape[-1] for layer in layers)
                maps = [
                    F.interpolate(m[: len(rows)], size=(side, side), mode="bilinear").cpu()
                    for m in layers
                ]
                held = self.ranges.setdefault(
                    (stage, key),
                    AttentionRange(
                        stage,
                        expert.name if expert else "",
                        list(names),
                        torch.zeros(count, *maps[0].shape[1:]),
                        torch.zeros(count, dtype=torch.int64),
                    ),
                )
                held.total[list(rows)] += torch.stack(maps).mean(dim=0)
                held.counts[list(rows)] += 1
                held.sigmas.add(level)
            return out

        return recorded


def _part(sigma: float, sigmas: Tensor) -> int:
    """Which of the equal parts of a grid's steps a noise level belongs to."""
    steps = len(sigmas) - 1
    return sum(sigma <= float(sigmas[round(steps * i / PARTS)]) for i in range(1, PARTS))


@contextmanager
def _layers(net: nn.Module) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Names of the tokens, and each cross-attention layer's maps [N, T, side, side] float32, of the
    network's next evaluation."""
    names: list[str] = []
    layers: list[Tensor] = []

    def before(net: UNet, inputs: tuple[Tensor, Tensor, Conditioning]) -> None:
        names[:] = token_names(net.config, inputs[2])

    def watch(module: CrossAttention, inputs: tuple[Tensor, Tokens]) -> None:
        x, tokens = inputs
        mean = attention_probabilities(module, x, tokens).mean(dim=1)  # [N, H W, T]
        layers.append(mean.transpose(1, 2).unflatten(2, x.shape[2:]))

    hooks: list[tuple[nn.Module, Callable[..., None]]] = [(net, before)]
    hooks += [(m, watch) for m in net.modules() if isinstance(m, CrossAttention)]
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks]
    try:
        yield names, layers
    finally:
        for handle in handles:
            handle.remove()
