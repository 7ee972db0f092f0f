"""What changed between two ensembles of a model."""

import json

from ensemble_kit import FOLDER, NAME, make
from typer.testing import CliRunner

from pipelines.cli.verbs import app
from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.reports import champion_changes

SECOND = "fedcba9876543210"


def test_a_comparison_names_what_differs_and_nothing_else(tmp_path):
    store = make(tmp_path)
    folder = FOLDER.rpartition("-")[0] + f"-{SECOND}"
    manifest = store.read_json(f"{FOLDER}/ensemble.json")
    manifest["stages"][0]["sampling"]["steps"] = 9
    store.write_json(f"{folder}/ensemble.json", manifest)
    store.write_json(f"{FOLDER}/manifest.json", {"metrics": {"fid": 3.0, "fid_ci95": 0.5}})
    store.write_json(f"{folder}/manifest.json", {"metrics": {"fid": 2.5, "pairs": 0.5}})
    entry = Entry(fingerprint=SECOND, folder=folder, why="finished", by="run tiny-2")
    champions.add_candidate(store, NAME, entry)

    arguments = ["models", NAME, "--compare", "1", "2", "--storage", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["changed"] == ["stages.base.sampling.steps: 4 → 9"]
    assert found["metrics"]["fid"] == {"old": 3.0, "new": 2.5, "difference": -0.5}
    assert found["metrics"]["pairs"] == {"old": None, "new": 0.5, "difference": None}
    shown = champion_changes.text(found)
    assert "3 ±0.5" in shown and "-0.5" in shown and "fid_ci95" not in shown


def test_an_ensemble_has_no_difference_to_itself(tmp_path):
    store = make(tmp_path)
    one = champions.read(store, NAME).find(NAME, "1")
    assert champion_changes.compare(store, one, one)["changed"] == []
