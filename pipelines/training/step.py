"""One step of the optimiser, on this process's share of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning, draw_keep
from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser, denoising_loss
from pipelines.training.parallel import World, whole, without_sync


class Outcome(NamedTuple):
    """Of one step: this process's σ and losses, and the gradient's norm over all."""

    sigma: Tensor  # [n] float64
    loss: Tensor  # [n]
    grad_norm: Tensor  # []


class Draws:
    """Noise and dropout: functions of (seed, stream, place of the image in the stream).

    Places are on the CPU. What is drawn there is copied to the device without waiting for it.
    """

    def __init__(
        self, settings: Mapping[str, Any], embeddings: tuple[EmbeddingSpec, ...], device: Any
    ) -> None:
        self.seed, self.stream, self.device = settings["seed"], settings["stream"], device
        self.interval = Interval(*settings["interval"])
        self.noise = NoiseDistribution(**settings["noise"])
        self.embeddings = embeddings
        drop = settings["training"]["dropout"]
        self.all = drop["all"]
        self.drop = {
            group: drop.get(group, drop["others"]) for group in {e.group for e in embeddings}
        }

    def sigma(self, index: Tensor) -> Tensor:
        u = draws.stratified(self.seed, f"{self.stream}/sigma", index)
        return self.interval.draw(u, self.noise).to(self.device, non_blocking=True)

    def eps(self, index: Tensor, shape: torch.Size) -> Tensor:
        there = index.to(self.device, non_blocking=True)
        return draws.normal(self.seed, f"{self.stream}/eps", there, tuple(shape))

    def kept(self, index: Tensor, cond: Conditioning) -> Conditioning:
        keep = draw_keep(
            self.seed, index, self.drop, all_p=self.all, purpose=f"{self.stream}/dropout"
        )
        there = {k: v.to(self.device, non_blocking=True) for k, v in keep.items()}
        return cond.keep(there, self.embeddings)


class Step:
    """Forward, backward, clip, optimiser; in as many micro-batches as are asked for."""

    def __init__(
        self,
        model: Denoiser,
        called: nn.Module,
        optimizer: torch.optim.Optimizer,
        draws: Draws,
        world: World,
        options: Mapping[str, Any],
        micro_batch: int | None = None,
    ) -> None:
        """
        Args:
            called: the model as training calls it, with what adds gradients up around it.
            options: the spec's ``training:``.
            micro_batch: images at once; None: the whole share.
        """
        self.model, self.called, self.optimizer = model, called, optimizer
        self.draws, self.world, self.options = draws, world, options
        self.micro_batch = micro_batch

    def __call__(
        self, index: Tensor, x: Tensor, cond: Conditioning, learning_rate: float
    ) -> Outcome:
        """One step on the images at these places, this process's share of the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = list(self.parts(len(index)))
        # Each process adds up its own; the average over processes is then that over the batch.
        scale = self.world.size / self.options["batch"]
        sigmas, losses = [], []
        for part in parts:
            with nullcontext() if part is parts[-1] else without_sync(self.called):
                sigma, loss = self.loss(index[part], x[part], cond[part])
                (loss.sum() * scale).backward()
            sigmas.append(sigma)
            losses.append(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options["clip_norm"])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return Outcome(torch.cat(sigmas), torch.cat(losses), whole(norm))

    def parts(self, count: int) -> Iterator[slice]:
        size = self.micro_batch or count
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def loss(self, index: Tensor, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """σ and the loss of each image. [n], [n]"""
        sigma = self.draws.sigma(index)
        eps = self.draws.eps(index, x.shape[1:])
        cond = self.draws.kept(index, cond)
        with computing_in(self.options["precision"], x.device):
            loss = denoising_loss(self.called, self.model.sigma_data, x, sigma, eps, cond)
        return sigma, loss


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The network's arithmetic; what it is given and gives back stays float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def largest_that_fits(attempt: Callable[[int], None], share: int, device: torch.device) -> int:
    """The largest micro-batch, a power of two or all, whose step fits the GPU's memory.

    Args:
        attempt: does forward and backward on so many images.
    """
    if device.type != "cuda":
        return share  # memory of the machine, not of a card: nothing to find out
    size = share
    while True:
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        torch.cuda.empty_cache()
        size = 1 << ((size - 1).bit_length() - 1)
