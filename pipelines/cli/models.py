"""Verbs that say which ensemble of a model is to be drawn with."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pipelines.cli.app import DEFAULT_STORAGE, AsJson, Storage, app

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A pipeline's name.")]
Why = Annotated[str, typer.Option(help="In your words; it is kept.")]


def stored(storage: str | None) -> Any:
    from pipelines.store.artifacts import Store

    return Store.at(storage or DEFAULT_STORAGE).check_access()


@app.command(
    epilog="\b\nExamples:\n  ediffi promote emoji-scenes\n"
    '  ediffi promote emoji-scenes 3 --why "its frogs are greener"'
)
def promote(
    model: Model,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHICH]", help="A version or the start of a fingerprint; else the candidate."
        ),
    ] = None,
    why: Why = "by hand",
    storage: Storage = None,
) -> None:
    """Makes an ensemble the champion of its model."""
    from pipelines.models import champions

    store = stored(storage)
    book = champions.read(store, model)
    wanted = book.find(model, which or "candidate")
    if book.champion and book.champion.fingerprint == wanted.fingerprint:
        typer.echo(f"{model}: {_name(book, wanted)} is the champion already")
    else:
        before = f" instead of {_name(book, book.champion)}" if book.champion else ""
        book = champions.crown(store, model, wanted.fingerprint, why)
        typer.echo(f"{model}: {_name(book, wanted)} is the champion{before}")
    _tell_mlflow(store, model)


@app.command(epilog='Example:  ediffi rollback emoji-scenes --why "its frogs are cacti"')
def rollback(model: Model, why: Why = "", storage: Storage = None) -> None:
    """Makes the champion before the champion again."""
    from pipelines.models import champions

    store = stored(storage)
    book = champions.roll_back(store, model, why)
    typer.echo(f"{model}: {_name(book, book.champion)} is the champion again")
    _tell_mlflow(store, model)


@app.command(
    epilog="\b\nExamples:\n  ediffi models\n  ediffi models emoji-scenes --json\n"
    "  ediffi models --sync"
)
def models(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="With its history; else all models.")
    ] = None,
    sync: Annotated[
        bool, typer.Option("--sync", help="Bring MLflow's versions and aliases up to it.")
    ] = False,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Lists the ensembles that were offered: which is champion, which candidate, and why."""
    from pipelines.models import champions
    from pipelines.reports import champions as champions_view

    store = stored(storage)
    names = [model] if model else champions.models(store)
    books = {name: champions.read(store, name) for name in names}
    if model and not books[model].history:
        raise ValueError(f"{model!r} has no ensemble in {store.root}; `ediffi run` offers one")
    found = {name: champions_view.data(store, book) for name, book in books.items()}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    elif not found:
        typer.echo(f"no models in {store.root} yet; `ediffi run` offers one")
    else:
        shown = (champions_view.text(n, d, with_history=bool(model)) for n, d in found.items())
        typer.echo("\n\n".join(shown))
    for name in names if sync else ():
        _tell_mlflow(store, name, loud=True)


def _name(book: Any, entry: Any) -> str:
    return f"version {book.version(entry.fingerprint)} ({entry.short})"


def _tell_mlflow(store: Any, model: str, loud: bool = False) -> None:
    """The store has it; that MLflow cannot be told now is no failure of the verb."""
    from pipelines.lineage import sync
    from pipelines.lineage.delivery import words

    try:
        uri = sync.sync(store, model)
    except Exception as error:  # whatever MLflow's back end raises
        again = "" if loud else ", or `ediffi models --sync`"
        typer.echo(
            f"MLflow was not told ({words(error)}); its aliases follow with the next run{again}",
            err=True,
        )
        return
    if loud:
        typer.echo(f"{model}: MLflow at {uri} has it", err=True)
