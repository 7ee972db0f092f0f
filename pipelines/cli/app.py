"""The command itself, and what its verbs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Train ensembles of expert denoisers as a workflow DAG, and draw with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The pipeline's YAML.")]
Storage = Annotated[str | None, typer.Option(help="Folder or URL of the store; else the spec's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
RunId = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="Of which run; else the last.")
]
DEFAULT_STORAGE = "ediffi-store"


def opened(
    spec_path: Path, storage: str | None, *, assume: bool = False, retrains: bool = False
) -> tuple[Any, Any, Any, Any]:
    """Spec, store, plan, and the sources it was made for.

    Args:
        assume: looks neither into the spec's store, as if nothing were done, nor at data whose size
            the spec gives as ``pairs:``.
        retrains: whether the plan shall go on from the champion; ValueError if there is none.
    """
    from pipelines.dag import plan, sources
    from pipelines.dag.champion import Champion
    from pipelines.spec import pipeline as spec
    from pipelines.store import remote
    from pipelines.store.artifacts import Store

    loaded = spec.load(spec_path)
    remote.use(loaded.s3.variables())
    nowhere = os.devnull if assume else None  # a store with nothing in it
    store = Store.at(storage or nowhere or loaded.storage).greet()
    found = sources.identify_all(loaded, assume)
    find = Champion.standing if retrains else Champion.to_beat
    champion = find(store, loaded.name)
    if retrains and champion is None:
        raise ValueError(
            f"{loaded.name} has no champion in {store.root} to go on from; `ediffi run` trains one"
        )
    made = plan.make(loaded, store, found, champion=champion, warm=retrains)
    return loaded, store, made, found


def asked_execution(spec: Path | None, storage: str | None, run_id: str | None) -> tuple[Any, Any]:
    """The store, and the execution that was asked for (the last one by default)."""
    from pipelines.runs.execution import by_id, latest
    from pipelines.store.artifacts import Store

    pipeline = None
    if spec is not None:
        from pipelines.spec import pipeline as specs
        from pipelines.store import remote

        loaded = specs.load(spec)
        remote.use(loaded.s3.variables())
        pipeline, storage = loaded.name, storage or loaded.storage
    store = Store.at(storage or DEFAULT_STORAGE).greet()
    found = by_id(store, run_id) if run_id else latest(store, pipeline)
    if found is None:
        what = f"no run {run_id}" if run_id else "no run"
        raise ValueError(
            f"{what} in {store.root}; start one with `ediffi run SPEC`, or give --storage"
        )
    return store, found


def asked_tree(storage: str | None, run_id: str | None) -> tuple[Any, Any, Any]:
    """The store, the execution, and its expert tree with what the ensemble is by now."""
    from pipelines.models.champions import marks_of

    store, execution = asked_execution(None, storage, run_id)
    found = store.read_json(f"executions/{execution.id}.tree.json")
    if found is None:
        raise ValueError(f"run {execution.id} has no tree yet; it is {execution.state}")
    found["labels"] = marks_of(store, execution.pipeline, execution.nodes)
    return store, execution, found


def writable(output: Path, option: str = "--output") -> None:
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output} cannot be written; give a place that can with {option}")
