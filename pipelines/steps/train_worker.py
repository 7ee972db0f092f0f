"""The training loop of one expert, inside a Ray Train worker.

The clock is images seen. Order, σ, ε and dropout are functions of (seed, stream, image), so a
worker that resumes from a checkpoint goes on exactly as one that was never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.checkpoint import Card, read, to_bytes
from ediffi_core.conditioning import Conditioning, draw_keep
from ediffi_core.degrade import Degradation, small_and_large
from ediffi_core.ema import EMA
from ediffi_core.metrics import by_noise_level, paired_gain, validation_losses
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser, denoising_loss
from ediffi_core.unet import UNet, UNetConfig
from pipelines.steps import train_state
from pipelines.steps.context import Context
from pipelines.store.dataset import Version
from pipelines.store.order import Order
from pipelines.store.reader import Reader

FINAL_DRAWS = 512
VALIDATION_BATCH = 64
BATCHES_AHEAD = 2
IMAGES_RUNNING = 8
"""Neighbours of a batch that come from one lane of the order: at least a GPU's share of it."""


def run(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train calls; a user's mistake comes back as words, anything else is raised."""
    try:
        return Trainer(config["ctx"], config["settings"], config["inputs"]).train()
    except ValueError as error:
        return {"error": str(error)}


def as_told(
    read: tuple[Tensor, Conditioning], index: Tensor, settings: Mapping[str, Any], purpose: str
) -> tuple[Tensor, Conditioning]:
    """What a stage's network learns to draw, and what it is told; super-resolution its part.

    Args:
        read: pictures of the stage's resolution, and their conditioning.
        index: [N] places of the images in the stream, which crops and corruptions depend on.
    """
    x, cond = read
    if how := settings.get("super_resolution"):
        x, small = small_and_large(
            x,
            index,
            factor=how["factor"],
            crop=how["crop"],
            settings=Degradation(**how["degrade"]),
            seed=settings["seed"],
            purpose=purpose,
        )
        cond = replace(cond, low_res=small)
    return x, cond


def validation_pictures(
    data: Reader, index: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor, Conditioning]:
    """The same for every model that is asked; apart from training's draws."""
    return as_told(data.rows(index % len(data)), index, settings, "validation")


class Trainer:
    def __init__(self, ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        torch.set_num_threads(ctx.cpus)
        self.ctx, self.settings = ctx, settings
        self.options = settings["training"]
        self.total: int = settings["images"]
        self.interval = Interval(*settings["interval"])
        self.noise = NoiseDistribution(**settings["noise"])
        self.seed, self.stream = settings["seed"], settings["stream"]

        self.data = self.reader(inputs["data"])
        self.validation = Reader(ctx.store, inputs["validation"], settings["resolution"])

        self.network = UNetConfig.from_dict(
            {**settings["network"], "embeddings": [e.__dict__ for e in self.data.embeddings]}
        )
        torch.manual_seed(self.seed)
        self.model = Denoiser(UNet(self.network), settings["sigma_data"])
        self.parent = self.parent_denoiser(inputs["parent"]) if "parent" in inputs else None
        if self.parent and settings["start"] in ("ema", "raw"):
            weights, _ = read(self.parent_file(inputs["parent"], settings["start"]))
            self.model.load_state_dict(weights)
        self.ema = EMA(self.model, self.options["ema_halflife_images"])
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.options["learning_rate"],
            weight_decay=self.options["weight_decay"],
            betas=(0.9, 0.999),
            fused=True,
        )
        self.images, self.history = self.resume(inputs)

    def reader(self, folder: str) -> Reader:
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

    # -- where it starts ---------------------------------------------------------------------

    def parent_file(self, folder: str, which: str) -> str:
        return str(self.ctx.store.local(f"{folder}/{which}.safetensors"))

    def parent_denoiser(self, folder: str) -> Denoiser:
        weights, card = read(self.parent_file(folder, "ema"))
        if card.interval.q_lo > self.interval.q_lo or card.interval.q_hi < self.interval.q_hi:
            raise ValueError(
                f"parent {card.expert} was trained on quantiles [{card.interval.q_lo:g}, "
                f"{card.interval.q_hi:g}), which do not hold this expert's "
                f"[{self.interval.q_lo:g}, {self.interval.q_hi:g}); branch from one that does"
            )
        parent = Denoiser(UNet(card.network), card.sigma_data)
        parent.load_state_dict(weights)
        return parent.requires_grad_(False)

    def resume(self, inputs: dict[str, str]) -> tuple[int, list[dict[str, Any]]]:
        """Takes up the newest sound checkpoint of this node, or the parent's state, or nothing."""
        store, parts = self.ctx.store, (self.model, self.ema, self.optimizer)
        end = f"{self.ctx.folder}/state.safetensors"  # a kill came before the node was committed
        ended = [end] if store.size(end) is not None else []
        for path in ended + train_state.newest_first(store, self.ctx.folder):
            try:
                found = train_state.load(store, path, *parts)
            except ValueError as error:
                self.ctx.report(message=f"checkpoint {path} is not used: {error}")
                continue
            self.ctx.report(message=f"continues at {found[0]:,} images")
            return found
        if self.settings["start"] == "continue":
            images, _ = train_state.load(store, f"{inputs['parent']}/state.safetensors", *parts)
            return images, []
        return 0, []

    # -- the loop ----------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        batch, cadence = self.options["batch"], self.ctx.runtime
        begun_at, rate_at = self.images, (self.images, time.monotonic())
        losses: list[Tensor] = []
        waits = 0.0
        places = range(self.images, self.total, batch)
        batches = self.data.stream((torch.arange(p, p + batch) for p in places), BATCHES_AHEAD)
        for place in places:
            index, asked = torch.arange(place, place + batch), time.monotonic()
            read = next(batches)
            waits += time.monotonic() - asked
            x, cond = as_told(read, index, self.settings, self.stream)
            losses.append(self.train_step(index, x, cond))
            self.images += batch

            if self.due(cadence["log_images"]):
                now = time.monotonic()
                rate = (self.images - rate_at[0]) / (now - rate_at[1])
                self.log(
                    loss=float(torch.stack(losses).mean()),
                    images_per_s=rate,
                    data_wait=waits / (now - rate_at[1]),
                    learning_rate=self.learning_rate(),
                )
                losses, waits, rate_at = [], 0.0, (self.images, now)
            if self.due(cadence["validate_images"]):
                self.log(**self.binned_validation())
                rate_at = (self.images, time.monotonic())
            if self.due(cadence["checkpoint_images"]) and self.images < self.total:
                self.save_checkpoint()
                rate_at = (self.images, time.monotonic())
        return self.finish(self.images - begun_at)

    def train_step(self, index: Tensor, x: Tensor, cond: Any) -> Tensor:
        """One step on the images at these places of the stream; → the mean loss."""
        drop = self.options["dropout"]
        groups = {spec.group for spec in self.data.embeddings}
        keep = draw_keep(
            self.seed,
            index,
            {group: drop.get(group, drop["others"]) for group in groups},
            all_p=drop["all"],
            purpose=f"{self.stream}/dropout",
        )
        sigma = self.interval.draw(
            draws.stratified(self.seed, f"{self.stream}/sigma", index), self.noise
        )
        eps = draws.normal(self.seed, f"{self.stream}/eps", index, tuple(x.shape[1:]))
        cond = cond.keep(keep, self.data.embeddings)

        loss = denoising_loss(self.model, self.model.sigma_data, x, sigma, eps, cond).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options["clip_norm"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.ema.update(self.model, self.images + len(x), len(x))
        return loss.detach()

    def learning_rate(self) -> float:
        warmup = self.options["warmup_images"]
        ramp = min(1.0, (self.images + self.options["batch"]) / warmup) if warmup else 1.0
        return float(self.options["learning_rate"] * ramp)

    def due(self, every: int) -> bool:
        batch = self.options["batch"]
        return self.images // every > (self.images - batch) // every or self.images >= self.total

    # -- what it says and keeps ---------------------------------------------------------------

    def log(self, **metrics: float) -> None:
        row = {"time_ms": int(time.time() * 1000), "images": self.images, "metrics": metrics}
        self.history.append(row)
        self.ctx.report(done=self.images, of=self.total, unit="images", **row)

    def averaged(self) -> Denoiser:
        model = Denoiser(UNet(self.network), self.model.sigma_data)
        model.load_state_dict(self.ema.weights)
        return model

    def losses(self, model: Denoiser, interval: Interval, count: int) -> tuple[Tensor, Tensor]:
        return validation_losses(
            model,
            model.sigma_data,
            lambda index: validation_pictures(self.validation, index, self.settings),
            count=count,
            batch=VALIDATION_BATCH,
            interval=interval,
            noise=self.noise,
            seed=self.seed,
        )

    def binned_validation(self) -> dict[str, float]:
        """The averaged weights' loss over this expert's interval, and over each part of it."""
        cadence = self.ctx.runtime
        sigma, loss = self.losses(self.averaged(), self.interval, cadence["validate_draws"])
        out = {"val_loss": float(loss.mean())}
        for (low, high), found in by_noise_level(
            sigma, loss, self.noise, cadence["validate_bins"]
        ).items():
            out[f"val_loss_bin/sigma_{low:.3g}_to_{high:.3g}"] = found.mean
        return out

    def save_checkpoint(self) -> None:
        store, folder = self.ctx.store, self.ctx.folder
        train_state.save(
            store,
            train_state.path(folder, self.images),
            self.model,
            self.ema,
            self.optimizer,
            self.images,
            self.history,
        )
        self.ctx.save_progress(self.images, self.total, "images")
        train_state.keep_newest(store, folder, 2)
        self.ctx.report(checkpoint=self.images)

    def finish(self, trained: int) -> dict[str, Any]:
        """Writes the weights, measures the child against its parent, clears the checkpoints."""
        store, folder = self.ctx.store, self.ctx.folder
        hashes = {}
        for which, weights in (("raw", self.model.state_dict()), ("ema", self.ema.weights)):
            data, hashes[which] = to_bytes(weights, self.card(which == "ema"))
            store.write(f"{folder}/{which}.safetensors", data)
        train_state.save(
            store,
            f"{folder}/state.safetensors",
            self.model,
            self.ema,
            self.optimizer,
            self.images,
            self.history,
        )
        metrics = self.compare()
        lines = [json.dumps(row, sort_keys=True) for row in self.history]
        store.write(f"{folder}/history.jsonl", ("\n".join(lines) + "\n").encode())
        train_state.keep_newest(store, folder, 0)
        return {
            "files": ["raw.safetensors", "ema.safetensors", "state.safetensors", "history.jsonl"],
            "metrics": {**metrics, "images": self.images},
            "info": {
                "weights_sha256": hashes["ema"],
                "raw_sha256": hashes["raw"],
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "trained_now": trained,
            },
        }

    def card(self, averaged: bool) -> Card:
        parent = self.ctx.manifests.get("parent")
        which = "raw" if self.settings["start"] == "raw" else "ema"
        origin = parent and {
            "name": parent["name"],
            "fingerprint": parent["fingerprint"],
            "weights": "state" if self.settings["start"] == "continue" else which,
            "sha256": parent["info"]["raw_sha256" if which == "raw" else "weights_sha256"],
        }
        return Card(
            expert=self.settings["expert"],
            interval=self.interval,
            noise=self.noise,
            sigma_data=self.model.sigma_data,
            network=self.network,
            images=self.images,
            averaged=averaged,
            parent=origin,
        )

    def compare(self) -> dict[str, float]:
        """Child against parent on the child's interval: the same pictures, σ and ε for both."""
        _, mine = self.losses(self.averaged(), self.interval, FINAL_DRAWS)
        out = {"val_loss": float(mine.mean())}
        if self.parent:
            _, theirs = self.losses(self.parent, self.interval, FINAL_DRAWS)
            gain = paired_gain(theirs, mine)
            out |= {
                "val_loss_parent": float(theirs.mean()),
                "val_gain": gain.mean,
                "val_gain_low": gain.low,
                "val_gain_high": gain.high,
            }
        return out
