"""The training loop of one expert, inside a Ray Train worker.

Progress is counted in images seen. Order, crops, σ, ε and dropout are functions of
(seed, stream, image), so a run resumed on any number of workers sees the same data and noise as one
that was never stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning
from pipelines.runs.meters import SystemMeter
from pipelines.training import preemption
from pipelines.training.build import TrainingSetup
from pipelines.training.finish import finish, snapshots
from pipelines.training.meters import BadLoss
from pipelines.training.parallel import Heartbeat, StopConsensus
from pipelines.training.process_group import ProcessGroup
from pipelines.training.validation import prepare_batch

BATCHES_AHEAD = 2
"""Batches that the reader prepares in advance."""


class Trainer:
    """Trains one expert to the end, from its newest checkpoint if it has one."""

    def __init__(self, setup: TrainingSetup) -> None:
        self.setup, self.comm, self.ctx = setup, setup.comm, setup.ctx
        self.state, self.meters, self.checkpoints = setup.state, setup.meters, setup.checkpoints
        self.options, self.cadence = setup.options, setup.cadence
        self.batch: int = self.options["batch"]
        self.total: int = setup.settings["images"]
        self.stop_consensus, self.heartbeat = StopConsensus(self.comm), Heartbeat(self.comm)
        self.group = ProcessGroup(
            rank=self.comm.rank, size=self.comm.size, gloo_group=self.comm.control
        )
        self.system = SystemMeter()
        self.images = 0
        self.restored_from: str | None = None
        """Folder of the checkpoint that training continued."""

        self.skipped: list[int] = []
        """Positions in the stream of the batches that are left out for a bad loss."""
        self.files: list[str] = []
        """Samples and snapshots written so far, relative to the node's folder."""

        self.unwritten: dict[str, bytes] = {}
        """Snapshots that could not be written yet, as of :func:`snapshots`."""

        self.history: list[dict[str, Any]] = []
        self.report(at_work=True)
        self.resume()

    # -- the loop ----------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            ``files``, ``metrics``, ``info`` and ``scratch`` of the node's result.

        Raises:
            ValueError: A bad loss, under the policy ``stop`` or after too many skips.
            Preempted: The worker was asked to stop, and has saved its state.
            Stalled: The workers lost contact with each other.
            OSError: The storage failed at the end, or for longer than training can do without.
        """
        began_at = self.images
        try:
            while self.images < self.total:
                try:
                    self.run_steps()
                except BadLoss as bad:
                    self.handle_bad_loss(bad)
            return self.finalize(trained_now=self.images - began_at)
        except RuntimeError as error:
            if self.comm.is_connection_error(error):
                raise self.heartbeat.stalled(error) from error
            raise

    def finalize(self, trained_now: int) -> dict[str, Any]:
        """Save the final state, which a later node may continue, and write the node's result."""
        self.write_snapshots()
        # A state that was restored is not written again: it may be the only copy of the training.
        if trained_now or self.restored_from != self.setup.final_state:
            self.save(to=self.setup.final_state)
            self.checkpoints.wait()
        found = finish(
            self.setup,
            images=self.images,
            history=self.history_jsonl(),
            files=self.files,
            skipped=self.skipped,
        )
        found["info"]["trained_now"] = trained_now
        return found

    def run_steps(self) -> None:
        """Train until the end; raises :class:`BadLoss` at a bad loss."""
        self.meters.restart()
        for position, waited_s, (x, cond) in self.batches():
            index = torch.arange(position, position + self.batch)[self.comm.share(self.batch)]
            x, cond = prepare_batch((x, cond), index, self.setup.settings, self.setup.stream)
            outcome = self.setup.step(index, x, cond, self.learning_rate(position))
            self.meters.add(position, outcome, waited_s)
            self.images = position + self.batch
            self.state.advance(self.images, self.batch)
            self.after_step()

    def batches(self) -> Iterator[tuple[int, float, tuple[Tensor, Conditioning]]]:
        """Position, seconds waited and this process's share of each remaining batch."""
        starts = range(self.images, self.total, self.batch)
        positions = [p for p in starts if p not in self.skipped] if self.skipped else starts
        share = self.comm.share(self.batch)
        wanted = (torch.arange(p, p + self.batch)[share] for p in positions)
        stream = self.setup.data.stream(wanted, BATCHES_AHEAD)
        for position in positions:
            requested = time.monotonic()
            x, cond = next(stream)
            waited_s = time.monotonic() - requested
            cond = cond.to(self.comm.device, non_blocking=True)
            yield position, waited_s, (self.setup.to_device(x), cond)

    def after_step(self) -> None:
        """Send the heartbeat, then stop, log, validate, draw samples or save as far as due."""
        self.heartbeat.beat(self.images)
        self.report_checkpoint()
        if self.stop_consensus.any_stopping(preemption.stop_reason() is not None):
            self.save_and_stop()
        if self.due("log_images"):
            self.meters.check(self.batch)
            self.log(self.training_metrics())
        if self.due("validate_images"):
            self.log(self.validation_metrics())
            self.meters.restart()
        if self.images < self.total and self.due("picture_images"):
            self.draw_picture()
            self.meters.restart()
        # Also at the end, since averages of other lengths end at the last snapshot.
        every = self.options["snapshot_images"]
        if every and (self.crosses(every) or self.images >= self.total):
            self.take_snapshots()
        if self.images < self.total and self.due("checkpoint_images", "milestone_images"):
            self.save_unless_behind(milestone=self.due("milestone_images"))

    def due(self, *cadences: str) -> bool:
        """Whether the last step crossed a multiple of one of these cadences, or reached the end."""
        crossed = any(self.crosses(self.cadence[name]) for name in cadences)
        return crossed or self.images >= self.total

    def crosses(self, every: int | None) -> bool:
        if not every:
            return False
        return self.images // every > (self.images - self.batch) // every

    def learning_rate(self, position: int) -> float:
        return self.setup.learning_rate.at(position, self.batch)

    # -- metrics and reports -------------------------------------------------------------------

    def training_metrics(self) -> dict[str, float]:
        """Means since the last log: loss, gradient norm, throughput, utilisation, system load."""
        found = self.meters.summary(self.batch)
        found["learning_rate"] = self.learning_rate(self.images - self.batch)
        return found | self.setup.utilisation(found["images_per_s"]) | self.system.read()

    def validation_metrics(self) -> dict[str, float]:
        """Losses of the EMA weights, and the gain over the parent on the same draws."""
        draws = self.cadence["validate_draws"]
        with self.setup.ema_weights() as model:
            found, losses = self.setup.validation.losses_by_noise_level(
                model, draws, self.cadence["validate_bins"]
            )
        parent_losses = self.setup.parent_losses(draws)
        if parent_losses is None:
            return found
        return found | self.setup.validation.gain_over_parent(parent_losses, losses)

    def log(self, metrics: dict[str, float]) -> None:
        row = {"time_ms": int(time.time() * 1000), "images": self.images, "metrics": metrics}
        self.history.append(row)
        self.report(done=self.images, of=self.total, unit="images", **row)

    def report_checkpoint(self) -> None:
        """Report the checkpoint that was committed since the last step, if any."""
        if (images := self.checkpoints.poll()) is not None and self.comm.is_first:
            try:
                self.ctx.save_progress(images, self.total, "images")
            except OSError as error:  # the next checkpoint records it
                self.report(message=f"the progress could not be written: {_one_line(error)}")
            self.report(checkpoint=images)

    def report(self, **row: Any) -> None:
        if self.comm.is_first:
            self.ctx.report(**row)

    # -- pictures and snapshots ----------------------------------------------------------------

    def draw_picture(self) -> None:
        """Write a contact sheet; training does without one that cannot be written."""
        name, png = self.setup.draw_samples(self.images)

        def write() -> None:
            self.group.run_on_first(lambda: self.setup.write_samples(name, png))

        if self.try_to_write(name, write):
            self.files.append(name)

    def take_snapshots(self) -> None:
        """Write snapshots; those that cannot be written are kept until the next.

        Raises:
            OSError: Those before cannot be written either.
        """
        self.write_snapshots()
        self.unwritten = snapshots(self.setup, self.images)
        self.try_to_write("a snapshot", self.write_snapshots)

    def write_snapshots(self) -> None:
        """Write the snapshots that are not written yet. A collective call."""

        def write() -> None:
            for name, data in self.unwritten.items():
                self.ctx.store.write(f"{self.ctx.folder}/{name}", data)

        if self.unwritten:
            self.group.run_on_first(write)
            self.files += self.unwritten
            self.unwritten = {}

    def try_to_write(self, what: str, write: Callable[[], None]) -> bool:
        """Whether a write in all processes succeeded; a failure is logged.

        Args:
            write: raises an OSError in every process or in none.
        """
        try:
            write()
        except OSError as error:
            self.report(message=f"{what} could not be written: {_one_line(error)}")
            return False
        return True

    # -- saving and resuming -------------------------------------------------------------------

    def save_unless_behind(self, milestone: bool) -> None:
        """Save, unless snapshots before are not written: what resumes from it would lack them."""
        if self.try_to_write("a snapshot, and so no checkpoint,", self.write_snapshots):
            self.save(milestone=milestone)

    def save(self, milestone: bool = False, to: str | None = None) -> None:
        """Save everything that resuming needs; returns while it is still being written."""
        self.meters.check(self.batch)
        self.checkpoints.save(
            self.images,
            self.state.tensors(),
            {
                "skipped": self.skipped,
                "kept": self.files,
                "losses": list(self.meters.losses),
            },
            files={"history.jsonl": self.history_jsonl()},
            milestone=milestone,
            to=to,
        )

    def history_jsonl(self) -> bytes:
        """All logged metrics, one JSON object per line."""
        return "".join(json.dumps(row, sort_keys=True) + "\n" for row in self.history).encode()

    def resume(self) -> None:
        """Restore this node's newest valid checkpoint, or start from the beginning."""
        self.unwritten = {}  # of images that will be seen again
        found = self.setup.restore()
        if found is None:
            self.images = self.setup.start_from_parent()
            if self.options["bad_loss"]["then"] == "skip":
                self.save()  # a first checkpoint to return to
            return
        self.images, self.restored_from = found.images, found.at
        self.skipped, self.files = found.note["skipped"], found.note["kept"]
        self.meters.losses.extend(found.note["losses"])
        self.history = [json.loads(line) for line in found.files["history.jsonl"].splitlines()]
        self.report(message=f"continues at {self.images:,} images")

    def save_and_stop(self) -> None:
        """Save the state and raise :class:`Preempted`: a worker was asked to stop."""
        reason = next(r for r in self.comm.all_gather(preemption.stop_reason()) if r)
        if self.images < self.total:
            self.write_snapshots()
            self.save()
            self.checkpoints.wait()
            self.report_checkpoint()
        raise preemption.Preempted(f"{reason}; saved at {self.images:,} images")

    def handle_bad_loss(self, bad: BadLoss) -> None:
        """Fail at a bad loss, or return to the last checkpoint and train without that batch."""
        end = bad.position + self.batch - 1
        where = f"images {bad.position:,} to {end:,} of stream {self.setup.stream}: {bad.why}"
        policy = self.options["bad_loss"]
        self.report(message=f"{where}; {self.setup.describe_batch(bad.position)}")
        if policy["then"] == "stop" or len(self.skipped) >= policy["skips"]:
            raise ValueError(
                f"{where}; a lower learning_rate or clip_norm may help, or "
                "`bad_loss: {action: skip}` to train without such batches"
            )
        self.checkpoints.wait()
        skipped = [*self.skipped, bad.position]
        self.meters.losses.clear()
        self.resume()
        self.skipped = sorted({*skipped, *self.skipped})


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
