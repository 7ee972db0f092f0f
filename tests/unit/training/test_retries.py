"""Kinds of failure and their retries, with errors as Ray Train raises them."""

import errno
import os
import pickle

import pytest
from ray import exceptions as rays
from ray.train import ControllerError, PreemptionError, PreemptionInfo, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from pipelines.runs.context import Context
from pipelines.store.artifacts import Store
from pipelines.store.remote import StorageError
from pipelines.training.preemption import Preempted, Stalled
from pipelines.training.retries import (
    Budgets,
    Failure,
    FailureKind,
    GaveUp,
    Retries,
    classify,
    diagnose,
    run_with_retries,
)

DIED = WorkerHealthCheckFailedError("Worker failed a health check.", rays.ActorDiedError())
CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4711")
LATE = RuntimeError("[gloo/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation")


def of(**ranks):
    """Ray Train's error of several workers, pickled as between processes."""
    failures = {int(rank.removeprefix("rank")): error for rank, error in ranks.items()}
    return pickle.loads(pickle.dumps(WorkerGroupError("…", failures)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (of(rank0=Preempted("SIGTERM")), FailureKind.PREEMPTION),
        (of(rank0=DIED), FailureKind.PREEMPTION),
        (of(rank0=CLOSED), FailureKind.PREEMPTION),
        (PreemptionError(PreemptionInfo(None, {"node": [0]})), FailureKind.PREEMPTION),
        (rays.ActorDiedError(), FailureKind.PREEMPTION),
        (rays.NodeDiedError("gone"), FailureKind.PREEMPTION),
        (rays.ObjectLostError("00" * 28, None, ""), FailureKind.PREEMPTION),
        (of(rank0=rays.OutOfMemoryError("95 % of the node's memory")), FailureKind.MEMORY),
        (of(rank0=StorageError("s3://b: 6 attempts failed")), FailureKind.STORAGE),
        (of(rank0=ConnectionResetError()), FailureKind.STORAGE),
        (of(rank0=Stalled("rank 1 was waited for")), FailureKind.STALLED),
        (of(rank0=LATE), FailureKind.STALLED),
        (of(rank0=KeyError("x")), FailureKind.BUG),
        (of(rank0=IsADirectoryError(21, "Is a directory")), FailureKind.BUG),
        (of(rank0=OSError(28, "No space left on device")), FailureKind.STORAGE),
        (ZeroDivisionError(), FailureKind.BUG),
        (of(rank0=ValueError("write 8")), FailureKind.MISTAKE),
        (ControllerError(InsufficientClusterResourcesError("no GPU")), FailureKind.MISTAKE),
        (ControllerError(WorkerGroupStartupTimeoutError(8)), FailureKind.MACHINES),
    ],
)
def test_errors_are_classified(error, kind):
    assert classify(error) == kind


@pytest.mark.parametrize(
    ("error", "rank", "said"),
    [
        (
            of(rank0=CLOSED),
            0,
            "rank 0: lost connection to another rank (Connection closed by peer)",
        ),
        (of(rank0=CLOSED, rank3=DIED), 3, "rank 3: its process died"),
        (of(rank0=LATE, rank1=CLOSED), 1, "rank 1: lost connection to another rank"),
        (of(rank0=LATE, rank1=KeyError("x"), rank2=DIED), 2, "rank 2: its process died"),
        (of(rank0=CLOSED, rank1=ValueError("write 8")), 1, "rank 1: ValueError: write 8"),
        (rays.ActorDiedError(), None, "training: its process died"),
        (ControllerError(WorkerGroupStartupTimeoutError(8)), None, "no room for 8 such workers"),
    ],
)
def test_the_root_cause_among_all_ranks_is_named(error, rank, said):
    failure = diagnose(error)
    assert failure.rank == rank and said in str(failure)


def of_kind(kind, text="x"):
    return Failure(kind, {FailureKind.PREEMPTION: Preempted}.get(kind, RuntimeError)(text), 0)


def tries(retries, kinds, images=0):
    return [retries.after(of_kind(k, str(i)), images) is not None for i, k in enumerate(kinds)]


def test_each_kind_has_its_budget():
    retries = Retries(Budgets(preemptions=2, failures=1, bugs=1))
    kinds = [FailureKind.PREEMPTION, FailureKind.BUG, FailureKind.STORAGE, FailureKind.PREEMPTION]
    assert tries(retries, kinds) == [True] * 4
    for kind in (
        FailureKind.PREEMPTION,
        FailureKind.STALLED,
        FailureKind.BUG,
    ):  # stalls and storage share one
        assert retries.after(of_kind(kind, "new"), 0) is None


def test_a_new_checkpoint_restores_the_budgets():
    retries = Retries(Budgets(bugs=1))
    assert [
        retries.after(of_kind(FailureKind.BUG), images) is not None for images in (0, 64, 128)
    ] == [True] * 3
    assert retries.after(of_kind(FailureKind.BUG), 128) is None


