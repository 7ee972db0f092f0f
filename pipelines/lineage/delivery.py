"""The thread that delivers spooled items to MLflow, in order and in batches.

During an outage it waits and retries. An item that MLflow rejects is named and set aside: retrying
would not help, and everything behind it would wait. Most of MLflow's errors do not say which of the
two it is; then the item alone is at fault only if MLflow takes another write meanwhile.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from pipelines.formatting import printable
from pipelines.lineage.address import to_keep
from pipelines.lineage.spool import FULL, InMemory, Item, Spool
from pipelines.lineage.writer import BATCH, Writer
from pipelines.store.fenced import OwnerChanged
from pipelines.store.remote import StorageError

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
MAX_TRIES = 4
"""Tries of an item in a row that fail while MLflow takes other writes."""

OUTAGE_SIGNS = {
    "Connection refused": "connection refused",
    "Connection aborted": "connection aborted",
    "Connection reset": "connection reset",
    "Remote end closed connection": "connection closed",
    "Connection broken": "connection closed",
    "Response ended prematurely": "connection closed",
    "IncompleteRead": "connection closed",
    "Broken pipe": "connection closed",
    "timed out": "timed out",
    "Name or service not known": "name or service not known",
    "Temporary failure in name resolution": "temporary failure in name resolution",
}
"""Parts of error texts that name the cause of an outage, with the words that the user reads. A
server that dies while it answers ends the connection in any of five ways."""

MLFLOW_PREFIX = re.compile(r"^API request to \S+ failed with exception ")

Batch = list[Item] | str
"""Items for one call, or an error text for a damaged line."""

T = TypeVar("T")

REJECTION_CODES = {
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_CONFLICT",
    "RESOURCE_DOES_NOT_EXIST",
}
"""MLflow's error codes for a faulty request. BAD_REQUEST and INTERNAL_ERROR are not among them: a
database that is read-only after a failover, closes its connections or has none left is reported so.
"""

TRANSIENT_CODES = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"}
TRANSIENT_CODES |= {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}
"""MLflow's error codes that will pass, whatever the request. With missing access, the items are
delivered once the server or the password is corrected."""

NAMED = 10
"""Names of rejected items in the message at the end of a run."""


class DeliveryExpired(Exception):
    """The time that a finished run waits for delivery has passed."""


class ItemFailed(Exception):
    """MLflow takes other writes, but not this one; it is tried again before it is set aside."""


def is_rejection(error: Exception) -> bool:
    """Whether the item itself is at fault, so that retrying will not help."""
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in REJECTION_CODES
    return isinstance(error, ValueError | KeyError | TypeError | FileNotFoundError)


def is_ambiguous(error: Exception) -> bool:
    """Whether an error may be due to the item or to MLflow; transient errors are not ambiguous."""
    code = getattr(error, "error_code", None)
    return code not in TRANSIENT_CODES and not isinstance(error, OSError)


def name_of(item: Item) -> str:
    """An item as a message names it: ``finish train/base/E0_0``."""
    node = item.get("node") or item.get("begin", {}).get("node", "")
    return f"{item['do']} {node}".strip()


def one_line(error: Exception) -> str:
    """An error in one line; of MLflow's long connection errors only the cause."""
    text = " ".join(str(error).split()) or type(error).__name__
    for sign, words in OUTAGE_SIGNS.items():
        if sign in text:
            return words
    return printable(MLFLOW_PREFIX.sub("", text))[:200]


