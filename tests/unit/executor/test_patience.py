"""A store that is away is waited for; trainings save before a driver fails."""

import errno
import pickle
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from pipelines.executor.patience import RETRY_EVERY_S, Patience
from pipelines.executor.runner import Runner
from pipelines.runs.execution import Execution, now
from pipelines.store.remote import StorageError, attempt, may_pass
from pipelines.training.preemption import Preempted


class Away:
    """A store that is back after so many uses, and the waiting for it."""

    def __init__(self, error, uses=3, limit_s=3600.0):
        self.error, self.left, self.s, self.told, self.stop = error, uses, 0.0, [], False
        self.patiently = Patience(
            limit_s, self.told.append, lambda: self.stop, lambda: self.s, self.sleep
        )

    def sleep(self, seconds):
        self.s += seconds

    def use(self):
        if self.left:
            self.left -= 1
            raise self.error
        return "done"


def unreachable():
    def fail():
        raise ConnectionError("refused")

    with pytest.raises(StorageError) as raised:
        attempt(fail, "s3://bucket", attempts=1)
    return raised.value


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space"), OSError(errno.ESTALE, "stale"), unreachable()]
)
def test_what_may_pass_is_waited_for(error):
    away = Away(error)
    assert away.patiently(away.use) == "done" and away.s == 3 * RETRY_EVERY_S
    assert len(away.told) == 2 and "is away" in away.told[0] and "is back" in away.told[1]


@pytest.mark.parametrize("error", [PermissionError(), StorageError("no such bucket"), ValueError()])
def test_what_does_not_pass_is_raised_at_once(error):
    away = Away(error)
    with pytest.raises(type(error)):
        away.patiently(away.use)
    assert away.s == 0 and not away.told


@pytest.mark.parametrize(("limit_s", "waits_s"), [(12.0, 15.0), (0.0, 0.0)])
def test_it_is_waited_for_so_long_and_no_longer(limit_s, waits_s):
    away = Away(ConnectionError(), uses=100, limit_s=limit_s)
    with pytest.raises(ConnectionError):
        away.patiently(away.use)
    assert away.s == waits_s


def test_what_others_find_there_does_not_prolong_the_wait_for_what_fails_alone():
    away = Away(ConnectionError(), uses=100, limit_s=12.0)

    def use():
        away.patiently(lambda: "there")
        return away.use()

    with pytest.raises(ConnectionError):
        away.patiently(use)
    assert away.s == 15.0 and len(away.told) == 2, away.told


def test_that_a_store_may_come_back_is_known_in_other_processes():
    gone = pickle.loads(pickle.dumps(unreachable()))
    refused = pickle.loads(pickle.dumps(StorageError("no such bucket")))
    assert gone.passes and may_pass(gone) and not may_pass(refused)
    assert StorageError.of(OSError(errno.ENOSPC, "no space")).passes
    assert not StorageError.of(PermissionError("denied")).passes


def test_a_run_that_is_to_stop_does_not_wait():
    away = Away(ConnectionError())
    away.stop = True
    with pytest.raises(ConnectionError):
        away.patiently(away.use)
    assert away.s == 0


def test_trainings_save_before_a_driver_fails():
    saving, asked = Future(), []

    def stop(reason):
        asked.append(reason)
        saving.set_exception(Preempted(reason))

    runner = object.__new__(Runner)
    runner.board = SimpleNamespace(stop=SimpleNamespace(remote=stop))
    runner.console = SimpleNamespace(log=lambda _: None, refresh=lambda _: None)
    runner.execution = Execution(id="r", pipeline="p", fingerprint="f", attempt=1, started=now())
    runner.receive_reports = lambda: None
    runner.stop = SimpleNamespace(why=None, signal=None)
    runner.plan = SimpleNamespace(spec=SimpleNamespace(grace_s=25.0))
    training = SimpleNamespace(node=SimpleNamespace(kind="train"))

    def fail(running, waiting):
        running[saving] = training
        raise StorageError("away for an hour")

    runner.run_some = fail
    with pytest.raises(StorageError, match="away for an hour"):
        runner.run_until_done({}, {"train/a": training})
    assert saving.done() and asked == ["the driver fails: away for an hour"]
