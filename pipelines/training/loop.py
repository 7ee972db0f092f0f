"""The training of one expert, inside a Ray Train worker.

The clock is images seen. Order, crops, σ, ε and dropout are functions of (seed, stream, image), so
workers of any number that go on from a checkpoint see what one that was never stopped would.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning
from pipelines.runs.meters import SystemMeter
from pipelines.training import preemption as notice
from pipelines.training.build import Parts
from pipelines.training.finish import finish, write_snapshots
from pipelines.training.meters import BadLoss
from pipelines.training.parallel import Agreement, Pulse
from pipelines.training.validation import as_told

BATCHES_AHEAD = 2


class Trainer:
    """Trains to the end, from wherever it was left."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.world, self.ctx = parts, parts.world, parts.ctx
        self.state, self.meters, self.checkpoints = parts.state, parts.meters, parts.checkpoints
        self.options, self.cadence = parts.options, parts.cadence
        self.batch: int = self.options["batch"]
        self.total: int = parts.settings["images"]
        self.agreement, self.pulse = Agreement(self.world), Pulse(self.world)
        self.system = SystemMeter()
        self.images = 0
        self.skipped: list[int] = []
        """Places of batches that were bad."""
        self.kept: list[str] = []
        """Pictures and snapshots so far, from the node's folder; a bucket may list them late."""

        self.history: list[dict[str, Any]] = []
        self.resume()

    # -- the loop ----------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        began_at = self.images
        try:
            while self.images < self.total:
                try:
                    self.run_on()
                except BadLoss as bad:
                    self.go_back(bad)
            return self.end(trained_now=self.images - began_at)
        except RuntimeError as error:
            if self.world.lost(error):
                raise self.pulse.missing(error) from error
            raise

    def end(self, trained_now: int) -> dict[str, Any]:
        """Keeps the state that a later training may go on from, and the node's result."""
        self.save(to=self.parts.ended)
        self.checkpoints.wait()
        found = finish(
            self.parts,
            images=self.images,
            history=self.lines(),
            kept=self.kept,
            skipped=self.skipped,
        )
        found["info"]["trained_now"] = trained_now
        return found

    def run_on(self) -> None:
        """Trains to the end, or to a bad loss."""
        self.meters.restart()
        for place, waited_s, (x, cond) in self.batches():
            index = torch.arange(place, place + self.batch)[self.world.share(self.batch)]
            x, cond = as_told((x, cond), index, self.parts.settings, self.parts.stream)
            outcome = self.parts.step(index, x, cond, self.learning_rate(place))
            self.meters.add(place, outcome, waited_s)
            self.images = place + self.batch
            self.state.advance(self.images, self.batch)
            self.tend()

    def batches(self) -> Iterator[tuple[int, float, tuple[Tensor, Conditioning]]]:
        """Place, seconds waited, and this process's share of each batch that is left."""
        starts = range(self.images, self.total, self.batch)
        places = [p for p in starts if p not in self.skipped] if self.skipped else starts
        share = self.world.share(self.batch)
        wanted = (torch.arange(p, p + self.batch)[share] for p in places)
        stream = self.parts.data.stream(wanted, BATCHES_AHEAD)
        for place in places:
            asked = time.monotonic()
            x, cond = next(stream)
            waited_s = time.monotonic() - asked
            cond = cond.to(self.world.device, non_blocking=True)
            yield place, waited_s, (self.parts.put(x), cond)

    def tend(self) -> None:
        """What is due after a step: word, measurements, pictures, a checkpoint; or to leave."""
        self.pulse.beat(self.images)
        self.tell_saved()
        if self.agreement.reached(notice.asked() is not None):
            self.leave()
        if self.due("log_images"):
            self.meters.judge(self.batch)
            self.log(self.measured())
        if self.due("validate_images"):
            self.log(self.validated())
            self.meters.restart()
        if self.images < self.total and self.due("picture_images"):
            self.kept.append(self.parts.draw(self.images))
            self.meters.restart()
        if self.crosses(self.options["snapshot_images"]):
            self.kept += write_snapshots(self.parts, self.images)
        if self.images < self.total and self.due("checkpoint_images", "milestone_images"):
            self.save(milestone=self.due("milestone_images"))

    def due(self, *cadences: str) -> bool:
        """Whether the last step came to a multiple of one of them, or to the end."""
        crossed = any(self.crosses(self.cadence[name]) for name in cadences)
        return crossed or self.images >= self.total

    def crosses(self, every: int | None) -> bool:
        if not every:
            return False
        return self.images // every > (self.images - self.batch) // every

    def learning_rate(self, place: int) -> float:
        return self.parts.rate.at(place, self.batch)

    # -- what it says --------------------------------------------------------------------------

    def measured(self) -> dict[str, float]:
        found = self.meters.summary(self.batch)
        found["learning_rate"] = self.learning_rate(self.images - self.batch)
        return found | self.parts.utilisation(found["images_per_s"]) | self.system.read()

    def validated(self) -> dict[str, float]:
        """The averaged weights' losses, and those of the parent on the same draws."""
        draws = self.cadence["validate_draws"]
        with self.parts.averaged() as model:
            found, losses = self.parts.validation.by_level(
                model, draws, self.cadence["validate_bins"]
            )
        theirs = self.parts.parents_losses(draws)
        if theirs is None:
            return found
        return found | self.parts.validation.against(theirs, losses)

    def log(self, metrics: dict[str, float]) -> None:
        row = {"time_ms": int(time.time() * 1000), "images": self.images, "metrics": metrics}
        self.history.append(row)
        self.report(done=self.images, of=self.total, unit="images", **row)

    def tell_saved(self) -> None:
        """Leaves word of the checkpoint that has been written since the last step, if one was."""
        if (images := self.checkpoints.poll()) is not None and self.world.is_first:
            self.ctx.save_progress(images, self.total, "images")
            self.report(checkpoint=images)

    def report(self, **row: Any) -> None:
        if self.world.is_first:
            self.ctx.report(**row)

    # -- what it keeps -------------------------------------------------------------------------

    def save(self, milestone: bool = False, to: str | None = None) -> None:
        """All that going on needs; returns while it is being written."""
        self.meters.judge(self.batch)
        self.checkpoints.save(
            self.images,
            self.state.tensors(),
            {
                "skipped": self.skipped,
                "kept": self.kept,
                "losses": list(self.meters.losses),
            },
            files={"history.jsonl": self.lines()},
            milestone=milestone,
            to=to,
        )

    def lines(self) -> bytes:
        return "".join(json.dumps(row, sort_keys=True) + "\n" for row in self.history).encode()

    def resume(self) -> None:
        """Takes up this node's newest sound checkpoint, or begins."""
        found = self.parts.restored()
        if found is None:
            self.images = self.parts.begin()
            if self.options["bad_loss"]["then"] == "skip":
                self.save()  # to have somewhere to go back to
            return
        self.images = found.images
        self.skipped, self.kept = found.note["skipped"], found.note["kept"]
        self.meters.losses.extend(found.note["losses"])
        self.history = [json.loads(line) for line in found.files["history.jsonl"].splitlines()]
        self.report(message=f"continues at {self.images:,} images")

    def leave(self) -> None:
        """Someone asked this node to stop: saves what it has, and does."""
        reason = next(r for r in self.world.everyones(notice.asked()) if r)
        if self.images < self.total:
            self.save()
            self.checkpoints.wait()
            self.tell_saved()
        raise notice.Preempted(f"{reason}; saved at {self.images:,} images")

    def go_back(self, bad: BadLoss) -> None:
        """Stops at a bad loss; or returns to the last checkpoint, to train without that batch."""
        end = bad.place + self.batch - 1
        where = f"images {bad.place:,} to {end:,} of stream {self.parts.stream}: {bad.why}"
        policy = self.options["bad_loss"]
        self.report(message=f"{where}; {self.parts.rows_of(bad.place)}")
        if policy["then"] == "stop" or len(self.skipped) >= policy["skips"]:
            raise ValueError(
                f"{where}; a lower learning_rate or clip_norm may help, or "
                "`bad_loss: {action: skip}` to train without such batches"
            )
        self.checkpoints.wait()
        skipped = [*self.skipped, bad.place]
        self.meters.losses.clear()
        self.resume()
        self.skipped = sorted({*skipped, *self.skipped})