class Delivery:
    """Delivers spools one after another; the last one is still being written to."""

    def __init__(
        self,
        uri: str,
        spools: Sequence[tuple[Spool | InMemory, Callable[[], Writer]]],
        log: Callable[[str], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread.

        Args:
            uri: MLflow's address.
            spools: oldest first, each with a function that connects to MLflow for it.
            log: prints a line for the user.
            check: called before each write; OwnerChanged if another driver has taken over.
        """
        self.shown, self.spools, self.log, self.check = to_keep(uri), spools, log, check
        self.outage: str | None = None
        """Why MLflow is unreachable at present; None if it is reachable."""
        self.rejected: Counter[str] = Counter()
        """Items that MLflow rejected: name → how many."""
        self._rejected_before = 0
        """How many there were when the present outage began."""
        self._reasons: set[str] = set()
        self._closing = self._expired = False
        self.thread = threading.Thread(target=self._run, name="lineage", daemon=True)
        self.thread.start()

    def finish(self, timeout_s: float, outage_timeout_s: float) -> None:
        """Wait until everything is delivered, up to a time limit.

        Args:
            timeout_s: limit in seconds while MLflow is reachable.
            outage_timeout_s: limit in seconds while it is not.
        """
        end = time.monotonic() + timeout_s
        outage_end = time.monotonic() + outage_timeout_s
        self._closing = True
        self.spools[-1][0].has_new.set()
        while self.thread.is_alive():
            self.thread.join(0.1)
            if time.monotonic() > (outage_end if self.outage else end):
                self._expired = True
                self.thread.join(1.0)  # if it hangs in a call, it ends with the process
                return

    def stop(self) -> None:
        """Deliver nothing more; returns once the thread has ended, or a call has hung a second."""
        self._closing = self._expired = True
        self.spools[-1][0].has_new.set()
        self.thread.join(1.0)

    @property
    def pending(self) -> int:
        """Number of items that are not delivered yet."""
        return sum(spool.pending for spool, _ in self.spools)

    def _run(self) -> None:
        try:
            for spool, connect in self.spools[:-1]:
                self._drain(spool, self._connect(spool, connect))
                spool.close()
            spool, connect = self.spools[-1]
            writer = self._connect(spool, connect)
            closing = False
            while not closing:
                closing = self._closing  # read before draining, so that no item is missed
                spool.has_new.clear()
                self._drain(spool, writer)
                if not closing:
                    spool.has_new.wait(1.0)
        except DeliveryExpired:
            return
        except Exception as error:  # such as a failing disk: the run must continue
            self.outage = one_line(error)
            self.log(
                f"delivery to MLflow stopped ({self.outage}); the next run of the same command "
                "delivers the rest"
            )

    def _connect(self, spool: Spool | InMemory, connect: Callable[[], Writer]) -> Writer:
        """Connect to MLflow for a spool.

        What a paused driver left of a run that its successor has finished is dropped.
        """
        writer = self._retry(connect)
        if writer.is_over:
            self._retry(spool.drop)
        return writer

    def _drain(self, spool: Spool | InMemory, writer: Writer) -> None:
        """Deliver everything that a spool holds now."""
        for end, batch in batches(spool):
            self._deliver(writer, batch)
            self._retry(partial(spool.mark_delivered, end))  # its file may be out of reach
            if self.outage and spool is self.spools[-1][0] and spool.is_empty:
                self.outage = None
                lost = self.rejected.total() - self._rejected_before
                but = f", but for {lost:,} items that it rejects" if lost else ""
                self.log(
                    f"MLflow at {self.shown} is reachable again and has everything that waited{but}"
                )
            if spool.delivered != end:  # the file was truncated
                return

    def _deliver(self, writer: Writer, batch: Batch) -> None:
        """Write a batch in one call; if MLflow rejects it, write its items one by one."""
        if isinstance(batch, str):
            self._reject("line", ValueError(batch))
        elif len(batch) == 1:
            self._try(writer, batch[0])
        else:
            values = [v for item in batch for v in item["values"]]
            if not self._try(writer, {**batch[0], "values": values}, report=False):
                for item in batch:
                    self._try(writer, item)

    def _try(self, writer: Writer, item: Item, report: bool = True) -> bool:
        """Write an item, however long MLflow is unreachable; False if it is rejected."""
        failures = 0

        def once() -> bool:
            nonlocal failures
            try:
                writer.write(item)
            except Exception as error:  # MLflow's back ends raise errors of any type
                if not is_rejection(error):
                    if not is_ambiguous(error) or not writer.can_write(item):
                        failures = 0
                        raise
                    failures += 1
                    if failures < MAX_TRIES:
                        raise ItemFailed from error
                if report:
                    self._reject(name_of(item), error)
                return False
            return True

        return self._retry(once)

    def _retry(self, call: Callable[[], T]) -> T:
        """Call until it succeeds, with doubling pauses.

        Raises:
            DeliveryExpired: The run has ended and its time limit has passed, or another driver has
                taken it over.
        """
        pause = FIRST_PAUSE_S
        while True:
            if self._expired:
                raise DeliveryExpired
            closing = self._closing
            try:
                self.check()
                return call()
            except OwnerChanged:
                raise DeliveryExpired from None
            except ItemFailed:
                pass  # no outage
            except Exception as error:  # of any type; training must continue
                self._note_outage(error)
            end = time.monotonic() + pause
            while time.monotonic() < end and self._closing == closing and not self._expired:
                time.sleep(0.1)
            # When the run ends, it is tried again at once.
            pause = min(2 * pause, MAX_PAUSE_S) if self._closing == closing else FIRST_PAUSE_S

    def _note_outage(self, error: Exception) -> None:
        """Report an outage once."""
        if self.outage is None:
            self.outage = one_line(error)
            self._rejected_before = self.rejected.total()
            what = f"MLflow at {self.shown} is unreachable"
            if isinstance(error, StorageError):
                what = "the store is unreachable"
            elif isinstance(error, OSError) and error.errno in FULL:
                what = "the disk is full"
            spool = self.spools[-1][0]
            where = spool.path if isinstance(spool, Spool) else "memory"
            self.log(f"{what} ({self.outage}); the run continues, and its record waits in {where}")

    def _reject(self, what: str, error: Exception) -> None:
        """Report a rejected item; of several with the same reason only the first."""
        self.rejected[what] += 1
        reason = getattr(error, "error_code", type(error).__name__)
        if reason not in self._reasons:
            self._reasons.add(reason)
            self.log(f"MLflow rejects {what} ({one_line(error)}); the record continues without it")

    def lost(self) -> str:
        """What MLflow rejected, by name: ``3 items that MLflow rejected: ...``; empty if nothing.

        The first :data:`NAMED` names are listed.
        """
        if not self.rejected:
            return ""
        names = [f"{name} ({n:,})" if n > 1 else name for name, n in self.rejected.items()]
        if more := names[NAMED:]:
            names = [*names[:NAMED], f"{len(more):,} more"]
        count = self.rejected.total()
        return f"{count:,} items that MLflow rejected: {', '.join(names)}"


def batches(spool: Spool | InMemory) -> Iterator[tuple[int, Batch]]:
    """(end position in bytes, batch): consecutive curve points of one run, or a single item."""
    batch: list[Item] = []
    size = end = 0
    for byte, item in spool.pending_items():
        joins = (
            item is not None
            and batch
            and item["do"] == batch[0]["do"] == "metrics"
            and item["node"] == batch[0]["node"]
            and size + len(item["values"]) <= BATCH
        )
        if batch and not joins:
            yield end, batch
            batch, size = [], 0
        if item is None:
            yield byte, "the line is damaged"
            continue
        batch.append(item)
        size, end = size + len(item.get("values", ())), byte
    if batch:
        yield end, batch
