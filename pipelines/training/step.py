"""One optimiser step on this process's share of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning, draw_keep
from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.loss_weight import LossFactor
from ediffi_core.noise import Interval, Mixture, NoiseDistribution
from ediffi_core.precond import Denoiser, denoising_loss
from ediffi_core.sharding import full_tensor
from pipelines.training.checkpoints.state import Optimizers
from pipelines.training.parallel import Communicator, no_sync


class Outcome(NamedTuple):
    """Result of a step: σ and losses of this process's images, gradient norm over all processes."""

    sigma: Tensor  # [n] float64
    loss: Tensor  # [n], EDM's, whatever weight is trained with
    grad_norm: Tensor  # []


class Draws:
    """Random σ, ε and dropout, as functions of (seed, stream, index of the image in the stream).

    Indices are on the CPU. Values drawn there are copied to the device without blocking.
    """

    def __init__(
        self, settings: Mapping[str, Any], embeddings: tuple[EmbeddingSpec, ...], device: Any
    ) -> None:
        self.seed, self.stream, self.device = settings["seed"], settings["stream"], device
        self.density: Interval | Mixture = Interval(*settings["interval"])
        if "density" in settings:
            self.density = Mixture.of(settings["density"])
        self.noise = NoiseDistribution(**settings["noise"])
        self.embeddings = embeddings
        drop = settings["training"]["dropout"]
        self.all = drop["all"]
        self.drop = {
            group: drop.get(group, drop["others"]) for group in {e.group for e in embeddings}
        }

    def sigma(self, index: Tensor) -> Tensor:
        """σ of the node's density, stratified over consecutive indices. [N] → [N] float64

        The density is p(σ | interval), unless the setting ``density`` gives another.
        """
        u = draws.stratified(self.seed, f"{self.stream}/sigma", index)
        return self.density.draw(u, self.noise).to(self.device, non_blocking=True)

    def eps(self, index: Tensor, shape: torch.Size) -> Tensor:
        """Standard normal noise. [N] → [N, *shape] float32"""
        there = index.to(self.device, non_blocking=True)
        return draws.normal(self.seed, f"{self.stream}/eps", there, tuple(shape))

    def dropout(self, index: Tensor, cond: Conditioning) -> Conditioning:
        """The conditioning after embedding dropout."""
        keep = draw_keep(
            self.seed, index, self.drop, all_p=self.all, purpose=f"{self.stream}/dropout"
        )
        there = {k: v.to(self.device, non_blocking=True) for k, v in keep.items()}
        return cond.keep(there, self.embeddings)


class Step:
    """Forward, backward, gradient clipping and optimiser, over one or more micro-batches."""

    def __init__(
        self,
        model: Denoiser,
        wrapped: nn.Module,
        optimizer: Optimizers | torch.optim.Optimizer,
        draws: Draws,
        comm: Communicator,
        options: Mapping[str, Any],
        micro_batch: int | None = None,
    ) -> None:
        """
        Args:
            wrapped: the model inside DDP or FSDP, as training calls it.
            options: the spec's ``training:`` settings.
            micro_batch: images per forward pass; None for the whole share at once.
        """
        self.model, self.wrapped, self.optimizer = model, wrapped, optimizer
        self.draws, self.comm, self.options = draws, comm, options
        self.micro_batch = micro_batch
        self.factor: LossFactor | None = None
        if (name := options.get("loss_weight", "edm")) != "edm":
            self.factor = LossFactor.of(name, draws.noise, model.sigma_data)

    def __call__(
        self, index: Tensor, x: Tensor, cond: Conditioning, learning_rate: float
    ) -> Outcome:
        """Take one step on this process's share of the batch.

        Args:
            index: [n] indices of the images in the stream, on the CPU.
            x: [n, 3, R, R] in [-1, 1], on the device.
        """
        self.optimizer.zero_grad()
        slices = list(self.micro_batches(len(index)))
        # DDP averages gradients over processes; this scale makes that the average over the batch.
        scale = self.comm.size / self.options["batch"]
        sigmas, losses = [], []
        for rows in slices:
            with nullcontext() if rows is slices[-1] else no_sync(self.wrapped):
                sigma, loss = self.loss(index[rows], x[rows], cond[rows])
                weighted = loss if self.factor is None else loss * self.factor(sigma).to(loss)
                (weighted.sum() * scale).backward()
            sigmas.append(sigma)
            losses.append(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options["clip_norm"])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return Outcome(torch.cat(sigmas), torch.cat(losses), full_tensor(norm))

    def micro_batches(self, count: int) -> Iterator[slice]:
        """Slices of ``count`` images, each of ``micro_batch`` images at most."""
        size = self.micro_batch or count
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def loss(self, index: Tensor, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """σ [n] and loss [n] of each image, with EDM's weight λ(σ)."""
        sigma = self.draws.sigma(index)
        eps = self.draws.eps(index, x.shape[1:])
        cond = self.draws.dropout(index, cond)
        with autocast(self.options["precision"], x.device):
            loss = denoising_loss(self.wrapped, self.model.sigma_data, x, sigma, eps, cond)
        return sigma, loss


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context in which the network computes in bfloat16, or none; its inputs stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def find_micro_batch(attempt: Callable[[int], None], share: int, device: torch.device) -> int:
    """The largest micro-batch that fits the GPU's memory: the whole share or a power of two.

    Args:
        attempt: runs forward and backward on the given number of images.
        share: images of this process in a batch.
    """
    if device.type != "cuda":
        return share  # running out of host memory kills the process, so there is nothing to try
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
