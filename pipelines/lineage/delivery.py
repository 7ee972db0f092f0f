"""The thread that takes items from spools to MLflow: in order, in batches, for as long as it takes.

An outage is waited for. An item that MLflow refuses is said once and left out: waiting would not
help it, and all behind it would wait too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pipelines.lineage.spool import Item, Spool
from pipelines.lineage.writer import BATCH, Writer
from pipelines.store.remote import StorageError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
TRIES = 4
"""Of an item that fails while MLflow answers other calls."""

SIGNS = (
    "Connection refused",
    "Connection aborted",
    "Connection reset",
    "timed out",
    "Name or service not known",
    "Temporary failure in name resolution",
)

Batch = list[Item] | str
"""Items for one call, or what is wrong with a line."""

T = TypeVar("T")

REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_CONFLICT",
    "RESOURCE_DOES_NOT_EXIST",
}
"""MLflow's codes for what is wrong with a request. One that is not let in (401, 403) is none of
them: that is the server's or the password's fault, and loses nothing once it is mended."""

PASSING = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"}
PASSING |= {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}


class Closed(Exception):
    """The time that the end of a run gives to its record is over."""


def is_refusal(error: Exception) -> bool:
    """Whether an item fails by itself, so that no waiting will help it."""
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in REFUSALS
    return isinstance(error, ValueError | KeyError | TypeError | FileNotFoundError)


def is_puzzling(error: Exception) -> bool:
    """Whether an error may be the item's or MLflow's own: what says that it will pass is not."""
    return getattr(error, "error_code", None) not in PASSING and not isinstance(error, OSError)


def words(error: Exception) -> str:
    """An error in one line; MLflow's of a connection are long, and end in what is the matter."""
    text = " ".join(str(error).split()) or type(error).__name__
    for sign in SIGNS:
        if sign in text:
            return sign[0].lower() + sign[1:]
    return text[:200]


class Delivery:
    """Empties spools one after the other; the last of them goes on being filled."""

    def __init__(
        self,
        uri: str,
        spools: list[tuple[Spool, Callable[[], Writer]]],
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            spools: the oldest first, each with a way to what writes its items.
        """
        self.uri, self.spools, self.say = uri, spools, say
        self.away: str | None = None
        """Why MLflow does not take anything now."""
        self.refused = 0
        self._reasons: set[str] = set()
        self._closing = self._over = False
        self.thread = threading.Thread(target=self._work, name="lineage", daemon=True)
        self.thread.start()

    def finish(self, wait_s: float, wait_away_s: float) -> None:
        """Waits until everything is delivered, but not for ever.

        Args:
            wait_s: how long to wait for an MLflow that takes what it is given.
            wait_away_s: how long to wait for one that does not.
        """
        end = time.monotonic() + wait_s
        end_away = time.monotonic() + wait_away_s
        self._closing = True
        self.spools[-1][0].more.set()
        while self.thread.is_alive():
            self.thread.join(0.1)
            if time.monotonic() > (end_away if self.away else end):
                self._over = True
                self.thread.join(1.0)  # it may hang in a call, and ends with the process
                return

    @property
    def left(self) -> int:
        """Items that are not delivered yet."""
        return sum(spool.left for spool, _ in self.spools)

    def _work(self) -> None:
        try:
            for spool, connect in self.spools[:-1]:
                self._empty(spool, self._persist(connect))
                spool.close()
            spool, connect = self.spools[-1]
            writer = self._persist(connect)
            closing = False
            while not closing:
                closing = self._closing  # read before the spool is: nothing can come in between
                spool.more.clear()
                self._empty(spool, writer)
                if not closing:
                    spool.more.wait(1.0)
        except Closed:
            return
        except Exception as error:  # of the spool's disk, say: the run goes on, and says so
            self.away = words(error)
            self.say(f"the record waits for the next run of the same command ({self.away})")

    def _empty(self, spool: Spool, writer: Writer) -> None:
        """Delivers what is in a spool now."""
        for end, batch in batches(spool):
            self._deliver(writer, batch)
            spool.done_to(end)
            if self.away and spool is self.spools[-1][0] and spool.is_empty:
                self.away = None
                self.say(f"MLflow at {self.uri} is back, and has all that waited")
            if spool.delivered != end:  # the file was begun anew
                return

    def _deliver(self, writer: Writer, batch: Batch) -> None:
        """Writes what goes into one call; if that is refused, one by one what can be."""
        if isinstance(batch, str):
            self._refuse("line", ValueError(batch))
        elif len(batch) == 1:
            self._try(writer, batch[0])
        else:
            values = [v for item in batch for v in item["values"]]
            if not self._try(writer, {**batch[0], "values": values}, tell=False):
                for item in batch:
                    self._try(writer, item)

    def _try(self, writer: Writer, item: Item, tell: bool = True) -> bool:
        """Writes an item, however long MLflow is away; False if it is refused."""
        failures = 0

        def once() -> bool:
            nonlocal failures
            try:
                writer.write(item)
            except Exception as error:  # whatever MLflow's back end raises
                if not is_refusal(error):
                    self._gone(error)
                    failures += is_puzzling(error) and writer.answers()
                    if failures < TRIES:
                        raise
                if tell:
                    self._refuse(f"{item['do']} {item.get('node', '')}".strip(), error)
                return False
            return True

        return self._persist(once)

    def _persist(self, call: Callable[[], T]) -> T:
        """Calls until it succeeds, with pauses that double; raises Closed if time is over."""
        pause = FIRST_PAUSE_S
        while True:
            closing = self._closing
            try:
                return call()
            except Exception as error:  # whatever MLflow's back end raises: training goes on
                self._gone(error)
            end = time.monotonic() + pause
            while time.monotonic() < end and self._closing == closing and not self._over:
                time.sleep(0.1)
            if self._over:
                raise Closed
            # At the end of a run it is tried again at once.
            pause = min(2 * pause, LONGEST_PAUSE_S) if self._closing == closing else FIRST_PAUSE_S

    def _gone(self, error: Exception) -> None:
        if self.away is None:
            self.away = words(error)
            what = "the store" if isinstance(error, StorageError) else f"MLflow at {self.uri}"
            self.say(
                f"{what} is away ({self.away}); the run goes on, and its record waits in "
                f"{self.spools[-1][0].path}"
            )

    def _refuse(self, what: str, error: Exception) -> None:
        """Says what is left out; of many for the same reason the first."""
        self.refused += 1
        reason = getattr(error, "error_code", type(error).__name__)
        if reason not in self._reasons:
            self._reasons.add(reason)
            self.say(f"MLflow does not take {what} ({words(error)}); the record goes on without")


def batches(spool: Spool) -> Iterator[tuple[int, Batch]]:
    """(byte behind it, batch): points of one run's curves that follow each other, or one item."""
    batch: list[Item] = []
    size = end = 0
    for byte, item in spool.waiting():
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
            yield byte, "it is damaged"
            continue
        batch.append(item)
        size, end = size + len(item.get("values", ())), byte
    if batch:
        yield end, batch
