"""A retraining is skipped only if it is done to its end: compared, offered and decided on."""

import pytest
from plan_kit import Promoted, finish

from pipelines.dag.new_data import is_settled, reason_to_skip
from pipelines.models import champions
from pipelines.store.artifacts import Store

WHY = "the champion has already been retrained on this data"


def other_data(raw):
    raw["data"]["train"]["rows"] += 64


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def promoted(store):
    made = Promoted(store)
    entry = entry_of(made.champion.fingerprint)
    champions.add_candidate(store, "smoke", entry)
    champions.promote(store, "smoke", entry.fingerprint, "first", instead_of=None)
    return made


def entry_of(fingerprint):
    folder = f"nodes/promote/smoke-{fingerprint}"
    return champions.Entry(fingerprint=fingerprint, folder=folder, why="finished", by="run r")


def retraining(promoted):
    return promoted.plan(other_data, retrain=True)


def run(promoted, *, wins, up_to=None):
    """Finish the nodes of the retraining in their order, up to one."""
    for name, verdict in retraining(promoted).verdicts.items():
        if not verdict.cached:
            info = {"info": {"wins": wins}} if name == "gate/smoke" else {}
            finish(promoted.store, verdict, **info)
        if name == up_to:
            return


def skipped(promoted):
    return reason_to_skip(retraining(promoted), promoted.store, {}, promoted.champion)


def offer(promoted):
    mine = entry_of(retraining(promoted).verdicts["promote/smoke"].fingerprint)
    promoted.store.write_json(f"{mine.folder}/ensemble.json", {})
    champions.add_candidate(promoted.store, "smoke", mine)
    return mine.fingerprint


def test_one_that_was_never_begun_is_run(promoted):
    assert skipped(promoted) == ""


def test_one_that_ended_after_its_promote_node_goes_on(promoted):
    """Its ensemble is in the store, and nobody has compared or offered it."""
    run(promoted, wins=True, up_to="promote/smoke")
    assert retraining(promoted).verdicts["promote/smoke"].cached
    assert not retraining(promoted).verdicts["gate/smoke"].cached
    assert skipped(promoted) == ""


@pytest.mark.parametrize("wins", [True, False])
def test_one_that_ended_before_its_ensemble_was_offered_goes_on(promoted, wins):
    run(promoted, wins=wins)
    assert skipped(promoted) == ""


def test_one_that_won_and_was_not_promoted_goes_on(promoted):
    run(promoted, wins=True)
    mine = offer(promoted)
    assert skipped(promoted) == ""
    champions.promote(promoted.store, "smoke", mine, "better", by="run r")
    champions.roll_back(promoted.store, "smoke")  # a person's choice, which is not tried again
    assert skipped(promoted) == WHY


def test_one_that_lost_is_not_tried_again(promoted):
    run(promoted, wins=False)
    offer(promoted)
    assert is_settled(retraining(promoted), promoted.store)
    assert skipped(promoted) == WHY
