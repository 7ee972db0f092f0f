"""A finished run makes its ensemble the candidate, and the champion if it wins."""

import pytest
from plan_kit import Promoted, spec

from pipelines.dag import plan
from pipelines.dag.champion import Champion
from pipelines.executor.driver import register_ensemble
from pipelines.models import champions
from pipelines.runs.execution import Execution
from pipelines.store.artifacts import Store


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


def longer(raw):
    raw["stages"]["base"]["experts"]["E1_1"]["images"] = 256


class Run:
    """The end of a run of the smoke spec, changed or not."""

    def __init__(self, store, change=lambda raw: None, number=1):
        self.store = store
        self.execution = Execution(
            id=f"smoke-{number}", pipeline="smoke", fingerprint="f", attempt=1
        )
        Promoted(store, change)  # the results that its run would leave
        champion = Champion.current(store, "smoke")
        self.plan = plan.make(spec(change), store, {}, champion=champion)
        self.mine = self.plan.verdicts["promote/smoke"].fingerprint

    def end(self, **gate):
        manifests = {"promote/smoke": {}}
        if gate:
            compared = self.plan.verdicts["gate/smoke"].node.settings["champion"]
            manifests["gate/smoke"] = {
                "info": {**gate, "champion": compared},
                "metrics": {"wins": 1.0, "gain/base": 0.01},
            }
        said = register_ensemble(self.plan, self.store, self.execution, manifests)
        return said, champions.read(self.store, "smoke")


def test_the_first_is_champion(store):
    run = Run(store)
    said, book = run.end()
    assert book.champion.fingerprint == book.candidate.fingerprint == run.mine
    assert said == [f"smoke: {run.mine[:8]} is champion: there was no champion"]


def test_the_same_again_changes_nothing(store):
    _, before = Run(store).end()
    said, book = Run(store, number=2).end()
    assert said == [] and book == before


def test_a_better_one_takes_its_place_and_its_numbers_are_kept(store):
    Run(store).end()
    run = Run(store, longer, number=2)
    assert "gate/smoke" in run.plan.verdicts
    said, book = run.end(wins=True, why="val_loss of base is better")
    assert book.champion.fingerprint == run.mine and book.champion.by == "run smoke-2"
    assert book.champion.numbers == {"gain/base": 0.01}
    assert said == [f"smoke: {run.mine[:8]} is champion: val_loss of base is better"]


def test_one_that_is_no_better_stays_candidate(store):
    first = Run(store)
    first.end()
    run = Run(store, longer, number=2)
    said, book = run.end(wins=False, why="val_loss of base is no better")
    assert book.champion.fingerprint == first.mine and book.candidate.fingerprint == run.mine
    assert said == [f"smoke: {run.mine[:8]} stays candidate: val_loss of base is no better"]


def test_a_rerun_does_not_undo_a_rollback(store):
    first = Run(store)
    first.end()
    Run(store, longer, number=2).end(wins=True, why="better")
    champions.roll_back(store, "smoke")
    _, book = Run(store, longer, number=3).end(wins=True, why="better")
    assert book.champion.fingerprint == first.mine


def test_a_plan_that_promotes_nothing_registers_nothing(store):
    run = Run(store)
    assert register_ensemble(run.plan, store, run.execution, {}) == []
    assert champions.read(store, "smoke").champion is None


def test_a_champion_that_it_was_not_compared_with_is_kept(store):
    """Somebody promotes another ensemble, or rolls back, between the gate and the run's end."""
    first = Run(store)
    first.end()
    run = Run(store, longer, number=2)  # its gate compares with the first
    other = champions.Entry(
        fingerprint="c" * 16, folder="nodes/promote/smoke-other", why="mine", by="run smoke-9"
    )
    store.write_json(f"{other.folder}/ensemble.json", {})
    champions.add_candidate(store, "smoke", other)
    champions.promote(store, "smoke", other.fingerprint, "I like its pictures")
    said, book = run.end(wins=True, why="better")
    assert book.champion.fingerprint == other.fingerprint
    assert book.candidate.fingerprint == run.mine
    assert len(said) == 1 and "stays candidate: cccccccc is the champion now" in said[0]


def test_a_first_champion_is_not_put_over_one_that_came_meanwhile(store, monkeypatch):
    run = Run(store)
    other = champions.Entry(
        fingerprint="c" * 16, folder="nodes/promote/smoke-other", why="mine", by="run smoke-9"
    )
    store.write_json(f"{other.folder}/ensemble.json", {})
    add = champions.add_candidate

    def add_and_be_overtaken(*args):
        book = add(*args)
        add(store, "smoke", other)
        champions.promote(store, "smoke", other.fingerprint, "faster", instead_of=None)
        return book

    monkeypatch.setattr(champions, "add_candidate", add_and_be_overtaken)
    said, book = run.end()
    assert book.champion.fingerprint == other.fingerprint
    assert "compared with none" in said[0]
