"""What ``ediffi retrain --dry-run`` says, and that it does nothing."""

import json

import pytest
from kit import call, said
from paths import SMOKE
from plan_kit import Promoted, spec

from pipelines.models import champions
from pipelines.runs.lease import only_driver
from pipelines.store.artifacts import Store


@pytest.fixture
def store(tmp_path):
    """A store with a champion of the smoke spec."""
    made = Store.open(str(tmp_path / "store"))
    fingerprint = Promoted(made).champion.fingerprint
    folder = f"nodes/promote/smoke-{fingerprint}"
    entry = champions.Entry(fingerprint=fingerprint, folder=folder, why="finished", by="run r")
    champions.add_candidate(made, "smoke", entry)
    champions.promote(made, "smoke", fingerprint, "first", instead_of=None)
    return made


@pytest.fixture
def more_data(tmp_path):
    """The smoke spec with more rows."""
    file = tmp_path / "more.yaml"
    text = SMOKE.read_text()
    rows = spec().data.train.rows
    assert text.count(f"rows: {rows}") == 1
    file.write_text(text.replace(f"rows: {rows}", f"rows: {rows + 64}"))
    return file


def dry_run(file, store, *options):
    return said("retrain", file, "--storage", store.root, "--dry-run", *options)


def test_it_names_champion_training_and_gate_and_changes_nothing(store, more_data):
    before = {path: store.read(path) for path in store.files("")}
    found = json.loads(dry_run(more_data, store, "--json"))
    assert found["starts"] and not found["why"] and found["champion"]["version"] == 1
    slots = [
        f"train/{s['name']}/{slot}" for s in champion(store)["stages"] for slot in s["experts"]
    ]
    assert sorted(found["images"]) == sorted(slots)
    share = spec().retraining.share
    assert all(n >= share * before_of(store, node) for node, n in found["images"].items())
    text = dry_run(more_data, store)
    assert text.startswith("would retrain smoke, version 1 (")
    assert "gate/smoke, by val_loss with a margin of" in text
    assert all(f"{n:,} images" in text for n in found["images"].values())
    assert {path: store.read(path) for path in store.files("")} == before


def champion(store):
    return store.read_json(f"{champions.read(store, 'smoke').champion.folder}/ensemble.json")


def before_of(store, node):
    """Images that the champion's expert was trained on."""
    path = champion(store)["weights"][node.removeprefix("train/")]["path"]
    return store.read_json(f"{path.rpartition('/')[0]}/manifest.json")["settings"]["images"]


def test_it_says_why_it_would_be_skipped(store):
    assert dry_run(SMOKE, store).startswith("would skip the retraining of smoke, version 1 (")
    assert "the data is what the champion was trained on" in dry_run(SMOKE, store)


def test_it_says_that_another_driver_runs_the_pipeline(store, more_data):
    with only_driver(store, "smoke"):
        assert "pipeline smoke is being run already (" in dry_run(more_data, store)


def test_json_without_a_dry_run_is_refused(store, more_data, capsys):
    assert call("retrain", more_data, "--storage", store.root, "--json") == 2
    assert "--json goes with --dry-run" in capsys.readouterr().err
