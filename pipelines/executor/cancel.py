"""Giving up a run: word in the store, which its driver looks for wherever it runs."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from pipelines.executor.stopping import Stop
from pipelines.runs.execution import UNFINISHED, Execution, by_id, cancel_word, now
from pipelines.runs.lease import holder_of, is_driven, only_driver
from pipelines.store.artifacts import Store

LOOK_EVERY_S = 2.0


def cancel(store: Store, execution: Execution) -> str:
    """Has a run end and keep its checkpoints; → what to say of it.

    Raises:
        ValueError: It has ended already.
    """
    if execution.state not in UNFINISHED:
        raise ValueError(f"run {execution.id} is {execution.state}; there is nothing to cancel")
    by = f"{socket.gethostname()}, process {os.getpid()}"
    word = {"by": by, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    store.write_json(cancel_word(execution.id), word)
    if is_driven(store, execution.pipeline):
        driver = holder_of(store, execution.pipeline)
        return (
            f"{execution.id}: its driver ({driver}) has its training nodes save, and ends; "
            "`ediffi status --follow` shows it"
        )
    with only_driver(store, execution.pipeline):
        return mark(store, by_id(store, execution.id) or execution)


def mark(store: Store, execution: Execution) -> str:
    """Ends the record of a run that no driver works on; its lease is held."""
    if execution.state not in UNFINISHED:
        return f"{execution.id} has ended meanwhile: {execution.state}"
    execution.state, execution.ended = "cancelled", now()
    for record in execution.nodes.values():
        if record["state"] in ("running", "waiting", "interrupted"):
            record["state"] = "cancelled"
    execution.save(store)
    said = f"{execution.id}: cancelled; it had no driver. What it has finished or saved is kept"
    if uri := execution.tracking.get("uri"):
        from pipelines.lineage.writer import Writer

        try:
            Writer(uri, execution.pipeline, execution.id, store).cancel()
        except Exception as error:  # whatever MLflow's back end raises
            kind = type(error).__name__
            said += f". MLflow is away ({kind}): the pipeline's next run ends its runs there"
    return said


@contextlib.contextmanager
def heard(store: Store, execution: str, stop: Stop) -> Iterator[None]:
    """Has ``stop`` know when somebody cancels the run."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, ValueError):  # a store that is away; later then
                if word := store.read_json(cancel_word(execution)):
                    stop.cancelled = word["by"]
                    return
            over.wait(LOOK_EVERY_S)

    threading.Thread(target=watch, name="cancel", daemon=True).start()
    try:
        yield
    finally:
        over.set()
