"""Verbs for the model registry: which ensemble is champion, which is candidate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from pipelines.cli.app import (
    DEFAULT_STORAGE,
    AsJson,
    DryRun,
    Storage,
    Yes,
    app,
    confirm,
    echo,
    echo_found,
    existing_store,
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A pipeline's name.")]
BY_HAND = "by hand"


def why_option(default: str) -> Any:
    """``--why``, with its default in words."""
    return typer.Option(
        metavar="TEXT", help="Reason to record in the history.", show_default=default
    )


@app.command(
    epilog="\b\nExamples:\n  ediffi promote emoji-scenes\n"
    '  ediffi promote emoji-scenes 3 --why "its frogs are greener"'
)
def promote(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A pipeline's name, or NAME@WHICH.")
    ],
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="WHICH",
            help="A version's number, or the start of a fingerprint.",
            show_default="the candidate",
        ),
    ] = None,
    why: Annotated[str | None, why_option(BY_HAND)] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Make an ensemble the champion of its model.

    On a terminal it asks first.
    """
    from pipelines.models import champions

    name, _, version = model.partition("@")
    if version and which:
        raise ValueError(f"{model} and {which} both name an ensemble; keep one")
    store = existing_store(storage)
    book = champions.read(store, name)
    wanted = book.find(name, which or version or "candidate")
    before = book.champion
    if before and before.fingerprint == wanted.fingerprint:
        if why is not None:
            echo("note: nothing changes, so --why is not recorded", err=True)
        if not dry_run:  # it may be unsigned yet
            book = champions.promote(store, name, wanted.fingerprint, BY_HAND)
        said = f"{_name(book, wanted)} is the champion already{_signed(book, name, before)}"
        _tell(name, book, before, said, as_json, dry_run)
    else:
        instead = f" instead of {_name(book, before)}" if before else ""
        if not dry_run:
            confirm(f"{name}: make {_name(book, wanted)} the champion{instead}?", yes)
        book = champions.promote(
            store,
            name,
            wanted.fingerprint,
            BY_HAND if why is None else why,
            instead_of=before.fingerprint if before else None,
            dry_run=dry_run,
        )
        is_now = "would be" if dry_run else "is"
        said = f"{_name(book, wanted)} {is_now} the champion{instead}{_signed(book, name, before)}"
        _tell(name, book, before, said, as_json, dry_run)
    if not dry_run:
        _update_mlflow(store, name)


@app.command(epilog='Example:  ediffi rollback emoji-scenes --why "its frogs are cacti"')
def rollback(
    model: Model,
    why: Annotated[str, why_option("instead of the ensemble that was champion")] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again.

    On a terminal it asks first.
    """
    from pipelines.models import champions

    store = existing_store(storage)
    before = champions.read(store, model).champion
    book = champions.roll_back(store, model, why, dry_run=True)
    if not dry_run:
        confirm(f"{model}: make {_name(book, book.champion)} the champion again?", yes)
        instead_of = before.fingerprint if before else None
        book = champions.roll_back(store, model, why, instead_of=instead_of)
    is_now = "would be" if dry_run else "is"
    said = f"{_name(book, book.champion)} {is_now} the champion again{_signed(book, model, before)}"
    _tell(model, book, before, said, as_json, dry_run)
    if not dry_run:
        _update_mlflow(store, model)


def _tell(
    model: str, book: Any, before: Any, said: str, as_json: bool, dry_run: bool = False
) -> None:
    """Say who is the champion of a model, or would be.

    Args:
        book: the registry after the change.
        before: the champion before it.
    """
    told = {
        "model": model,
        "champion": {"version": book.version(book.champion.fingerprint), **asdict(book.champion)},
        "before": before and {"version": book.version(before.fingerprint), **asdict(before)},
        "changed": not before or before.fingerprint != book.champion.fingerprint,
        "dry_run": dry_run,
    }
    echo_found(told, lambda _: f"{model}: {said}", as_json)


@app.command(
    epilog="\b\nExamples:\n  ediffi models\n  ediffi models emoji-scenes --json\n"
    "  ediffi models emoji-scenes@champion\n"
    "  ediffi models emoji-scenes --compare 1 champion\n  ediffi models --sync"
)
def models(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Show this model and its history; or one ensemble, as NAME@champion, "
            "NAME@candidate or NAME@VERSION.",
            show_default="all models",
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
    numbers, beginnings of fingerprints, champion or candidate. With --sync it exits with code 1 if
    MLflow could not be updated.
    """
    from pipelines.models import champions
    from pipelines.reports import champion_changes
    from pipelines.reports import champions as champions_view

    store = existing_store(storage)
    name, _, which = (model or "").partition("@")
    if compare:
        if not name or sync or which:
            raise ValueError("--compare needs the name of a MODEL, and no --sync")
        book = champions.read(store, name)
        old, new = (book.find(name, one) for one in compare)
        title = f"{name}: {_name(book, old)} → {_name(book, new)}"
        changes = champion_changes.compare(store, old, new)
        echo_found(changes, lambda of: f"{title}, {champion_changes.text(of)}", as_json)
        return
    names = [name] if model is not None else champions.models(store)
    books = {one: champions.read(store, one) for one in names}
    if model is not None and not books[name].history:
        raise ValueError(f"{name!r} has no ensemble in {store.root}; `ediffi run` registers one")
    found = {one: champions_view.data(store, one, book) for one, book in books.items()}
    if which:
        only = books[name].find(name, which).fingerprint
        found[name] = {
            part: [event for event in events if event["fingerprint"] == only]
            for part, events in found[name].items()
        }
    if found or as_json:
        echo_found(
            found,
            lambda of: "\n\n".join(
                champions_view.text(n, d, with_history=model is not None) for n, d in of.items()
            ),
            as_json,
        )
    else:
        echo(f"no models in {store.root} yet; `ediffi run` registers one")
    updated = [_update_mlflow(store, one, loud=True) for one in (names if sync else ())]
    if not all(updated):
        raise SystemExit(1)


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


def _update_mlflow(store: Any, model: str, loud: bool = False) -> bool:
    """Bring MLflow's registry up to date. The store counts, so a failure is only reported.

    Returns:
        Whether it is up to date.
    """
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
        return False
    if loud:
        echo(f"{model}: MLflow at {uri} is up to date", err=True)
    return True
