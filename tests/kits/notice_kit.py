"""Workers that fail as they are told, instead of training.

As a program it is ``ediffi run`` with such workers, to be told to stop::

    python notice_kit.py SPEC --storage STORE
"""

import os
import signal
import sys
import time
from pathlib import Path

from pipelines.training.preemption import Preempted, stop_reason

LONG_S = 600


def until_asked():
    """Goes on as a training does, asking at every step; leaves as it should."""
    until = time.monotonic() + LONG_S
    while time.monotonic() < until:
        if reason := stop_reason():
            raise Preempted(reason)
        time.sleep(0.05)
    raise TimeoutError("was never asked to leave")


def worker(config):
    """Fails in the way that is next in ``config["fates"]``, at last not."""
    import torch
    from torch import distributed

    rank, folder = distributed.get_rank(), Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    attempt = len(list(folder.glob(f"*-{rank}")))
    (folder / f"{attempt}-{rank}").write_text(str(os.getpid()))
    distributed.barrier()
    fate = config["fates"][attempt] if attempt < len(config["fates"]) else "done"
    if fate == "asked":
        until_asked()
    if rank == 1:
        if fate == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
            until_asked()
        if fate == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "late":
            time.sleep(LONG_S)
        if fate == "bug":
            raise KeyError("no such tensor")
        if fate == "mistake":
            raise ValueError("batch 3 is not a multiple of 2; write 4")
    distributed.all_reduce(torch.zeros(1))
    return {"attempts": attempt + 1, "backend": distributed.get_backend()}


def endless(config):
    """Of a node of a pipeline: says that it runs, and how it left."""
    ctx = config["ctx"]
    ctx.report(message="is at work")
    try:
        until_asked()
    except Preempted:
        ctx.report(message="has saved")
        raise


if __name__ == "__main__":
    import notice_kit

    from pipelines import cli
    from pipelines.steps import train

    whole = train.train
    train.train = lambda ctx, _, config: whole(ctx, notice_kit.endless, config)
    sys.argv[1:1] = ["run"]
    cli.main()
