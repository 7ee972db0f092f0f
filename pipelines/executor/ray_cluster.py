"""Ray: connected to, or started on this machine, without a word on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

START_ATTEMPTS = 3  # a busy machine may not start Ray within the 30 s that Ray gives itself
SPARE_CPUS = 2  # for reads: Ray Data hangs when actors hold every CPU


def start_ray(cpus: int, variables: Mapping[str, str] | None = None) -> None:
    """Connects to the cluster in RAY_ADDRESS, or starts one on this machine.

    Args:
        variables: of the environment that a cluster's processes need; those on this machine have
            this process's.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a second shell gets 401 on loopback
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ speaks on stderr
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import ray

    if not os.environ.get("RAY_ADDRESS"):
        # One machine is not preempted; the watcher is a process of each training node.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    where: dict[str, Any] = {
        "address": "local",  # else it would be one that somebody started here with `ray start`
        "num_cpus": cpus + SPARE_CPUS,
        "include_dashboard": False,
        "object_store_memory": 512 * 2**20,
    }
    if os.environ.get("RAY_ADDRESS"):
        where = {"runtime_env": {"env_vars": dict(variables)}} if variables else {}
    for attempt in range(START_ATTEMPTS):
        try:
            with stderr_closed():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
            break
        except Exception as error:  # Ray's own class for it is Exception
            if "timed out during startup" not in str(error) or attempt + 1 == START_ATTEMPTS:
                raise
            ray.shutdown()
    ray.data.DataContext.get_current().enable_progress_bars = False
    for noisy in ("ray.data", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def lacking(
    gpus: float, labels: Mapping[str, str], machines: Iterable[Mapping[str, Any]] | None = None
) -> str:
    """In words, what none of the cluster's machines has of this now; a task would wait for it.

    Args:
        machines: as ``ray.nodes()`` tells of them, which is asked by default.
    """
    if not gpus and not labels:
        return ""
    import ray

    plain = {k: v for k, v in labels.items() if not v.startswith(("!", "in("))}
    for machine in ray.nodes() if machines is None else machines:
        has_gpus = machine["Resources"].get("GPU", 0) >= gpus
        if machine["Alive"] and has_gpus and plain.items() <= machine["Labels"].items():
            return ""
    wanted = [f"{gpus:g} GPU"] if gpus else []
    return " and ".join([*wanted, *(f"the label {k}: {v}" for k, v in plain.items())])


@contextlib.contextmanager
def stderr_closed() -> Iterator[None]:
    """Nothing reaches stderr meanwhile, not from C++ either: it is for the user's mistakes."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