def test_the_same_bug_without_progress_is_not_retried():
    retries = Retries(Budgets(bugs=10))
    assert tries(retries, [FailureKind.BUG] * 3) == [True] * 3  # different messages
    assert retries.after(of_kind(FailureKind.BUG, "2"), 0) is None


def test_waits_double_up_to_a_maximum():
    retries = Retries(Budgets(preemptions=8, backoff_s=1, backoff_max_s=10))
    waits = [retries.after(of_kind(FailureKind.PREEMPTION), 0)[0] for _ in range(8)]
    for wait, most in zip(waits, [1, 2, 4, 8, 10, 10, 10, 10]):
        assert most / 2 <= wait <= most


def test_waits_for_machines_do_not_grow():
    """Ray Train has already waited a minute each time."""
    retries = Retries(Budgets(machines=120, backoff_s=1))
    waits = [retries.after(of_kind(FailureKind.MACHINES), 0)[0] for _ in range(120)]
    assert max(waits) <= 1
    assert retries.after(of_kind(FailureKind.PREEMPTION), 0) is not None
    assert retries.after(of_kind(FailureKind.MACHINES), 0) is None


class Board:
    """Receives reports like the actor."""

    def __init__(self):
        self.messages, self.report = [], self

    def remote(self, node, row):
        self.messages.append(row["message"])


@pytest.fixture
def ctx(tmp_path, monkeypatch):
    """A node whose driver is not stopping."""
    monkeypatch.setattr("pipelines.training.retries.driver_stop_reason", lambda board, node: None)
    return Context(
        node="train/base/E0_0",
        fingerprint="f",
        store=Store.at(str(tmp_path)),
        folder="nodes/train/base/E0_0",
        cpus=1,
        runtime={"workers": {"retries": {"preemptions": 2, "bugs": 1, "backoff_s": 0.01}}},
        manifests={},
        board=Board(),
    )


class Attempts:
    """Raises one error an attempt, then returns."""

    def __init__(self, *errors):
        self.errors, self.made = list(errors), 0

    def __call__(self):
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_every_retry_is_reported_in_one_line(ctx):
    ctx.save_progress(64, 128, "images")
    assert run_with_retries(Attempts(of(rank1=DIED), of(rank0=KeyError("x"))), ctx) == "done"
    died, bug = ctx.board.messages
    assert died.startswith("rank 1: its process died (preemption); retrying from 64 images in ")
    assert died.endswith("s, attempt 1 of 2")
    assert bug.startswith("rank 0: KeyError: 'x' (bug); retrying ") and "1 of 1" in bug


def test_giving_up_reports_rank_kind_and_tries(ctx):
    with pytest.raises(GaveUp) as ended:
        run_with_retries(Attempts(*[of(rank2=DIED)] * 3), ctx)
    assert str(ended.value) == "rank 2: its process died (preemption, 3 tries)"
    assert isinstance(ended.value.__cause__, WorkerGroupError)


def test_the_users_mistake_is_not_retried(ctx):
    attempts = Attempts(of(rank0=CLOSED, rank1=ValueError("write 8")))
    with pytest.raises(ValueError, match=r"^write 8$"):
        run_with_retries(attempts, ctx)
    assert attempts.made == 1 and not ctx.board.messages


def test_a_storage_failure_keeps_its_type(ctx):
    with pytest.raises(
        StorageError, match=r"s3://b: refused \(storage, network or disk, 4 tries\)"
    ):
        run_with_retries(Attempts(*[of(rank0=StorageError("s3://b: refused"))] * 4), ctx)


@pytest.mark.parametrize(
    ("number", "todo"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EMFILE, "raise that machine's limit of open files"),
        (errno.EACCES, "let the user of the workers read and write there"),
        (errno.EIO, "check that disk"),
    ],
)
def test_an_error_of_a_machine_is_retried_and_ends_with_what_to_do(ctx, number, todo):
    error = OSError(number, os.strerror(number), "/cache/part")
    relayed = StorageError(f"process 1 of 2: {error}")
    attempts = Attempts(*[of(rank0=relayed, rank1=error)] * 4)
    with pytest.raises(GaveUp) as ended:
        run_with_retries(attempts, ctx)
    said = str(ended.value)
    assert attempts.made == 4 and said.startswith("rank 1: ") and "/cache/part" in said
    assert f"; {todo}" in said and said.endswith("continues from its newest checkpoint")


def test_a_stopping_driver_retries_nothing(ctx, monkeypatch):
    reason = "the driver got SIGTERM"
    monkeypatch.setattr("pipelines.training.retries.driver_stop_reason", lambda board, node: reason)
    attempts = Attempts(of(rank0=DIED))
    with pytest.raises(Preempted, match="the driver got SIGTERM"):
        run_with_retries(attempts, ctx)
    assert attempts.made == 1
