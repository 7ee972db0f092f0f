"""``ediffi doctor``: runs all checks, each with a time-out, and reports what they find."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.executor.doctor import data, encoders, machine, services
from pipelines.executor.doctor.check import Check, Subject

ALL = {
    "Python": (machine.python, 5.0),
    "device": (machine.device, 60.0),
    "memory": (machine.memory, 5.0),
    "disk": (machine.disk, 5.0),
    "Ray": (services.ray, 8.0),
    "MLflow": (services.mlflow, 10.0),
    "store": (services.store, 20.0),
    "data": (data.paths, 10.0),
    "encoders": (encoders.encoders, 40.0),
    "demo": (encoders.demo, 5.0),
    "Fashion-MNIST": (encoders.fashion_mnist, 5.0),
}
"""Each check, and its time-out in seconds; the long ones import torch or OpenCLIP."""

REMEDIES = {
    "store": "check that the address is right, and that it can be reached from here",
    "MLflow": "check that the address is right, and that it can be reached from here",
    "data": "a mounted disk does not answer; `df` shows which",
    "encoders": "check the network, or name folders in the spec",
    "disk": "a mounted disk does not answer; `df` shows which",
}


def examine(
    spec: Path | None, storage: str | None, default: str, checks: Mapping[str, Any] = ALL
) -> Iterator[Check]:
    """The result of every check, as each is done.

    Args:
        spec: A spec's file; None checks the machine alone.
        storage: The store; the spec's if None.
        default: The store without either.
        checks: Name → check and its time-out in seconds.
    """
    loaded = None
    if spec is not None:
        from pipelines.spec import loading as specs
        from pipelines.store import remote

        try:
            loaded = specs.load(spec)
        except ValueError as error:
            yield Check("spec", "fault", " ".join(str(error).split()), "correct it, and try again")
        else:
            remote.export_settings(loaded.s3.variables())
            yield Check("spec", "ok", f"{spec} is valid")
    from pipelines.store.artifacts import Store

    root = Store.at(storage or (loaded.storage if loaded else default)).root
    subject = Subject(root, loaded)
    for name, (check, limit_s) in checks.items():
        yield from _within(limit_s, name, check, subject)


def _within(limit_s: float, name: str, check: Any, subject: Subject) -> list[Check]:
    """A check's results, or that it took too long or failed.

    It runs in a thread that is left behind when it hangs.
    """
    found: list[Check] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            for one in check(subject):
                found.append(one)
        except Exception as error:  # of whatever library is broken here
            failure.append(error)

    thread = threading.Thread(target=work, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        remedy = REMEDIES.get(name, "try again when the machine is less busy")
        return [*found, Check(name, "fault", f"no result within {limit_s:g} s", remedy)]
    if failure:
        text = " ".join(str(failure[0]).split()) or type(failure[0]).__name__
        remedy = "install the project's packages again: `make setup`"
        return [*found, Check(name, "fault", f"{type(failure[0]).__name__}: {text[:300]}", remedy)]
    return found


def line(check: Check) -> str:
    """A check as text: the level, the name, what was found; below it the remedy."""
    shown = f"{check.level:<8} {check.name:<15} {check.found}"
    return f"{shown}\n{'':<25}{check.remedy}" if check.remedy else shown


def summary(checks: list[Check]) -> str:
    """How many faults and warnings there are."""
    counts = [(sum(c.level == level for c in checks), level) for level in ("fault", "warning")]
    told = [f"{n} {level}{'s' * (n > 1)}" for n, level in counts if n]
    return ", ".join(told) or "all is well"


def as_json(checks: list[Check]) -> str:
    """The report for programs."""
    counts = {f"{level}s": sum(c.level == level for c in checks) for level in ("fault", "warning")}
    return json.dumps({**counts, "checks": [c.__dict__ for c in checks]}, indent=1)
