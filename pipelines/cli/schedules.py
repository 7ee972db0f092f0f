"""The verb that runs another at the times of a cron line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.app import DEFAULT_STORAGE, AsJson, Storage, app, opened


@app.command(epilog='Example:  ediffi schedule mine.yaml --cron "0 3 * * 1" --verb run')
def schedule(
    spec: Annotated[
        Path | None, typer.Argument(metavar="SPEC", help="The pipeline's YAML; read every time.")
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTIONS]", help="Further ones of the verb."),
    ] = None,
    line: Annotated[
        str,
        typer.Option("--cron", metavar="LINE", help="Minute, hour, day, month, weekday (0: Sun)."),
    ] = "",
    verb: Annotated[str, typer.Option(metavar="VERB", help="retrain or run.")] = "retrain",
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="Of the times.")] = "UTC",
    now: Annotated[
        bool, typer.Option("--once", help="Do it once, now, and end with its exit code.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Only say what the store has, with last and next times.")
    ] = False,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Retrains a pipeline, or runs it, at the times of a cron line.

    Never twice at once. What is missed while this is not running is caught up once; where nothing
    changed nothing is done. SIGTERM or Ctrl-C has the verb at work save and leave.
    """
    from pipelines.executor.stopping import Stop
    from pipelines.jobs import schedule as schedules
    from pipelines.jobs.cron import times
    from pipelines.jobs.schedule_state import Kept, Schedule, listed, only_one
    from pipelines.store.artifacts import Store

    if show:
        at = _store(spec, storage)
        rows = listed(at, datetime.now(UTC))
        typer.echo(json.dumps(rows, indent=1) if as_json else _table(rows, at.root))
        return
    if spec is None or not line:
        raise ValueError('give a spec and its times: `ediffi schedule SPEC --cron "0 3 * * 1"`')
    if verb not in schedules.VERBS:
        raise ValueError(
            f"--verb {verb!r} cannot be scheduled; {' and '.join(schedules.VERBS)} can"
        )
    trigger = times(line, timezone)
    pipeline = _loaded(spec)
    asked = Schedule(
        pipeline=pipeline.name,
        spec=str(spec.absolute()),
        verb=verb,
        arguments=tuple(arguments or ()),
        cron=line,
        timezone=timezone,
    )
    store = Store.open(_store(spec, storage).root)

    def say(said: str) -> None:
        typer.echo(f"{asked.at(datetime.now(UTC), seconds=True)}  {said}")

    with only_one(store, asked.pipeline), Stop() as stop:
        kept = Kept(store, asked, datetime.now(UTC), say)
        idle = partial(_idle, spec, store, verb)
        tick = partial(schedules.perform, asked, store, idle, say, stop)
        if now:
            raise SystemExit(schedules.once(asked, kept, tick, say, datetime.now(UTC)).code)
        due = asked.at(trigger.get_next_fire_time(None, datetime.now(UTC)))
        say(f'{verb} {asked.pipeline} at "{line}" ({timezone}), next {due}')
        schedules.keep(asked, kept, tick, say, stop, times=trigger)
        say(f"ends: told to by {stop.signal.name if stop.signal else 'nobody'}")


def _loaded(spec: Path) -> Any:
    from pipelines.spec import pipeline as specs
    from pipelines.store import remote

    loaded = specs.load(spec)
    remote.export_settings(loaded.s3.variables())
    return loaded


def _store(spec: Path | None, storage: str | None) -> Any:
    from pipelines.store.artifacts import Store

    found = storage or (_loaded(spec).storage if spec else DEFAULT_STORAGE)
    return Store.at(found).check_access()


def _idle(spec: Path, store: Any, verb: str) -> str:
    """Why there is no need to begin; nothing if there is one. `retrain` finds out by itself."""
    from pipelines.runs.lease import is_driven

    loaded = _loaded(spec)
    if is_driven(store, loaded.name):
        return f"pipeline {loaded.name} is being run already"
    if verb != "run":
        return ""
    _, _, made, _ = opened(spec, store.root)
    done = all(v.cached for v in made.verdicts.values())
    return f"nothing changed, all {len(made.verdicts)} nodes are done" if done else ""


def _table(rows: list[dict[str, Any]], root: str) -> str:
    from pipelines.jobs.schedule_state import Schedule

    if not rows:
        return f"no schedules in {root}"
    lines = []
    for row in rows:
        about = {k: row[k] for k in ("pipeline", "spec", "verb", "arguments", "cron", "timezone")}
        schedule = Schedule(**about)
        last = row["last"]
        was = (
            f"{schedule.at(datetime.fromisoformat(last['started']))} {last['state']}"
            if last
            else "never"
        )
        said = f": {last['said']}" if last.get("said") else ""
        lines += [
            f"{schedule.pipeline}",
            f"  what  {schedule.verb} {schedule.spec} {' '.join(schedule.arguments)}".rstrip(),
            f'  when  "{schedule.cron}" ({schedule.timezone})',
            f"  last  {was}{said}",
            f"  next  {schedule.at(datetime.fromisoformat(row['next']))}"
            + ("" if row["kept_here"] else ", but no scheduler is at work here"),
        ]
    return "\n".join(lines)
