"""Connect to a Ray cluster, or start one on this machine, without output on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

START_ATTEMPTS = 3  # on a busy machine Ray may exceed its own limit of 30 s
SPARE_CPUS = 2  # for Ray Data's reads, which hang when actors hold every CPU


def start_ray(
    cpus: int, variables: Mapping[str, str] | None = None, metrics_port: int | None = None
) -> None:
    """Connect to the cluster in RAY_ADDRESS, or start one on this machine.

    Args:
        cpus: that nodes may use, of a cluster on this machine.
        variables: environment variables for the processes of an existing cluster. Processes on
            this machine inherit the environment.
        metrics_port: at which a cluster on this machine gives its metrics to Prometheus; any that
            is free by default.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_AUTH_MODE", "disabled"
    )  # else a second shell gets a 401 from localhost
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ code logs to stderr
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import ray

    if not os.environ.get("RAY_ADDRESS"):
        # A single machine is not preempted, and the watcher costs one process per training node.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    where: dict[str, Any] = {
        "address": "local",  # else it connects to a cluster started here with `ray start`
        "num_cpus": cpus + SPARE_CPUS,
        "include_dashboard": False,
        "object_store_memory": 512 * 2**20,
        "_metrics_export_port": metrics_port,
    }
    if os.environ.get("RAY_ADDRESS"):
        where = {"runtime_env": {"env_vars": dict(variables)}} if variables else {}
    for attempt in range(START_ATTEMPTS):
        try:
            with stderr_closed():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
            break
        except Exception as error:  # Ray raises a plain Exception
            if "timed out during startup" not in str(error) or attempt + 1 == START_ATTEMPTS:
                raise
            ray.shutdown()
    ray.data.DataContext.get_current().enable_progress_bars = False
    for noisy in ("ray.data", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def lacking(
    gpus: float,
    labels: Mapping[str, str],
    machines: Iterable[Mapping[str, Any]] | None = None,
    *,
    cpus: int = 0,
) -> str:
    """Describe what no single machine of the cluster has now, so that a task would wait for it.

    Args:
        gpus: that the task needs on one machine.
        labels: that the machine needs; Ray's ``!`` and ``in(…)`` expressions are not checked.
        machines: as from ``ray.nodes()``, which is called by default.
        cpus: that the task needs on that machine.

    Returns:
        The CPUs, GPUs and labels, in words; empty if some machine has them all.
    """
    if not gpus and not labels and not cpus:
        return ""
    import ray

    plain = {k: v for k, v in labels.items() if not v.startswith(("!", "in("))}
    for machine in ray.nodes() if machines is None else machines:
        fits = all(machine["Resources"].get(k, 0) >= n for k, n in (("GPU", gpus), ("CPU", cpus)))
        if machine["Alive"] and fits and plain.items() <= machine["Labels"].items():
            return ""
    wanted = [f"{n:g} {kind}" for n, kind in ((cpus, "CPUs"), (gpus, "GPU")) if n]
    return " and ".join([*wanted, *(f"the label {k}: {v}" for k, v in plain.items())])


@contextlib.contextmanager
def stderr_closed() -> Iterator[None]:
    """Discard everything written to stderr while the context is open, from C++ too.

    stderr is for the user's mistakes only.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
