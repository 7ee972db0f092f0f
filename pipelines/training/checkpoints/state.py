"""The complete training state as a flat dict of tensors, restored in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ediffi_core.ema import EMA, PowerEMA
from ediffi_core.precond import Denoiser


def adamw(model: Denoiser, options: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW with its moments allocated, so that they can be restored before the first step.

    Weight decay applies to matrices and convolution kernels, not to biases, norm scales or the null
    token.
    """
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": options["weight_decay"]},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=options["learning_rate"],
        betas=(0.9, 0.999),
        fused=True,
    )
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


class State:
    """Weights, EMAs and optimiser of one expert."""

    def __init__(self, model: Denoiser, options: Mapping[str, Any]) -> None:
        self.model = model
        self.optimizer = adamw(model, options)
        self.ema = EMA(model, options["ema_halflife_images"])
        self.powers: PowerEMA | None = None
        if options["snapshot_images"]:
            self.powers = PowerEMA(model, options["snapshot_lengths"])

    def advance(self, images: int, batch: int) -> None:
        """Update the EMAs after a step of ``batch`` images, with ``images`` seen in all."""
        self.ema.update(self.model, images, batch)
        if self.powers:
            self.powers.update(self.model, images, batch)

    def tensors(self) -> dict[str, Tensor]:
        """Name → tensor, sharing memory with the state, to be saved or restored in place."""
        found = {f"raw/{k}": v for k, v in self.model.state_dict().items()}
        found |= {f"ema/{k}": v for k, v in self.ema.weights.items()}
        if self.powers:
            for length, average in self.powers.weights.items():
                found |= {f"power/{length:g}/{k}": v for k, v in average.items()}
        for name, parameter in self.model.named_parameters():
            for slot, value in self.optimizer.state[parameter].items():
                found[f"optimizer/{name}/{slot}"] = value
        return {name: value.detach() for name, value in found.items()}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their EMA; a second call undoes it."""
        for name, value in self.model.state_dict().items():
            kept = value.clone()
            value.copy_(self.ema.weights[name])
            self.ema.weights[name].copy_(kept)
