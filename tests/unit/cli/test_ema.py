"""``ediffi ema`` lists snapshots, measures lengths, and writes an ensemble with one of them."""

import json

import pytest
from PIL import Image
from snapshot_kit import CONFIG, read_json, write_ensemble, write_expert, write_validation
from typer.testing import CliRunner

from pipelines.cli.averages import parse_lengths
from pipelines.cli.verbs import app
from pipelines.models.stages import StageLoader
from pipelines.store.artifacts import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An ensemble's file."""
    store = Store.at(str(tmp_path_factory.mktemp("store")))
    return write_ensemble(store, CONFIG, validation=write_validation(store), drift=0.02)


def run(*arguments):
    found = CliRunner().invoke(app, ["ema", *map(str, arguments)])
    assert found.exit_code == 0, found.exception
    return found.output


def refused(*arguments):
    found = CliRunner().invoke(app, ["ema", *map(str, arguments)])
    assert isinstance(found.exception, ValueError), (found.output, found.exception)
    assert "\n" not in str(found.exception)
    return str(found.exception)


def test_without_lengths_it_lists_the_snapshots(made):
    lines = run(made).splitlines()
    assert lines[0] == "base: draws with the stored weights"
    assert [line.split()[:8] for line in lines[2:]] == [
        [slot, f"base/{slot}", "96", "3", "32", "to", "96", "0.05,"] for slot in ("E1_1", "E1_0")
    ]
    data = json.loads(run(made, "--json"))
    snapshots = data["stages"]["base"]["experts"]["E1_1"]["snapshots"]
    assert [(s["images"], s["length"]) for s in snapshots[:3]] == [
        (32, 0.05),
        (32, 0.1),
        (64, 0.05),
    ]


def test_with_lengths_it_prints_a_table_and_the_best(made, tmp_path):
    picture = tmp_path / "lengths.png"
    text = run(made, "--length", "0.05,0.15", "--draws", 24, "--plot", picture)
    data = json.loads(run(made, "--length", "0.05", "--length", "0.15", "--draws", 24, "--json"))
    assert [r["length"] for r in data["overall"]["rows"]] == [None, 0.05, 0.15]
    for part in (*data["experts"].values(), data["overall"]):
        for row in part["rows"]:
            assert f"{row['loss']:.4f}" in text
    best = data["overall"]["best"]
    assert ("best: the stored weights" if best is None else f"best: length {best:g}") in text
    assert text.count(" best") >= 3 and "rough" in text
    assert Image.open(picture).size == (1050, 630)


def test_it_writes_an_ensemble_that_loads_averages(made, tmp_path):
    to = tmp_path / "longer.json"
    said = run(made, "--write", 0.12, "-o", to)
    assert said.startswith(f"{to}: base draws with averages of length 0.12")
    before, after = read_json(made), read_json(to)
    assert after["stages"][0]["sampling"] == before["stages"][0]["sampling"] | {"ema_length": 0.12}
    assert {k: v for k, v in after.items() if k != "stages"} == {
        k: v for k, v in before.items() if k != "stages"
    }
    loader = StageLoader(Store.at(after["store"]), after["stages"], after["weights"])
    loader.load()
    assert loader.lengths == {"base": 0.12}
    assert run(to).startswith("base: draws with averages of length 0.12")


def test_a_mistake_is_one_line(made, tmp_path):
    assert "--length 'long' is not a number" in refused(made, "--length", "0.1,long")
    assert "must lie in (0, 0.288), got 0.3" in refused(made, "--length", "0.3")
    assert "no stage 'sr'; the cascade has base" in refused(made, "--stage", "sr")
    assert "--plot shows what --length measures" in refused(made, "--plot", tmp_path / "a.png")
    assert "end its name in .json" in refused(made, "--write", 0.1, "-o", tmp_path / "a.yaml")
    said = refused(made, "--write", 0.5, "-o", tmp_path / "a.json")
    assert said == "`ema_length` is 0.5: input should be less than 0.288"
    assert "there is no ensemble at" in refused(tmp_path / "none.json")
    other = tmp_path / "other.json"
    for text in ("{}", "[", "[]", '{"store": "s", "stages": [], "weights": {}}'):
        other.write_text(text)
        assert "is not an ensemble manifest" in refused(other)


def test_an_expert_without_snapshots_is_listed_and_refused(tmp_path):
    store = Store.at(str(tmp_path / "store"))
    made = write_ensemble(store, CONFIG)
    write_expert(store, CONFIG, "E1_1", every=None)
    said = run(made)
    assert "set `stages.base.training.snapshot_images`" in said
    assert [line.split() for line in said.splitlines() if "base/E1_1" in line] == [
        ["E1_1", "base/E1_1", "96", "0"]
    ]
    to = tmp_path / "longer.json"
    assert "base/E1_1 was trained without snapshots" in refused(made, "--write", 0.1, "-o", to)
    assert not to.exists()


def test_lengths_are_read_once_each_in_order():
    assert parse_lengths(["0.1, 0.05", "0.1"]) == [0.1, 0.05]
