"""Cancel a run by a request in the store, which its driver polls on whatever machine it runs."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from pipelines.executor.stopping import Stop
from pipelines.runs.execution import UNFINISHED, Execution, by_id, cancel_request_path, now
from pipelines.runs.lease import holder_of, is_driven, only_driver
from pipelines.store.artifacts import Store

POLL_EVERY_S = 2.0


def cancel(store: Store, execution: Execution) -> str:
    """Ask a run to end and keep its checkpoints.

    Returns:
        What was done, for the user.

    Raises:
        ValueError: The run has already ended.
    """
    if execution.state not in UNFINISHED:
        raise ValueError(f"run {execution.id} is {execution.state}; there is nothing to cancel")
    by = f"{socket.gethostname()}, process {os.getpid()}"
    request = {"by": by, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    store.write_json(cancel_request_path(execution.id), request)
    if is_driven(store, execution.pipeline):
        driver = holder_of(store, execution.pipeline)
        return (
            f"{execution.id}: asked its driver ({driver}) to save its training nodes and exit; "
            "watch it with `ediffi status --follow`"
        )
    with only_driver(store, execution.pipeline):
        return mark_cancelled(store, by_id(store, execution.id) or execution)


def mark_cancelled(store: Store, execution: Execution) -> str:
    """Mark a run without a driver as cancelled, in the store and in MLflow.

    The caller holds the pipeline's lease.

    Returns:
        What was done, for the user.
    """
    if execution.state not in UNFINISHED:
        return f"{execution.id} has ended in the meantime: {execution.state}"
    execution.state, execution.ended = "cancelled", now()
    for record in execution.nodes.values():
        if record["state"] in ("running", "waiting", "interrupted"):
            record["state"] = "cancelled"
    execution.save(store)
    done = f"{execution.id}: cancelled; it had no driver. Finished nodes and checkpoints are kept"
    if uri := execution.tracking.get("uri"):
        from pipelines.lineage.address import to_connect
        from pipelines.lineage.writer import Writer

        try:
            Writer(to_connect(uri), execution.pipeline, execution.id, store).cancel()
        except Exception as error:  # MLflow's back ends raise errors of many kinds
            kind = type(error).__name__
            done += (
                f". MLflow cannot be reached ({kind}): the pipeline's next run ends its runs there"
            )
    return done


@contextlib.contextmanager
def watch_for_cancel(store: Store, execution: str, stop: Stop) -> Iterator[None]:
    """Watch for a cancel request while the context is open; sets ``stop.cancelled``.

    Args:
        execution: id of the run.
        stop: the driver's stop request.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, ValueError):  # an unreachable store: try again later
                if request := store.read_json(cancel_request_path(execution)):
                    stop.cancelled = request["by"]
                    return
            over.wait(POLL_EVERY_S)

    threading.Thread(target=watch, name="cancel", daemon=True).start()
    try:
        yield
    finally:
        over.set()
