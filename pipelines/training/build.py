"""Builds what the training of one expert needs: data, network, optimiser, checkpoints, meters."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ediffi_core import draws
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.runs.context import Context
from pipelines.spec.training import FINAL_DRAWS, Training
from pipelines.store.dataset import Version, encoders_from_spec
from pipelines.store.order import Order
from pipelines.store.reader import Reader
from pipelines.training import samples
from pipelines.training.branch import Parent, WeightKind
from pipelines.training.checkpoints.state import State
from pipelines.training.checkpoints.writer import Checkpoints, ProcessGroup, Restored
from pipelines.training.meters import Meters, flops_per_image, matmul_flops_per_s
from pipelines.training.parallel import Communicator, no_sync, parallelize
from pipelines.training.step import Draws, Step, find_micro_batch
from pipelines.training.validation import Validation, prepare_batch, validation_batch

IMAGES_RUNNING = 8
"""Consecutive images of a batch that one lane of the order supplies: at least a GPU's share."""


class TrainingSetup:
    """Everything that training uses; every process of a node builds the same."""

    def __init__(self, ctx: Context, settings: Mapping[str, Any], inputs: Mapping[str, str]):
        self.ctx, self.settings = ctx, settings
        training = Training.from_settings(settings["training"])
        self.options, self.cadence = training.settings(), ctx.runtime
        self.workers: Mapping[str, Any] = ctx.runtime["workers"]
        torch.set_num_threads(ctx.cpus // self.workers["count"])
        device = torch.device("cuda" if self.workers["gpus"] else "cpu")
        self.comm = Communicator.join(device, self.workers["timeout_s"])
        self.seed, self.stream = settings["seed"], settings["stream"]
        self.interval = Interval(*settings["interval"])

        self.data = self._reader(inputs["data"])
        held_out = Reader(ctx.store, inputs["validation"], settings["resolution"])
        self.data.version.check_encoders(encoders_from_spec(ctx.runtime["encoders"]))
        held_out.version.check_encoders(self.data.version.header.encoders)
        self.validation = Validation(held_out, settings, self.comm)

        self.parent = None
        if "parent" in inputs:
            manifest = ctx.manifests["parent"]
            self.parent = Parent(ctx.store, inputs["parent"], manifest, self.interval)
        self._parent_losses: Tensor | None = None
        self.learning_rate = training.rate(self.start_images, settings["images"])

        self.network = UNetConfig.from_dict(
            {**settings["network"], "embeddings": [e.__dict__ for e in self.data.embeddings]}
        )
        self.model, wrapped = self._model()
        self.state = State(self.model, self.options)
        step_draws = Draws(settings, self.data.embeddings, device)
        self.step = Step(
            self.model, wrapped, self.state.optimizer, step_draws, self.comm, self.options
        )
        self.step.micro_batch = self._micro_batch()
        self.meters = Meters(
            self.comm,
            self.interval,
            NoiseDistribution(**settings["noise"]),
            bins=self.cadence["loss_bins"],
            leap=self.options["bad_loss"]["leap"],
        )
        self.checkpoints = Checkpoints(
            ctx.store,
            ctx.folder,
            fingerprint=ctx.fingerprint,
            group=ProcessGroup(
                rank=self.comm.rank, size=self.comm.size, gloo_group=self.comm.writers
            ),
            keep=self.cadence["keep"],
            log=self.log,
        )

    # -- data --------------------------------------------------------------------------------

    def _reader(self, folder: str) -> Reader:
        """The training data in this node's order, a function of the seed and the stream."""
        version = Version.open(self.ctx.store, folder)
        side, batch = self.settings["resolution"], self.options["batch"]
        run = math.gcd(batch, IMAGES_RUNNING)
        order = Order(
            version.usable(side),
            group_rows=version.header.packing.row_group_rows,
            seed=draws.stream_key(self.seed, self.stream) & 0x7FFFFFFF,
            lanes=batch // run,
            run=run,
        )
        return Reader(
            self.ctx.store, version, side, order=order, seed=self.seed, purpose=self.stream
        )

    def to_device(self, x: Tensor) -> Tensor:
        """Images [N, 3, R, R] on the device, in the memory format that the network computes in."""
        layout = torch.channels_last if self.workers["channels_last"] else torch.preserve_format
        return x.to(self.comm.device, non_blocking=True, memory_format=layout)

    # -- network -----------------------------------------------------------------------------

    def _model(self) -> tuple[Denoiser, nn.Module]:
        """The denoiser, and the same wrapped by DDP or FSDP: what training calls."""
        torch.manual_seed(self.seed)
        model = Denoiser.of(self.network, self.settings["sigma_data"])
        net = cast(UNet, model.net)
        if missing := [n for n in self.workers["recompute"] if n >= self.network.levels]:
            raise ValueError(
                f"`activation_checkpointing: [{missing[0]}]` names a level that a network of "
                f"{self.network.levels} levels lacks"
            )
        net.checkpointed = frozenset(self.workers["recompute"])
        if self.parent:  # with `start: continue`, the full state is restored afterwards
            which: WeightKind = "raw" if self.settings["start"] == "raw" else "ema"
            model.load_state_dict(self.parent.weights(which))
        model.to(self.comm.device)
        if self.workers["channels_last"]:
            model.to(memory_format=torch.channels_last)
        self.flops = self._flops(model)
        if self.workers["compile"]:
            for part in net.stages if self.workers["parallel"] != "ddp" else [net]:
                part.compile()
        here = int(self.comm.all_reduce_max(torch.tensor([float(local_world_size())])))
        return model, parallelize(model, self.comm, self.workers["parallel"], net.stages, here)

    def _flops(self, model: Denoiser) -> float:
        x, cond = validation_batch(self.validation.data, torch.zeros(1).long(), self.settings)
        cond = cond.to(self.comm.device)
        return flops_per_image(
            model, self.to_device(x), torch.ones(1, device=self.comm.device), cond
        )

    def _micro_batch(self) -> int | None:
        """Images per micro-batch: as the spec says, or with `auto` as many as fit the GPU."""
        wanted: int | str | None = self.workers["micro_batch"]
        if not isinstance(wanted, str):
            return wanted
        index = torch.arange(self.options["batch"])[self.comm.share(self.options["batch"])]
        x, cond = self.data.batch(index)
        x, cond = prepare_batch(
            (self.to_device(x), cond.to(self.comm.device)), index, self.settings, "probe"
        )

        def attempt(count: int) -> None:
            with no_sync(self.step.wrapped):
                self.step.loss(index[:count], x[:count], cond[slice(count)])[1].sum().backward()
            self.state.optimizer.zero_grad()

        found = find_micro_batch(attempt, len(index), self.comm.device)
        self.log(f"uses micro-batches of {found} images")
        return found

    @contextmanager
    def ema_weights(self) -> Iterator[Denoiser]:
        """The model with its EMA weights while the context is open."""
        self.state.swap()
        try:
            yield self.model
        finally:
            self.state.swap()

    # -- start and resumption -----------------------------------------------------------------

    @property
    def start_images(self) -> int:
        """Images seen when this node starts: the parent's if it continues the parent, else 0."""
        if self.settings["start"] != "continue":
            return 0
        assert self.parent is not None
        return int(self.parent.manifest["settings"]["images"])

    @property
    def final_state(self) -> str:
        """Folder of the state that training ends with."""
        return f"{self.ctx.folder}/state"

    def restore(self) -> Restored | None:
        """Restore this node's newest valid state in place; None if there is none.

        The final state comes first: a kill may have come between it and the node's manifest.
        """
        return self.checkpoints.restore(self.state.tensors(), final=self.final_state)

    def start_from_parent(self) -> int:
        """Restore the parent's final state, or its optimiser alone, if the spec says so.

        Returns:
            Images that this node counts as seen.
        """
        start, tensors = self.settings["start"], self.state.tensors()
        if start != "continue" and self.settings["optimizer"] != "carried":
            return 0
        assert self.parent is not None
        self._check_same_optimizer(self.parent)
        if start != "continue":
            tensors = {k: v for k, v in tensors.items() if k.startswith("optimizer/")}
        found = self.checkpoints.restore_from(
            self.parent.state, tensors, self.parent.manifest["fingerprint"]
        )
        return found.images if start == "continue" else 0

    def _check_same_optimizer(self, parent: Parent) -> None:
        """ValueError if the parent's optimiser has another state than this node's."""
        theirs = parent.manifest["settings"]["training"].get("optimizer", "adamw")
        if theirs != (ours := self.options.get("optimizer", "adamw")):
            raise ValueError(
                f"the parent was trained with `optimizer: {theirs}`, whose state `{ours}` cannot "
                f"carry on; train the parent with `{ours}`, too, or start with a fresh optimiser"
            )

    # -- measurements --------------------------------------------------------------------------

    def parent_losses(self, count: int) -> Tensor | None:
        """The parent's losses [count] on the first validation draws, cached; None for a root."""
        if self.parent is None:
            return None
        if self._parent_losses is None:
            parent = self.parent.denoiser().to(self.comm.device)
            self._parent_losses = self.validation.losses(parent, FINAL_DRAWS)[1]
        if count > FINAL_DRAWS:
            raise ValueError(f"`validate_draws:` may be {FINAL_DRAWS} at most, got {count}")
        return self._parent_losses[:count]

    def utilisation(self, images_per_s: float) -> dict[str, float]:
        """TFLOP/s of forward and backward, and their share (``mfu``) of a matrix product's."""
        flops = images_per_s * self.flops
        return {"tflops": flops / 1e12, "mfu": flops / (self._peak_flops * self.comm.size)}

    @property
    def _peak_flops(self) -> float:
        return matmul_flops_per_s(self.comm.device, self.options["precision"])

    def draw_samples(self, images: int) -> tuple[str, bytes]:
        """Draw a contact sheet of the EMA weights. A collective call.

        Returns:
            Its path relative to the node's folder, and its bytes, which are empty in all processes
            but the first.
        """
        index = torch.arange(samples.COUNT)
        x, cond = validation_batch(self.validation.data, index, self.settings)
        with self.ema_weights() as model:
            found, columns = samples.contact_sheet(
                model, self.to_device(x), cond.to(self.comm.device), self.settings
            )
        png = samples.to_png(found, columns) if self.comm.is_first else b""
        return f"samples/{images:012d}.png", png

    def write_samples(self, name: str, png: bytes) -> None:
        """Write a contact sheet and report it; for the first process."""
        path = f"{self.ctx.folder}/{name}"
        self.ctx.store.write(path, png)
        self.ctx.report(picture=path)

    def describe_batch(self, position: int) -> str:
        """The data set rows of a batch, for a message about a bad loss."""
        index = torch.arange(position, position + self.options["batch"])
        assert self.data.order is not None
        shards, rows = self.data.order(index)
        at = [f"{s}:{r}" for s, r in zip(shards.tolist(), rows.tolist(), strict=True)]
        text = f"its rows, as shard:row, are {', '.join(at[:64])}"
        if bad := self.data.batch(index)[1].non_finite_rows():
            named = ", ".join(f"{name} of {at[i]}" for i, name in bad[:8])
            text = f"not finite are {named}; {text}"
        return text

    def log(self, message: str) -> None:
        if self.comm.is_first:
            self.ctx.report(message=message)


def local_world_size() -> int:
    """Processes of this training on this machine; torchrun's ``LOCAL_WORLD_SIZE``."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1
