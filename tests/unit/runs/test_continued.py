"""A run that continues keeps the files that it began with."""

from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plan_kit import spec as spec_of

from pipelines.dag import plan, sources
from pipelines.runs.continued import continued_plan, keep_listings
from pipelines.runs.execution import begin, cancel_request_path
from pipelines.store.artifacts import Store

SPLITS = ("train", "validation")


def picture(folder, name):
    (folder / f"{name}.png").write_bytes(name.encode())
    (folder / f"{name}.txt").write_text(f"a {name}")


def parquet(folder, name):
    table = {"key": [name], "image": [b"png"], "caption": [f"a {name}"]}
    pq.write_table(pa.table(table), folder / f"{name}.parquet")


@pytest.fixture(params=[(picture, 2), (parquet, 1)], ids=["pictures", "parquet"])
def own(request, tmp_path):
    """A run that was killed, on data that a user may change."""
    return Own(tmp_path, *request.param)


class Own:
    def __init__(self, root, add, files):
        self.root, self.write, self.files = root, add, files
        self.store = Store.open(str(root / "store"))
        for split in SPLITS:
            (root / split).mkdir()
            for name in ("cat", "dog"):
                self.write(root / split, name)
        self.made = self.again()(self.sources())
        self.run = begin(self.made, self.store)
        keep_listings(self.made, self.store)
        for split in SPLITS:
            folder = self.made.verdicts[f"embed/{split}"].folder
            self.run.nodes[f"embed/{split}"] = {"folder": folder, "state": "done"}
        self.run.save(self.store)

    def spec(self, **changes):
        def change(raw):
            raw["data"] = {split: {"path": str(self.root / split)} for split in SPLITS}
            raw |= {"encoders": {}, **changes}

        return spec_of(change)

    def sources(self):
        return sources.identify_all(self.spec())

    def again(self, **changes):
        return partial(plan.make, self.spec(**changes), self.store)

    def planned(self, **changes):
        """The plan for the data as it is now, and the one that is run."""
        again = self.again(**changes)
        now = again(self.sources())
        return now, continued_plan(now, self.store, again)


def test_a_file_that_arrived_since_is_left_for_the_next_run(own):
    own.write(own.root / "train", "eel")
    now, run = own.planned()
    assert now.fingerprint != own.made.fingerprint == run.fingerprint
    assert (run.sources["train"]["arrived"], run.sources["validation"]["arrived"]) == (own.files, 0)
    again = begin(run, own.store)
    assert (again.id, again.attempt) == (own.run.id, 2)
    again.state = "done"
    again.save(own.store)
    now, run = own.planned()
    assert run is now


def test_the_plan_stays_what_it_is_while_the_run_continues(own):
    own.write(own.root / "train", "eel")
    _, run = own.planned()
    assert run.regrow().fingerprint == own.made.fingerprint


def test_without_a_change_the_plan_is_that_of_the_data(own):
    now, run = own.planned()
    assert run is now and now.fingerprint == own.made.fingerprint


@pytest.mark.parametrize("split", SPLITS)
def test_a_file_that_changed_or_is_gone_begins_a_new_run(own, split):
    own.write(own.root / split, "eel")
    before = own.planned()[1]
    assert before.fingerprint == own.made.fingerprint
    (file,) = (own.root / split).glob("dog.p*")
    file.write_bytes((own.root / split / f"eel{file.suffix}").read_bytes())
    now, run = own.planned()
    assert run is now
    file.unlink()
    now, run = own.planned()
    assert run is now


def test_other_settings_begin_a_new_run(own):
    own.write(own.root / "train", "eel")
    now, run = own.planned(seed=7)
    assert run is now


@pytest.mark.parametrize("state", ["failed", "done", "cancelled", "killed"])
def test_a_run_that_ended_pins_nothing(own, state):
    own.run.state = state
    own.run.save(own.store)
    own.write(own.root / "train", "eel")
    now, run = own.planned()
    assert run is now


def test_a_run_that_is_given_up_pins_nothing(own):
    own.store.write_json(cancel_request_path(own.run.id), {"by": "me"})
    own.write(own.root / "train", "eel")
    now, run = own.planned()
    assert run is now


def test_a_run_of_an_earlier_version_pins_nothing(own):
    for split in SPLITS:
        own.store.remove(f"{own.made.verdicts[f'embed/{split}'].folder}/listing.json")
    own.write(own.root / "train", "eel")
    now, run = own.planned()
    assert run is now
