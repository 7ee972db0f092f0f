"""Puts together what trains one expert: data, network, optimiser, checkpoints, measures."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
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
from pipelines.training import samples as pictures
from pipelines.training.branch import Parent, Which
from pipelines.training.checkpoints.state import State
from pipelines.training.checkpoints.writer import Checkpoints, Peers, Restored
from pipelines.training.meters import Meters, flops_per_image, matrix_rate
from pipelines.training.parallel import World, split, without_sync
from pipelines.training.step import Draws, Step, largest_that_fits
from pipelines.training.validation import Validation, as_told, validation_pictures

IMAGES_RUNNING = 8
"""Neighbours of a batch that come from one lane of the order: at least a GPU's share of it."""


class Parts:
    """All that a training is made of; every process of a node builds the same."""

    def __init__(self, ctx: Context, settings: Mapping[str, Any], inputs: Mapping[str, str]):
        self.ctx, self.settings = ctx, settings
        training = Training.model_validate(settings["training"])
        self.options, self.cadence = training.model_dump(), ctx.runtime
        self.workers: Mapping[str, Any] = ctx.runtime["workers"]
        torch.set_num_threads(ctx.cpus // self.workers["count"])
        device = torch.device("cuda" if self.workers["gpus"] else "cpu")
        self.world = World.join(device, self.workers["timeout_s"])
        self.seed, self.stream = settings["seed"], settings["stream"]
        self.interval = Interval(*settings["interval"])

        self.data = self._reader(inputs["data"])
        held_out = Reader(ctx.store, inputs["validation"], settings["resolution"])
        self.data.version.check_encoders(encoders_from_spec(ctx.runtime["encoders"]))
        held_out.version.check_encoders(self.data.version.header.encoders)
        self.validation = Validation(held_out, settings, self.world)

        self.parent = None
        if "parent" in inputs:
            manifest = ctx.manifests["parent"]
            self.parent = Parent(ctx.store, inputs["parent"], manifest, self.interval)
        self._parents: Tensor | None = None
        self.rate = training.rate(self.begins_at, settings["images"])

        self.network = UNetConfig.from_dict(
            {**settings["network"], "embeddings": [e.__dict__ for e in self.data.embeddings]}
        )
        self.model, called = self._model()
        self.state = State(self.model, self.options)
        what = Draws(settings, self.data.embeddings, device)
        self.step = Step(self.model, called, self.state.optimizer, what, self.world, self.options)
        self.step.micro_batch = self._micro_batch()
        self.meters = Meters(
            self.world,
            self.interval,
            NoiseDistribution(**settings["noise"]),
            bins=self.cadence["loss_bins"],
            leap=self.options["bad_loss"]["leap"],
        )
        self.checkpoints = Checkpoints(
            ctx.store,
            ctx.folder,
            fingerprint=ctx.fingerprint,
            peers=Peers(rank=self.world.rank, size=self.world.size, group=self.world.writers),
            keep=self.cadence["keep"],
            say=self.say,
        )

    # -- the data ----------------------------------------------------------------------------

    def _reader(self, folder: str) -> Reader:
        """Of the training data, in this node's order: a function of the seed and the stream."""
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

    def put(self, x: Tensor) -> Tensor:
        """Pictures as the network computes on them."""
        layout = torch.channels_last if self.workers["channels_last"] else torch.preserve_format
        return x.to(self.world.device, non_blocking=True, memory_format=layout)

    # -- the network -------------------------------------------------------------------------

    def _model(self) -> tuple[Denoiser, nn.Module]:
        """The denoiser, and what is called in training: the same, with other processes' part."""
        torch.manual_seed(self.seed)
        model = Denoiser.of(self.network, self.settings["sigma_data"])
        net = cast(UNet, model.net)
        if wrong := [n for n in self.workers["recompute"] if n >= self.network.levels]:
            raise ValueError(
                f"`recompute: [{wrong[0]}]` names a level that a network of "
                f"{self.network.levels} levels lacks"
            )
        net.checkpointed = frozenset(self.workers["recompute"])
        if self.parent:  # one that continues takes all of the parent's state afterwards
            which: Which = "raw" if self.settings["start"] == "raw" else "ema"
            model.load_state_dict(self.parent.weights(which))
        model.to(self.world.device)
        if self.workers["channels_last"]:
            model.to(memory_format=torch.channels_last)
        self.flops = self._flops(model)
        if self.workers["compile"]:
            for part in net.stages if self.workers["parallel"] != "ddp" else [net]:
                part.compile()
        here = int(self.world.largest(torch.tensor([float(local_world_size())])))
        return model, split(model, self.world, self.workers["parallel"], net.stages, here)

    def _flops(self, model: Denoiser) -> float:
        x, cond = validation_pictures(self.validation.data, torch.zeros(1).long(), self.settings)
        cond = cond.to(self.world.device)
        return flops_per_image(model, self.put(x), torch.ones(1, device=self.world.device), cond)

    def _micro_batch(self) -> int | None:
        """As many images at once as the spec says, or as fit."""
        asked: int | str | None = self.workers["micro_batch"]
        if not isinstance(asked, str):
            return asked
        index = torch.arange(self.options["batch"])[self.world.share(self.options["batch"])]
        x, cond = self.data.batch(index)
        x, cond = as_told((self.put(x), cond.to(self.world.device)), index, self.settings, "probe")

        def attempt(count: int) -> None:
            with without_sync(self.step.called):
                self.step.loss(index[:count], x[:count], cond[slice(count)])[1].sum().backward()
            self.state.optimizer.zero_grad(set_to_none=True)

        found = largest_that_fits(attempt, len(index), self.world.device)
        self.say(f"computes on {found} images at once")
        return found

    @contextmanager
    def averaged(self) -> Iterator[Denoiser]:
        """The model with its average for weights."""
        self.state.swap()
        try:
            yield self.model
        finally:
            self.state.swap()

    # -- where it starts ----------------------------------------------------------------------

    @property
    def begins_at(self) -> int:
        """The clock before this node's own first image: that of what it continues."""
        if self.settings["start"] != "continue":
            return 0
        assert self.parent is not None
        return int(self.parent.manifest["settings"]["images"])

    @property
    def ended(self) -> str:
        """The folder of the state that training ends with."""
        return f"{self.ctx.folder}/state"

    def restored(self) -> Restored | None:
        """This node's newest sound state, in place; the last first, if a kill came after it."""
        return self.checkpoints.restore(self.state.tensors(), ended=self.ended)

    def begin(self) -> int:
        """Takes what the parent's training ended with, if the spec says so; → images seen."""
        start, tensors = self.settings["start"], self.state.tensors()
        if start != "continue" and self.settings["optimizer"] != "carried":
            return 0
        assert self.parent is not None
        if start != "continue":
            tensors = {k: v for k, v in tensors.items() if k.startswith("optimizer/")}
        found = self.checkpoints.restore_from(
            self.parent.state, tensors, self.parent.manifest["fingerprint"]
        )
        return found.images if start == "continue" else 0

    # -- what is measured ----------------------------------------------------------------------

    def parents_losses(self, count: int) -> Tensor | None:
        """Of the first draws of validation; computed once, for parent and draws stay the same."""
        if self.parent is None:
            return None
        if self._parents is None:
            parent = self.parent.denoiser().to(self.world.device)
            self._parents = self.validation.losses(parent, FINAL_DRAWS)[1]
        if count > FINAL_DRAWS:
            raise ValueError(f"`validate_draws:` may be {FINAL_DRAWS} at most, got {count}")
        return self._parents[:count]

    def utilisation(self, images_per_s: float) -> dict[str, float]:
        """FLOP/s of forward and backward, and their share of what a matrix product gets here."""
        flops = images_per_s * self.flops
        return {"tflops": flops / 1e12, "mfu": flops / (self._rate * self.world.size)}

    @cached_property
    def _rate(self) -> float:
        return matrix_rate(self.world.device, self.options["precision"])

    def draw(self, images: int) -> str:
        """Writes a sheet of what the averaged weights make of fixed pictures; → its file's name."""
        index = torch.arange(pictures.COUNT)
        x, cond = validation_pictures(self.validation.data, index, self.settings)
        with self.averaged() as model:
            found, columns = pictures.sheet(
                model, self.put(x), cond.to(self.world.device), self.settings
            )
        name = f"samples/{images:012d}.png"
        if self.world.is_first:
            self.ctx.store.write(f"{self.ctx.folder}/{name}", pictures.png(found, columns))
            self.ctx.report(picture=f"{self.ctx.folder}/{name}")
        return name

    def rows_of(self, place: int) -> str:
        """Which rows of the data set a batch is made of, for whoever looks into it."""
        index = torch.arange(place, place + self.options["batch"])
        assert self.data.order is not None
        shards, rows = self.data.order(index)
        at = [f"{s}:{r}" for s, r in zip(shards.tolist(), rows.tolist(), strict=True)]
        said = f"its rows, as shard:row, are {', '.join(at[:64])}"
        if bad := self.data.batch(index)[1].not_finite():
            named = ", ".join(f"{name} of {at[i]}" for i, name in bad[:8])
            said = f"not finite are {named}; {said}"
        return said

    def say(self, message: str) -> None:
        if self.world.is_first:
            self.ctx.report(message=message)


def local_world_size() -> int:
    """Processes of this training on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1
