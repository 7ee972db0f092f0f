"""Bring the application up on a Ray cluster that is connected to, watch it, and take it down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import ApplicationStatus

from pipelines.serving.ray_app import NAME
from pipelines.spec.serving import Serving

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import ApplicationStatusOverview

LOOK_EVERY_S = 0.5
TELL_EVERY_S = 5.0
END_GRACE_S = 15.0
"""Time for replicas to end, besides what their last pictures take."""


def deploy(application: Application, serving: Serving) -> None:
    """Start the application, and do not wait for it.

    A cluster that runs Serve already keeps the address that it listens at.
    """
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=serving.host, port=serving.port),
    )
    serve.run_many(
        [serve.RunTarget(application, name=NAME, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def watch(is_stopped: Callable[[], bool], say: Callable[[str], None]) -> bool:
    """Wait until the application runs.

    Args:
        is_stopped: whether to give up.
        say: is told what it waits for.

    Returns:
        Whether it runs; False if it was stopped before.

    Raises:
        ValueError: It cannot be started.
    """
    told = ""
    while not is_stopped():
        found = _found()
        if found and found.status == ApplicationStatus.RUNNING:
            return True
        if found and found.status == ApplicationStatus.DEPLOY_FAILED:
            raise ValueError(f"the service could not be started: {reason(found)}")
        if (now := replicas(found)) != told:
            say(told := now)
        time.sleep(LOOK_EVERY_S)
    return False


def follow(is_stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Tell how the application is whenever that changes, until it is stopped."""
    told, looked = state(), time.monotonic()
    while not is_stopped():
        time.sleep(LOOK_EVERY_S)
        if time.monotonic() - looked > TELL_EVERY_S:
            looked = time.monotonic()
            if (now := state()) != told:
                say(told := now)


def state() -> str:
    """How the application is, in words that change with it alone."""
    found = _found()
    if found is None:
        return "the service is gone"
    if found.status == ApplicationStatus.RUNNING:
        return replicas(found)
    return f"the service is {found.status.value.lower()}: {reason(found)}"


def replicas(found: ApplicationStatusOverview | None) -> str:
    """How many replicas draw, and how many are on their way."""
    painters = found.deployments.get("Painter") if found else None
    counts = {str(k): n for k, n in painters.replica_states.items()} if painters else {}
    running = counts.pop("RUNNING", 0)
    parts = [f"{running} running", *(f"{n} {name.lower()}" for name, n in sorted(counts.items()))]
    return f"replicas: {', '.join(parts)}"


def reason(found: ApplicationStatusOverview) -> str:
    """The last line of what Serve says of a failure, which is the error itself."""
    said = [found.message, *(d.message for d in found.deployments.values())]
    lines = [line.strip() for text in said for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason is given"


def metrics_address() -> str:
    """Where this machine, or the first of the cluster, gives its metrics to Prometheus."""
    machine = next(m for m in ray.nodes() if m["Alive"])
    return f"http://{machine['NodeManagerAddress']}:{machine['MetricsExportPort']}/metrics"


def withdraw(patience_s: float) -> None:
    """Take no more requests, finish those that are there, and end the application.

    Serve itself, with its proxies, ends with the cluster.

    Args:
        patience_s: how long its requests may take; 0 if it has none, and nothing is to be waited
            for.
    """
    serve.delete(NAME, _blocking=False)
    end = time.monotonic() + (patience_s + END_GRACE_S if patience_s else 0)
    while _found() and time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)


def _found() -> ApplicationStatusOverview | None:
    return serve.status().applications.get(NAME)
