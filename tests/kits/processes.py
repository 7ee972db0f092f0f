"""Runs a function in several real processes that form a group, as Ray Train does."""

import multiprocessing
import os
import traceback
from datetime import timedelta

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.fsdp", "pipelines.training.checkpoints.writer"]
)


def run(count, work, *args, timeout_s=120):
    """Calls ``work(peers, *args)`` in every process; → what it gave, by rank."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as meeting:
        told = CONTEXT.Queue()
        started = [
            CONTEXT.Process(target=_one, args=(rank, count, meeting, told, work, args))
            for rank in range(count)
        ]
        for process in started:
            process.start()
        try:
            given = dict(told.get(timeout=timeout_s) for _ in started)
        finally:
            for process in started:
                process.join(timeout=10)
                process.kill()
    failed = [str(error) for _, error in given.values() if error]
    assert not failed, "\n".join(failed)
    return [given[rank][0] for rank in range(count)]


def _one(rank, count, meeting, told, work, args):
    import torch
    import torch.distributed as dist

    from pipelines.training.checkpoints.writer import Peers

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting}/group",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=60),
        )
        group = dist.new_group(backend="gloo")
        given, error = work(Peers(rank=rank, size=count, group=group), *args), None
        dist.barrier()
    except BaseException:
        given, error = None, traceback.format_exc()
    told.put((rank, (given, error)))
    told.close()
    told.join_thread()
    os._exit(0)  # a group whose other end is gone may wait at exit
