"""Write a study's report from the store, and say what its claims come to."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.dag.plan import Plan
from pipelines.evaluation.probes.seconds import processor
from pipelines.runs.execution import latest
from pipelines.store.artifacts import Store
from pipelines.studies import claims
from pipelines.studies.cells import Opened
from pipelines.studies.planning import done_cells
from pipelines.studies.reading import read
from pipelines.studies.report.write import write

PACKAGES = ("torch", "ray", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A written report."""

    findings: Sequence[claims.Finding]
    place: str
    """Where it is, for the user."""


def report(
    opened: Opened,
    store: Store,
    made: Plan,
    folder: Path | None = None,
    then: Callable[[Sequence[claims.Finding], Path], None] = lambda found, folder: None,
) -> Reported:
    """Write a study's report.

    Args:
        made: the study's plan, made after the last run.
        folder: where to write it; by default ``studies/NAME`` in the store.
        then: called with the claims and the written report, while it is a folder of this machine.

    Raises:
        ValueError: No evaluation of any cell is finished.
    """
    results = read(opened, made, store)
    if not results.cells:
        raise ValueError(
            f"no cell of {opened.study.study} has results in {store.root}; `ediffi study run` "
            "makes them"
        )
    findings = claims.find(results)
    stage = opened.base.stages[opened.study.stage]
    facts = provenance(opened, store, made)
    if folder is not None:
        write(results, findings, folder, facts, noise=stage.noise, read=store.read)
        then(findings, folder)
        return Reported(findings=findings, place=str(folder))
    inside = f"studies/{opened.study.study}"
    with TemporaryDirectory() as scratch:
        write(results, findings, Path(scratch), facts, noise=stage.noise, read=store.read)
        store.remove_folder(inside)
        store.put_folder(Path(scratch), inside)
        then(findings, Path(scratch))
    path = store.full(inside)
    return Reported(findings=findings, place=os.path.relpath(path) if store.is_local else path)


def provenance(opened: Opened, store: Store, made: Plan) -> dict[str, str]:
    """Where a report's numbers come from: name → value."""
    last = latest(store, opened.study.study)
    done = len(done_cells(made))
    seconds = sum(v.manifest["seconds"] for v in made.verdicts.values() if v.manifest)
    found = {
        "finished": f"{done} of {len(opened.cells)} cells",
        "date": last.ended[:10] if last and last.ended else "",
        "attempts": str(last.attempt) if last else "",
        "computing": f"{seconds / 3600:.2f} hours of nodes on {made.spec.cpus} CPUs",
        "commit": _commit(),
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        + f", Python {platform.python_version()}",
    }
    return {name: value for name, value in found.items() if value}


def _commit() -> str:
    """The commit of the code, if it is a git checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=10"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
