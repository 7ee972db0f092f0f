"""The complete training state as a flat dict of tensors, restored in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ediffi_core.ema import EMA, PowerEMA
from ediffi_core.muon import Muon
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet


class Optimizers:
    """AdamW, and Muon for some of the weights, as one; states are allocated from the start.

    So they can be restored before the first step.
    """

    def __init__(self, model: Denoiser, options: Mapping[str, Any]) -> None:
        """
        Args:
            options: the spec's ``training:`` settings. With ``muon``, it trains the matrices and
                kernels of the network's stages. Weight decay applies to all matrices and kernels,
                not to biases, norm scales or the null token.
        """
        rate, decay = options["learning_rate"], options["weight_decay"]
        hidden = []
        if options.get("optimizer") == "muon":
            hidden = [p for p in cast(UNet, model.net).stages.parameters() if p.ndim >= 2]
        has_muon = set(hidden)
        others = [p for p in model.parameters() if p not in has_muon]
        adamw = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim >= 2], "weight_decay": decay},
                {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=rate,
            betas=(0.9, 0.999),
            fused=True,
        )
        for parameter in others:
            adamw.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.parts: list[torch.optim.Optimizer] = [adamw]
        if hidden:
            self.parts.append(Muon(hidden, lr=rate, weight_decay=decay))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def slots(self, parameter: Tensor) -> dict[str, Tensor]:
        """Name → tensor of the state that belongs to a parameter."""
        found: dict[str, Tensor] = next(
            part.state[parameter] for part in self.parts if parameter in part.state
        )
        return found

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update all weights."""
        for part in self.parts:
            part.step()


class State:
    """Weights, EMAs and optimiser of one expert."""

    def __init__(self, model: Denoiser, options: Mapping[str, Any]) -> None:
        self.model = model
        self.optimizer = Optimizers(model, options)
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
            for slot, value in self.optimizer.slots(parameter).items():
                found[f"optimizer/{name}/{slot}"] = value
        return {name: value.detach() for name, value in found.items()}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their EMA; a second call undoes it."""
        for name, value in self.model.state_dict().items():
            kept = value.clone()
            value.copy_(self.ema.weights[name])
            self.ema.weights[name].copy_(kept)
