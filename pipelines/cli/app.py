"""The root command, and the arguments and helpers that its verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.help import ByTask
from pipelines.formatting import printable

app = typer.Typer(
    cls=ByTask,
    help="Train ensembles of expert denoisers as a workflow DAG, and draw pictures with them.\n\n"
    "Run `ediffi VERB --help` for the options of a verb.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: the same on a terminal and in a pipe
)

DEFAULT_STORAGE = "ediffi-store"

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The pipeline's YAML file.")]
SomeSpec = Annotated[
    Path | None,
    typer.Argument(
        metavar="SPEC",
        help="The pipeline's YAML file.",
        show_default="the pipeline that ran last",
    ),
]
SpecStorage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="PATH",
        help="Folder or URL of the store.",
        show_default="the spec's `storage:`",
    ),
]
"""The store of a verb that reads a spec."""

SomeStorage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="PATH",
        help="Folder or URL of the store.",
        show_default=f"the spec's `storage:`, else {DEFAULT_STORAGE}",
    ),
]
"""The store of a verb that may do without a spec."""

Storage = Annotated[
    str, typer.Option("--storage", metavar="PATH", help="Folder or URL of the store.")
]
"""The store of a verb that takes no spec; :data:`DEFAULT_STORAGE` by default."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunId = Annotated[
    str | None,
    typer.Option("--run", metavar="ID", help="The run's id.", show_default="the last run"),
]

MetricsPort = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=65535,
        help="Port of the metrics for Prometheus, on this machine's own Ray.",
        show_default="any that is free",
    ),
]


def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print to the terminal, without what it would obey: nearly all that a verb shows was written
    by somebody else.

    Args:
        nl: End the line.
        err: Print to stderr.
    """
    typer.echo(printable(text, lines=True), nl=nl, err=err)


def opened(
    spec_path: Path, storage: str | None, *, assume: bool = False, retrains: bool = False
) -> tuple[Any, Any, Any, Any]:
    """Load a spec and make its plan: of an unfinished run, with the data that it began with.

    Args:
        assume: Plan as if the store were empty, and take the size of the data from ``pairs:``
            where the spec gives it.
        retrains: Plan a retraining of the champion.

    Returns:
        The spec, its store, the plan, and the data sources the plan was made for.

    Raises:
        ValueError: The spec is invalid, or there is no champion to retrain.
    """
    from pipelines.dag import plan, sources
    from pipelines.dag.champion import Champion
    from pipelines.runs.continued import continued_plan
    from pipelines.spec.loading import load
    from pipelines.store import remote
    from pipelines.store.artifacts import Store

    loaded = load(spec_path)
    remote.export_settings(loaded.s3.variables())
    nowhere = os.devnull if assume else None  # an empty store
    store = Store.at(storage or nowhere or loaded.storage).check_access()
    found = sources.identify_all(loaded, assume)
    find = Champion.current if retrains else Champion.current_if_complete
    champion = find(store, loaded.name)
    if retrains and champion is None:
        raise ValueError(
            f"{loaded.name} has no champion in {store.root} to retrain; `ediffi run` trains one"
        )
    again = partial(plan.make, loaded, store, champion=champion, retrain=retrains)
    made = again(found)
    if not assume:
        made = continued_plan(made, store, again)
    return loaded, store, made, made.sources


def asked_execution(spec: Path | None, storage: str | None, run_id: str | None) -> tuple[Any, Any]:
    """The store and an execution: ``run_id``, else the last one of the spec's pipeline, else the
    last one of all.

    Raises:
        ValueError: There is no such execution.
    """
    from pipelines.runs.execution import by_id, latest
    from pipelines.store.artifacts import Store

    pipeline = None
    if spec is not None:
        from pipelines.spec.loading import load
        from pipelines.store import remote

        loaded = load(spec)
        remote.export_settings(loaded.s3.variables())
        pipeline, storage = loaded.name, storage or loaded.storage
    store = Store.at(storage or DEFAULT_STORAGE).check_access()
    found = by_id(store, run_id) if run_id else latest(store, pipeline)
    if found is None:
        what = f"no run {run_id}" if run_id else "no run"
        raise ValueError(
            f"{what} in {store.root}; start one with `ediffi run SPEC`, or give --storage"
        )
    return store, found


def asked_tree(storage: str | None, run_id: str | None) -> tuple[Any, Any, Any]:
    """The store, an execution, and its expert tree with the model's current aliases.

    Raises:
        ValueError: There is no such execution, or its tree is not written yet.
    """
    from pipelines.models.champions import run_aliases

    store, execution = asked_execution(None, storage, run_id)
    found = store.read_json(f"executions/{execution.id}.tree.json")
    if found is None:
        raise ValueError(f"run {execution.id} has no tree yet; it is {execution.state}")
    found["labels"] = run_aliases(store, execution.pipeline, execution.nodes)
    return store, execution, found


def tell_copy(record: Callable[[], str], experiment: str) -> None:
    """Copy a report to MLflow, and say so. The report counts, so a failure is only told.

    Args:
        record: writes the copy, and returns MLflow's address.
        experiment: the experiment that it is in.
    """
    from pipelines.lineage.address import without_credentials
    from pipelines.lineage.delivery import one_line

    try:
        uri = record()
    except Exception as error:  # whatever MLflow's back end raises
        echo(f"MLflow has no copy of the report ({one_line(error)})", err=True)
        return
    echo(f"MLflow at {without_credentials(uri)} has a copy, in the experiment {experiment}")


def is_dir(output: Path, option: str = "--output") -> bool:
    """Whether it is a folder; ValueError for a path that the system does not take."""
    try:
        return output.is_dir()
    except OSError as error:  # a name that is too long
        raise ValueError(
            f"{output} cannot be written ({error.strerror or error}); give another path with "
            f"{option}"
        ) from error


def writable(output: Path, option: str = "--output") -> None:
    """Check that a file can be written before the work for it begins.

    Raises:
        ValueError: It is a folder, or its folder is missing or read-only.
    """
    if is_dir(output, option):
        raise ValueError(f"{output} is a folder; name a file with {option}")
    if not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
        raise ValueError(f"{output} cannot be written; give a writable path with {option}")


def writable_folder(output: Path, option: str = "--output") -> None:
    """Check that files can be written into a folder, which need not exist yet.

    Raises:
        ValueError: It, or what it would be in, is a file or read-only.
    """
    there = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file; name a folder with {option}")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{output} cannot be written; give a writable folder with {option}")
