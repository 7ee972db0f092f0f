"""Analysis of trained networks by noise level: shares of cross-attention, and what text changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning, Tokens
from ediffi_core.ensemble import Ensemble
from ediffi_core.precond import coefficients
from ediffi_core.unet.attention import CrossAttention, attention_mask
from ediffi_core.unet.config import UNetConfig
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


def token_names(config: UNetConfig, cond: Conditioning) -> list[str]:
    """What each of a network's tokens is: ``null`` for the learned one, or an embedding's name."""
    names = ["null"]
    for spec in config.embeddings:
        if spec.kind == "sequence":
            names += [spec.name] * cond.sequences[spec.name].shape[1]
        elif spec.attended:
            names.append(spec.name)
    return names


def attention_probabilities(module: CrossAttention, x: Tensor, tokens: Tokens) -> Tensor:
    """How a layer's pixels x [N, C, H, W] attend to tokens. → [N, heads, H W, T] float32"""
    q, (k, _) = module.queries(x), module.keys_values(tokens.values)
    scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5
    mask = attention_mask(q, k, tokens, x.shape[2:])
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=3)


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
        names = token_names(net.config, cond)
        now.update(names=names, sigma=float(torch.exp(4 * c_noise[0])))

    def watch(layer: str, module: CrossAttention, inputs: tuple[Tensor, Tokens]) -> None:
        x, tokens = inputs
        rows = tokens.mask[:, 1:].any(dim=1)
        if not rows.any():
            return
        mean = attention_probabilities(module, x, tokens)[rows].mean(dim=(0, 1, 2)).tolist()
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


@dataclass(frozen=True, eq=False)
class TextEffect:
    """What the text changes in the pictures that an ensemble denoises at one noise level."""

    expert: str
    """Expert that serves the noise level."""

    change: Tensor
    """``‖D(x; σ, c) − D(x; σ, ∅)‖ / ‖D(x; σ, c) − c_skip x‖`` of each picture. [N] float64"""

    error_with: Tensor
    """``‖D(x; σ, c) − x₀‖²``, mean over pixels. [N] float64"""

    error_without: Tensor
    """The same of ``D(x; σ, ∅)``. [N] float64"""

    attention: dict[str, float]
    """``null`` or embedding name → its share of cross-attention, mean over pictures with text and
    layers. Empty if there is no cross-attention or no text."""


@torch.no_grad()
def text_effect(
    ensemble: Ensemble, clean: Tensor, eps: Tensor, cond: Conditioning, sigma: float
) -> TextEffect:
    """Denoise pictures with their text and without it (eDiff-I section 4.1 and figure 3).

    The change is relative to what the network adds to the skipped input: ``c_out`` cancels, so it
    is ``‖F(c) − F(∅)‖ / ‖F(c)‖`` of the raw network, which has about the same magnitude at all
    noise levels. Relative to the picture itself the change would vanish as σ → 0 for any network,
    as ``c_out`` does.

    Args:
        ensemble: with U-Nets, all of them on the device.
        clean: pictures x₀ [N, C, H, W] in [-1, 1].
        eps: standard normal noise of the same shape; x = x₀ + σ ε.
        cond: the pictures' text.
        sigma: the noise level.
    """
    expert = ensemble.expert_at(sigma)
    net, level = expert.denoiser.net, torch.tensor(sigma, dtype=torch.float64)
    assert isinstance(net, UNet)
    noisy = clean + sigma * eps
    with attention_shares(net) as layers:
        with_text = ensemble(noisy, level, cond)
    without = ensemble(noisy, level, cond.null())
    skipped = coefficients(level, expert.denoiser.sigma_data).c_skip.to(noisy) * noisy
    change, scale = _norm(with_text - without), _norm(with_text - skipped)
    shares: dict[str, float] = defaultdict(float)
    for layer in layers:
        for name, share in layer.shares.items():
            shares[name] += share / len(layers)
    return TextEffect(
        expert=expert.name,
        change=torch.where(change == 0, 0.0, change / scale),
        error_with=(with_text - clean).double().square().mean(dim=(1, 2, 3)).cpu(),
        error_without=(without - clean).double().square().mean(dim=(1, 2, 3)).cpu(),
        attention=dict(shares),
    )


def _norm(x: Tensor) -> Tensor:
    """Norm of each row. [N, …] → [N] float64 on the CPU"""
    return x.double().flatten(1).norm(dim=1).cpu()
