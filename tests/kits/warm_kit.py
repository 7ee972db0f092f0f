"""Trainings of one worker in warm workers, on the data of the smoke run.

As a program it is a driver with an idle warm worker, to be killed::

    RAY_ADDRESS=… python warm_kit.py FOLDER
"""

import sys
import time
from pathlib import Path

import notice_kit
from train_kit import context_of, verdict_of, write_spec

from pipelines.runs.context import Context, ProgressBoard
from pipelines.steps import train
from pipelines.store.artifacts import Store


class Trainings:
    """Trains the same node, in as many folders as are asked for."""

    def __init__(self, ray, smoke, root, images=640):
        self.ray, self.store = ray, root / "store"
        smoke.copy(self.store, "train", "adopt", "evaluate", "promote")
        self.board = ray.remote(num_cpus=0, max_restarts=-1)(ProgressBoard).remote()
        spec = write_spec(root / "warm.yaml", images=images, keep_warm=True)
        self.made, self.verdict = verdict_of(spec, self.store)

    def context(self, folder, keep_warm=True, cpus=1, seed=None):
        """Context, settings and inputs of the node in that folder."""
        node = self.verdict.node
        workers = {**node.runtime["workers"], "keep_warm": keep_warm}
        ctx, settings, inputs = context_of(
            self.made,
            self.verdict,
            self.store,
            folder,
            node=f"train/base/{folder}",
            cpus=cpus,
            runtime={**node.runtime, "workers": workers},
            board=self.board,
        )
        return ctx, settings | ({} if seed is None else {"seed": seed}), inputs

    def train(self, folder, **how):
        """→ The sha256 of the weights: EMA, raw."""
        info = train.step(*self.context(folder, **how)).info
        return info["weights_sha256"], info["raw_sha256"]

    def saved(self, folder):
        """Images of the newest committed checkpoint; 0 before the first."""
        there = self.store.glob(f"{folder}/checkpoints/*/checkpoint.json")
        return max((int(m.parent.name) for m in there), default=0)

    def said(self):
        return [r["message"] for _, r in self.ray.get(self.board.drain.remote()) if "message" in r]


def process_of(config):
    """A job that only tells its process."""
    import os

    return {"pid": os.getpid()}


def fail(config):
    """A job that ends as ``config["fate"]`` says, at its first attempt; then as the last one."""
    import os
    import signal

    mark = Path(config["folder"]) / config["fate"]
    if mark.exists():
        return process_of(config)
    mark.touch()
    if config["fate"] == "mistake":
        raise ValueError("batch 3 is not a multiple of 2; write 4")
    if config["fate"] == "bug":
        raise KeyError("no such tensor")
    if config["fate"] == "asked":
        Path(f"{mark}.runs").touch()
    else:
        os.kill(os.getpid(), signal.Signals[config["fate"]])
    notice_kit.until_asked()


def bare(board, folder, node="train/base/E0_0"):
    """The context of a node that does not train."""
    retries = {"preemptions": 2, "machines": 9, "failures": 1, "bugs": 1, "backoff_s": 0.1}
    workers = {"count": 1, "gpus": 0, "labels": {}, "timeout_s": 60.0, "keep_warm": True}
    return Context(
        node=node,
        fingerprint="f",
        store=Store.at(str(folder)),
        folder="nodes/train/base/E0_0",
        cpus=1,
        runtime={"workers": {**workers, "retries": retries}},
        manifests={},
        board=board,
    )


def do(ctx, work, **config):
    """Run a function in a warm worker, as a training is run; → its outcome."""
    return train.train(ctx, work, {"ctx": ctx, **config})


if __name__ == "__main__":
    import ray
    import warm_kit

    from pipelines.executor.ray_cluster import start_ray

    start_ray(1)
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    print("idle:", do(bare(board, sys.argv[1]), warm_kit.process_of)["pid"], flush=True)
    time.sleep(notice_kit.LONG_S)
