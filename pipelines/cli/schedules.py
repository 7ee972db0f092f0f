"""The verb that runs another verb on a cron schedule."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.app import DEFAULT_STORAGE, AsJson, SomeStorage, app, echo, opened


@app.command(epilog='Example:  ediffi schedule mine.yaml --cron "0 3 * * 1" --verb run')
def schedule(
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="SPEC",
            help="The pipeline's YAML file, read anew at every run.",
            show_default=False,
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- OPTIONS", help="More options of the verb.", show_default="none"),
    ] = None,
    line: Annotated[
        str,
        typer.Option(
            "--cron",
            metavar="LINE",
            help="When to run: minute, hour, day, month, weekday (0 is Sunday). Required, except "
            "with --list.",
        ),
    ] = "",
    verb: Annotated[
        str, typer.Option(metavar="VERB", help="The verb to run: retrain or run.")
    ] = "retrain",
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Time zone of the schedule.")
    ] = "UTC",
    now: Annotated[
        bool, typer.Option("--once", help="Run the verb once, now, and exit with its code.")
    ] = False,
    show: Annotated[
        bool,
        typer.Option("--list", help="List the store's schedules with their last and next runs."),
    ] = False,
    events: Annotated[
        int,
        typer.Option(
            "--events",
            metavar="N",
            help="With --list: how many of the last events to show: what ran, was skipped or "
            "missed, and why.",
        ),
    ] = 5,
    storage: SomeStorage = None,
    as_json: AsJson = False,
) -> None:
    """Retrain or run a pipeline on a cron schedule.

    Runs of a pipeline never overlap. Runs that were missed while the scheduler was down are made
    up for once. When nothing has changed, nothing is run. On SIGTERM or Ctrl-C a running verb
    saves its work and the scheduler ends.
    """
    from pipelines.executor.stopping import Stop
    from pipelines.jobs import schedule as schedules
    from pipelines.jobs.child import RECORD_S
    from pipelines.jobs.cron import cron_times
    from pipelines.jobs.schedule_state import (
        Schedule,
        ScheduleState,
        list_schedules,
        scheduler_lock,
    )
    from pipelines.store.artifacts import Store

    if show:
        at = _store(spec, storage)
        rows = list_schedules(at, datetime.now(UTC))
        echo(json.dumps(rows, indent=1) if as_json else _table(rows, at.root, events))
        return
    if spec is None or not line:
        raise ValueError('give a spec and its times: `ediffi schedule SPEC --cron "0 3 * * 1"`')
    if verb not in schedules.VERBS:
        raise ValueError(
            f"--verb {verb!r} cannot be scheduled; write {' or '.join(schedules.VERBS)}"
        )
    times = cron_times(line, timezone)
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
        echo(f"{asked.format_time(datetime.now(UTC), seconds=True)}  {said}")

    with scheduler_lock(store, asked.pipeline), Stop() as stop:
        kept = ScheduleState(store, asked, datetime.now(UTC), say)
        idle = partial(_idle, spec, store, verb)
        grace_s = pipeline.grace_s + RECORD_S
        tick = partial(schedules.run_verb, asked, store, idle, say, stop, grace_s=grace_s)
        if now:
            raise SystemExit(schedules.run_tick(asked, kept, tick, say, datetime.now(UTC)).code)
        due = asked.format_time(times.after(datetime.now(UTC)))
        say(f'{verb} {asked.pipeline} at "{line}" ({timezone}), next {due}')
        schedules.run_schedule(asked, kept, tick, say, stop, times=times)
        say(f"ends: stopped by {stop.signal.name if stop.signal else 'nobody'}")


def _loaded(spec: Path) -> Any:
    from pipelines.spec import loading as specs
    from pipelines.store import remote

    loaded = specs.load(spec)
    remote.export_settings(loaded.s3.variables())
    return loaded


def _store(spec: Path | None, storage: str | None) -> Any:
    from pipelines.store.artifacts import Store

    found = storage or (_loaded(spec).storage if spec else DEFAULT_STORAGE)
    return Store.at(found).check_access()


def _idle(spec: Path, store: Any, verb: str) -> str:
    """Why a run is not needed now; empty if it is. `retrain` finds out by itself."""
    from pipelines.runs.lease import is_driven

    loaded = _loaded(spec)
    if is_driven(store, loaded.name):
        return f"pipeline {loaded.name} is being run already"
    if verb != "run":
        return ""
    _, _, made, _ = opened(spec, store.root)
    done = all(v.cached for v in made.verdicts.values())
    return f"nothing changed, all {len(made.verdicts)} nodes are done" if done else ""


def _table(rows: list[dict[str, Any]], root: str, events: int) -> str:
    from pipelines.formatting import clock
    from pipelines.jobs.schedule_state import Schedule

    if not rows:
        return f"no schedules in {root}"
    lines: list[str] = []
    for row in rows:
        about = {k: row[k] for k in ("pipeline", "spec", "verb", "arguments", "cron", "timezone")}
        schedule = Schedule(**about)
        last = row["last"]
        was = (
            f"{schedule.format_time(datetime.fromisoformat(last['started']))} {last['state']}"
            if last
            else "never"
        )
        said = f": {last['said']}" if last.get("said") else ""
        lines += [
            f"{schedule.pipeline}",
            f"  what  {schedule.verb} {schedule.spec} {' '.join(schedule.arguments)}".rstrip(),
            f'  when  "{schedule.cron}" ({schedule.timezone})',
            f"  last  {was}{said}",
            f"  next  {schedule.format_time(datetime.fromisoformat(row['next']))}"
            + ("" if row["kept_here"] else ", but no scheduler is running here"),
        ]
        for event in row["calendar"][max(0, len(row["calendar"]) - events) :]:
            due = schedule.format_time(datetime.fromisoformat(event["due"]))
            took = f" in {clock(event['took_s'])}" if event.get("took_s") else ""
            why = f": {event['said']}" if event["said"] else ""
            lines.append(f"        {due}  {event['state']}{took}{why}")
    return "\n".join(lines)
