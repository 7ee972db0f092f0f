"""Wait for a store that is away, instead of ending a run that has trainings under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.formatting import clock, printable
from pipelines.store.remote import may_pass

RETRY_EVERY_S = 5.0

T = TypeVar("T")


class Patience:
    """Calls functions that use the store, again and again while it is away; for any thread."""

    def __init__(
        self,
        limit_s: float,
        log: Callable[[str], None],
        stopping: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            limit_s: how long to wait; 0 not to.
            log: receives lines for the user.
            stopping: whether the run has been asked to stop, so that there is no time to wait.
        """
        self.limit_s, self.log, self.stopping = limit_s, log, stopping
        self.now, self.sleep = now, sleep
        self._lock = threading.Lock()
        self._away_since: float | None = None
        """When the store went away, as any thread found; None while it is there."""

    def __call__(self, use: Callable[[], T]) -> T:
        """Call a function that may be called again; return what it returns.

        Raises:
            OSError: The store did not come back in time, or refuses for good.
        """
        failing_since: float | None = None
        while True:
            try:
                found = use()
            except OSError as error:
                moment = self.now()
                failing_since = moment if failing_since is None else failing_since
                if not may_pass(error) or not self._may_wait(error, failing_since, moment):
                    raise
                self.sleep(RETRY_EVERY_S)
            else:
                self._is_back()
                return found

    def _may_wait(self, error: OSError, failing_since: float, moment: float) -> bool:
        with self._lock:
            if self._away_since is None and self.limit_s and failing_since == moment:
                self._away_since = moment
                why = printable(" ".join(str(error).split()))
                self.log(
                    f"the store is away: {why}; trainings go on, and the run waits up to "
                    f"{clock(self.limit_s)} for it"
                )
            # What others find does not prolong the wait for what fails only here.
            others = moment if self._away_since is None else self._away_since
            since = min(others, failing_since)
            return moment - since < self.limit_s and not self.stopping()

    def _is_back(self) -> None:
        with self._lock:
            since, self._away_since = self._away_since, None
            if since is not None:
                self.log(f"the store is back, after {clock(self.now() - since)}")
