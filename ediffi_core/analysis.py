"""Analysis of a trained network: shares of its cross-attention, by layer and σ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning, Tokens
from ediffi_core.unet.attention import CrossAttention, attention_mask
from ediffi_core.unet.net import UNet


@dataclass(frozen=True)
class AttentionShare:
    """How one layer divided its attention in one evaluation: mean over heads and pixels."""

    layer: str
    side: int
    """Side of the layer's feature map in pixels."""

    sigma: float
    shares: dict[str, float]
    """``null`` or embedding name → its share; they add up to 1."""


@contextmanager
def attention_shares(net: UNet) -> Iterator[list[AttentionShare]]:
    """Collect an :class:`AttentionShare` from every cross-attention evaluated in the context.

    It uses hooks, so the network runs at full speed otherwise. Images without any text (the
    unconditional half of guidance) are left out. All images of an evaluation must share one σ.
    """
    found: list[AttentionShare] = []
    now: dict[str, Any] = {}

    def before(_: Any, inputs: tuple[Tensor, Tensor, Conditioning]) -> None:
        _, c_noise, cond = inputs
        names = ["null"]
        for spec in net.config.embeddings:
            if spec.kind == "sequence":
                names += [spec.name] * cond.sequences[spec.name].shape[1]
            elif spec.attended:
                names.append(spec.name)
        now.update(names=names, sigma=float(torch.exp(4 * c_noise[0])))

    def watch(layer: str, module: CrossAttention, inputs: tuple[Tensor, Tokens]) -> None:
        x, tokens = inputs
        rows = tokens.mask[:, 1:].any(dim=1)
        if not rows.any():
            return
        q, (k, _) = module.queries(x), module.keys_values(tokens.values)
        scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5
        mask = attention_mask(q, k, tokens, x.shape[2:])
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
        mean = scores.softmax(dim=3)[rows].mean(dim=(0, 1, 2)).tolist()
        shares: dict[str, float] = {}
        for name, value in zip(now["names"], mean, strict=True):
            shares[name] = shares.get(name, 0.0) + value
        found.append(AttentionShare(layer, x.shape[2], now["sigma"], shares))

    handles = [net.register_forward_pre_hook(before)]
    for name, module in net.named_modules():
        if isinstance(module, CrossAttention):
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, inputs, name=name: watch(name, m, inputs)
                )
            )
    try:
        with torch.no_grad():
            yield found
    finally:
        for handle in handles:
            handle.remove()
