"""Verbs for the model registry: which ensemble is champion, which is candidate."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pipelines.cli.app import DEFAULT_STORAGE, AsJson, Storage, app, echo

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A pipeline's name.")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="Reason to record in the history.")]


def stored(storage: str) -> Any:
    """The store, which must be reachable."""
    from pipelines.store.artifacts import Store

    return Store.at(storage).check_access()


@app.command(
    epilog="\b\nExamples:\n  ediffi promote emoji-scenes\n"
    '  ediffi promote emoji-scenes 3 --why "its frogs are greener"'
)
def promote(
    model: Model,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="WHICH",
            help="A version's number, or the start of a fingerprint.",
            show_default="the candidate",
        ),
    ] = None,
    why: Why = "by hand",
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Make an ensemble the champion of its model."""
    from pipelines.models import champions

    store = stored(storage)
    book = champions.read(store, model)
    wanted = book.find(model, which or "candidate")
    was = book.champion
    book = champions.promote(store, model, wanted.fingerprint, why)
    signed = _signed(book, model, was)
    if was and was.fingerprint == wanted.fingerprint:
        echo(f"{model}: {_name(book, wanted)} is the champion already{signed}")
    else:
        before = f" instead of {_name(book, was)}" if was else ""
        echo(f"{model}: {_name(book, wanted)} is the champion{before}{signed}")
    _update_mlflow(store, model)


@app.command(epilog='Example:  ediffi rollback emoji-scenes --why "its frogs are cacti"')
def rollback(
    model: Model,
    why: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Reason to record in the history.",
            show_default="instead of the ensemble that was champion",
        ),
    ] = "",
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Make the previous champion the champion again."""
    from pipelines.models import champions

    store = stored(storage)
    was = champions.read(store, model).champion
    book = champions.roll_back(store, model, why)
    signed = _signed(book, model, was)
    echo(f"{model}: {_name(book, book.champion)} is the champion again{signed}")
    _update_mlflow(store, model)


@app.command(
    epilog="\b\nExamples:\n  ediffi models\n  ediffi models emoji-scenes --json\n"
    "  ediffi models emoji-scenes --compare 1 champion\n  ediffi models --sync"
)
def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Show this model and its history.", show_default="all models"
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="OLD NEW",
            help="Show what changed between two versions of MODEL.",
            show_default="no comparison",
        ),
    ] = None,
    sync: Annotated[
        bool, typer.Option("--sync", help="Update MLflow's registry from the store.")
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """List models with their champion and candidate.

    With MODEL, also the history: which ensemble was promoted when, and why. Versions to compare are
    numbers, beginnings of fingerprints, champion or candidate.
    """
    from pipelines.models import champions
    from pipelines.reports import champion_changes
    from pipelines.reports import champions as champions_view

    store = stored(storage)
    if compare:
        if not model or sync:
            raise ValueError("--compare needs a MODEL, and no --sync")
        book = champions.read(store, model)
        old, new = (book.find(model, which) for which in compare)
        changes = champion_changes.compare(store, old, new)
        title = f"{model}: {_name(book, old)} → {_name(book, new)}"
        comparison = f"{title}, {champion_changes.text(changes)}"
        echo(json.dumps(changes, indent=1) if as_json else comparison)
        return
    names = [model] if model else champions.models(store)
    books = {name: champions.read(store, name) for name in names}
    if model and not books[model].history:
        raise ValueError(f"{model!r} has no ensemble in {store.root}; `ediffi run` registers one")
    found = {name: champions_view.data(store, name, book) for name, book in books.items()}
    if as_json:
        echo(json.dumps(found, indent=1))
    elif not found:
        echo(f"no models in {store.root} yet; `ediffi run` registers one")
    else:
        shown = (champions_view.text(n, d, with_history=bool(model)) for n, d in found.items())
        echo("\n\n".join(shown))
    for name in names if sync else ():
        _update_mlflow(store, name, loud=True)


def _name(book: Any, entry: Any) -> str:
    return f"version {book.version(entry.fingerprint)} ({entry.short})"


def _signed(book: Any, model: str, before: Any) -> str:
    """Whether the champion is signed, if that or the champion before is."""
    from pipelines.models.signing import SIGNING_KEY

    if book.signers(model, book.champion.fingerprint):
        return ", and signed"
    if before and book.signers(model, before.fingerprint):
        return f", but not signed, as the one before: {SIGNING_KEY} is not set"
    return ""


def _update_mlflow(store: Any, model: str, loud: bool = False) -> None:
    """Bring MLflow's registry up to date. The store counts, so a failure is only reported."""
    from pipelines.lineage import sync
    from pipelines.lineage.delivery import one_line

    try:
        uri = sync.sync_model(store, model)
    except Exception as error:  # whatever MLflow's back end raises
        again = "" if loud else ", and so does `ediffi models --sync`"
        echo(
            f"MLflow could not be updated ({one_line(error)}); the next run updates it{again}",
            err=True,
        )
        return
    if loud:
        echo(f"{model}: MLflow at {uri} is up to date", err=True)
