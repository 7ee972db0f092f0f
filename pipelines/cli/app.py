"""The root command, and the options and helpers that its verbs share."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.help import ByTask
from pipelines.formatting import printable

STORE_VARIABLE = "EDIFFI_STORE"

app = typer.Typer(
    cls=ByTask,
    help="Train ensembles of expert denoisers as a workflow DAG, and draw pictures with them.\n\n"
    "Run `ediffi VERB --help` for the options of a verb.",
    epilog="\b\nEnvironment:\n"
    f"  {STORE_VARIABLE}  the store, where --storage is not given\n"
    "  EDIFFI_DEBUG  1 shows errors as tracebacks\n"
    "  NO_COLOR      1 leaves out the colours of a terminal",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: the same on a terminal and in a pipe
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

DEFAULT_STORAGE = "ediffi-store"


def storage_option(default: str | bool = True, panel: str | None = None) -> Any:
    """``--storage``, whose value EDIFFI_STORE has where it is not given.

    Args:
        default: Which store it is without both, in words; True shows the parameter's default.
        panel: Section of the help.
    """
    return typer.Option(
        "--storage",
        envvar=STORE_VARIABLE,
        metavar="PATH",
        help="Folder or URL of the store.",
        show_default=default,
        rich_help_panel=panel,
    )


SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The pipeline's YAML file.")]
RunName = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run's id; or a pipeline's name or YAML file, for its last run.",
        show_default="the last run of all",
    ),
]
RunId = Annotated[str | None, typer.Option("--run", metavar="ID", hidden=True)]
"""What :data:`RunName` was called before."""

SpecStorage = Annotated[str | None, storage_option("the spec's `storage:`")]
"""The store of a verb that reads a spec."""

SomeStorage = Annotated[
    str | None, storage_option(f"the spec's `storage:`, else {DEFAULT_STORAGE}")
]
"""The store of a verb that may do without a spec."""

Storage = Annotated[str, storage_option()]
"""The store of a verb that takes no spec; :data:`DEFAULT_STORAGE` by default."""

MODEL_NAMES = (
    "One of: a pipeline's name, for the ensemble of its last run; NAME@champion, NAME@candidate or "
    "NAME@VERSION; models:/NAME@ALIAS, for MLflow's registry; the path of an ensemble.json."
)
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_NAMES)]
"""A trained ensemble."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, without doing it.")
]
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Do not ask. Only a terminal is asked, never a script."),
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


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        echo(f"ediffi {version('ediffi')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version, and end."
        ),
    ] = False,
) -> None: ...


def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print to the terminal, without what it would obey: nearly all that a verb shows was written
    by somebody else.

    Args:
        nl: End the line.
        err: Print to stderr.
    """
    typer.echo(printable(text, lines=True), nl=nl, err=err)


def echo_found(found: Any, as_text: Callable[[Any], str], as_json: bool = False) -> None:
    """Print what a verb has found.

    On a terminal, lines of a text are folded to its width, and states have colours.

    Args:
        as_text: Makes the text of it.
        as_json: Print it as JSON instead.
    """
    if as_json:
        echo(json.dumps(found, indent=1))
    elif sys.stdout.isatty():
        from pipelines.reports.live import LiveLines

        LiveLines().print_folded(as_text(found))
    else:
        echo(as_text(found))


def confirm(question: str, yes: bool) -> None:
    """Ask before something is replaced; a script, without a terminal to answer at, is not asked.

    Args:
        question: What would be done.
        yes: It is settled: do not ask.

    Raises:
        typer.Abort: The answer is no.
    """
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        with contextlib.redirect_stdout(sys.stderr):  # which may be piped into another program
            typer.confirm(printable(question), abort=True)


def existing_store(storage: str) -> Any:
    """A store to read from.

    Raises:
        ValueError: There is no such folder.
        StorageError: The bucket cannot be read.
    """
    from pipelines.store.artifacts import Store

    return Store.existing(storage)


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
    store = Store.at(nowhere or storage or loaded.storage).check_access()
    find = Champion.current if retrains else Champion.current_if_complete
    try:
        found = sources.identify_all(loaded, assume)
        champion = find(store, loaded.name)
        if retrains and champion is None:
            raise ValueError(
                f"{loaded.name} has no champion in {store.root} to retrain; `ediffi run` trains one"
            )
        again = partial(plan.make, loaded, store, champion=champion, retrain=retrains)
        made = again(found)
        if not assume:
            made = continued_plan(made, store, again)
    except ValueError as error:
        raise ValueError(f"{spec_path}: {error}") from error  # of several, as for `ediffi diff`
    return loaded, store, made, made.sources


def asked_execution(
    run: str | None, storage: str | None, old: str | None = None
) -> tuple[Any, Any]:
    """The store and a run of it.

    Args:
        run: As of :data:`RunName`.
        old: As of :data:`RunId`.

    Raises:
        ValueError: There is no such run.
    """
    from pipelines.runs.execution import by_id, latest

    if old is not None:
        echo("ediffi: warning: --run ID is now an argument, RUN", err=True)
    pipeline, storage = asked_pipeline(run, storage)
    store = existing_store(storage or DEFAULT_STORAGE)
    if old is not None:
        found = by_id(store, old)
    elif run is None or pipeline is not None:
        found = latest(store, pipeline)
    else:
        found = by_id(store, run) or latest(store, run)
    if found is None:
        named = old or (f"of {pipeline}" if pipeline else run)
        what = f"no run {named}" if named else "no run"
        raise ValueError(
            f"{what} in {store.root}; start one with `ediffi run SPEC`, list them with "
            "`ediffi runs`, or give --storage"
        )
    return store, found


def asked_pipeline(name: str | None, storage: str | None) -> tuple[str | None, str | None]:
    """The pipeline of a YAML file, and the store that it names; None if ``name`` is no file.

    Args:
        name: A file, or what else a verb takes in its place.
        storage: The store, which comes before the file's.
    """
    if name is None:
        return None, storage
    if not (Path(name).suffix in (".yaml", ".yml") or "/" in name or Path(name).is_file()):
        return None, storage
    from pipelines.spec.loading import load
    from pipelines.store import remote

    loaded = load(name)
    remote.export_settings(loaded.s3.variables())
    return loaded.name, storage or loaded.storage


def asked_tree(run: str | None, storage: str | None) -> tuple[Any, Any, Any]:
    """The store, a run, and its expert tree with the model's current aliases.

    Args:
        run: As of :data:`RunName`.

    Raises:
        ValueError: There is no such run, or its tree is not written yet.
    """
    from pipelines.models.champions import run_aliases

    store, execution = asked_execution(run, storage)
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
