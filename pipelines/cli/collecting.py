"""The verb that removes what is no longer needed from a store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from pipelines.cli.app import (
    DEFAULT_STORAGE,
    AsJson,
    Storage,
    app,
    echo,
    echo_found,
    existing_store,
)


@app.command(epilog="\b\nExamples:\n  ediffi gc\n  ediffi gc --keep 4 --delete")
def gc(
    keep: Annotated[
        int,
        typer.Option(
            "--keep",
            metavar="N",
            help="Previous champions of each model to keep, for `ediffi rollback`.",
        ),
    ] = 2,
    runs: Annotated[
        int,
        typer.Option(
            "--runs",
            metavar="N",
            help="Last runs of each pipeline whose results and records to keep.",
        ),
    ] = 1,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it; without this nothing is changed.")
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Show, or remove, the results that are no longer needed.

    Kept are champions, candidates and previous champions with all that they were made from, the
    results of unfinished runs and of the last ones, and the shards of the data that these read. It
    may run beside other runs. An ensemble.json outside the store is not known to it.
    """
    from pipelines.runs.collect import collect, find_garbage, removed_versions
    from pipelines.runs.needed import Policy

    store, policy = existing_store(storage), Policy(champions=keep, runs=runs)

    def log(line: str) -> None:
        echo(line, err=True)

    found = collect(store, policy, log) if delete else find_garbage(store, policy)
    kept = {kind: asdict(amount) for kind, amount in found.kept.items()}
    told = {"deleted": delete, "removed": found.removed, "kept": kept, "notes": found.notes}
    echo_found(told, lambda _: _table(found, delete), as_json)
    for model, fingerprints in removed_versions(store, found).items() if delete else ():
        _forget_in_mlflow(store, model, fingerprints)


def _table(found: Any, deleted: bool) -> str:
    from pipelines.formatting import align_columns, byte_size

    rows = [("", "removed" if deleted else "to remove", "kept")]
    for kind, kept in found.kept.items():
        both = (found.amount(kind), kept)
        rows.append((kind, *(f"{a.count:,}, {byte_size(a.bytes)}" for a in both)))
    lines = [*align_columns(rows, right=(1, 2)), *found.notes]
    if not deleted and any(found.removed.values()):
        lines += ["", "nothing was changed; the same command with --delete removes it"]
    return "\n".join(lines)


def _forget_in_mlflow(store: Any, model: str, fingerprints: list[str]) -> None:
    """Delete the versions in MLflow too. The store counts, so a failure is only reported."""
    from pipelines.lineage import sync
    from pipelines.lineage.delivery import one_line

    try:
        count = sync.forget_versions(store, model, fingerprints)
    except Exception as error:  # whatever MLflow's back end raises
        echo(f"MLflow still lists removed versions of {model}: {one_line(error)}", err=True)
        return
    if count:
        echo(f"removed {count} versions of {model} from MLflow", err=True)
