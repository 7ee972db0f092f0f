"""Runs a function in several processes that form a process group, as Ray Train's workers do."""

import multiprocessing
import os
import traceback
from datetime import timedelta

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.fsdp", "pipelines.training.checkpoints.writer"]
)


def run(count, work, *args, timeout_s=120):
    """Call ``work(group, *args)`` in every process; → the results by rank."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as rendezvous:
        queue = CONTEXT.Queue()
        started = [
            CONTEXT.Process(target=_one, args=(rank, count, rendezvous, queue, work, args))
            for rank in range(count)
        ]
        for process in started:
            process.start()
        try:
            results = dict(queue.get(timeout=timeout_s) for _ in started)
        finally:
            for process in started:
                process.join(timeout=10)
                process.kill()
    failed = [str(error) for _, error in results.values() if error]
    assert not failed, "\n".join(failed)
    return [results[rank][0] for rank in range(count)]


def _one(rank, count, rendezvous, queue, work, args):
    import torch
    import torch.distributed as dist

    from pipelines.training.checkpoints.writer import ProcessGroup

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}/group",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=60),
        )
        gloo_group = dist.new_group(backend="gloo")
        group = ProcessGroup(rank=rank, size=count, gloo_group=gloo_group)
        result, error = work(group, *args), None
        dist.barrier()
    except BaseException:
        result, error = None, traceback.format_exc()
    queue.put((rank, (result, error)))
    queue.close()
    queue.join_thread()
    os._exit(0)  # a group that lost a process may hang at exit
