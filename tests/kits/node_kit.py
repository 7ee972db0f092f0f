"""One training node, trained in this process without Ray."""

from kit import SMOKE

from pipelines.dag import plan
from pipelines.runs.context import Context
from pipelines.spec.loading import load
from pipelines.store.artifacts import Store
from pipelines.training.build import TrainingSetup
from pipelines.training.loop import Trainer

NODE = "train/base/E1_1"


class Stopped(Exception):
    """The end that a test puts to a training."""


class Stopping(Trainer):
    """Ends as a kill would, once a checkpoint has been written."""

    stop_at = None

    def save(self, *args, **kwargs):
        super().save(*args, **kwargs)
        if self.images == self.stop_at:
            self.checkpoints.wait()
            raise Stopped


class Board:
    """Takes a step's reports like Ray's actor."""

    def __init__(self):
        self.rows = []
        self.report = self

    def remote(self, node, row):
        self.rows.append(row)

    @property
    def messages(self):
        return [row["message"] for row in self.rows if "message" in row]


class Node:
    """The node E1_1 of the smoke pipeline, trained in this process into a store of its own."""

    def __init__(self, smoke, root):
        unread = ("data", "encoders", "adopt", "evaluate", "promote", "train/sr32")
        self.store = Store.at(str(smoke.copy(root, NODE, *unread)))
        self.plan = plan.make(load(SMOKE), self.store, {})
        self.verdict = self.plan.verdicts[NODE]
        self.folder = root / self.verdict.folder
        self.board = Board()

    def trainer(self, *, bad_loss=None, settings=None, training=None, **runtime):
        """With a checkpoint every step."""
        node, self.board = self.verdict.node, Board()
        ctx = Context(
            node=node.id,
            fingerprint=self.verdict.fingerprint,
            store=self.store,
            folder=self.verdict.folder,
            cpus=node.cpus,
            runtime={**node.runtime, "checkpoint_images": 16, **runtime},
            board=self.board,
            manifests={r: self.plan.verdicts[i].manifest for r, i in node.inputs.items()},
        )
        inputs = {
            role: self.plan.verdicts[i].folder
            for role, i in {**node.inputs, **node.unhashed_inputs}.items()
        }
        training = {**node.settings["training"], **(training or {})}
        training["bad_loss"] = {**training["bad_loss"], **(bad_loss or {})}
        told = {**node.settings, **(settings or {}), "training": training}
        return Stopping(TrainingSetup(ctx, told, inputs))

    def train(self, stop_at=None):
        """Trains to the end, or to the checkpoint of so many images; → what it said."""
        trainer = self.trainer()
        trainer.stop_at = stop_at
        try:
            trainer.train()
        except Stopped:
            assert stop_at is not None
        else:
            assert stop_at is None
        return self.board.messages

    def checkpoint(self, images):
        return self.folder / "checkpoints" / f"{images:012d}"

    def weights(self):
        return {w: (self.folder / f"{w}.safetensors").read_bytes() for w in ("ema", "raw")}
