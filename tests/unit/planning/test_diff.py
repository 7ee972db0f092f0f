"""Which nodes differ between two specs, and why."""

import json

import pytest
import yaml
from planning_kit import SPECS, planned, raw
from typer.testing import CliRunner

from pipelines.cli.verbs import app
from pipelines.planning.diff import compare, text
from pipelines.spec.pipeline import Spec


def smoke(change=lambda raw: None):
    spec = raw()
    change(spec)
    return planned(Spec.model_validate(spec))


def differences(change):
    return {d.node: (d.change, d.why) for d in compare(smoke(), smoke(change))}


def test_a_plan_is_equal_to_itself():
    assert compare(smoke(), smoke()) == []
    assert text(smoke(), smoke(), []) == f"0 of {len(smoke().verdicts)} nodes differ"


def test_a_setting_changes_its_node_and_what_follows_from_it():
    found = differences(lambda raw: raw["stages"]["base"]["experts"]["E1_1"].update(images=144))
    assert found["train/base/E1_1"] == ("changed", ["images: 128 → 144"])
    assert found["evaluate/base/ensemble"] == ("inputs", ["through train/base/E1_1"])
    assert "train/base/E1_0" not in found


def test_experts_come_and_go():
    def deeper(raw):
        base = raw["stages"]["base"]
        base["experts"] |= {"E2_3": {"images": 64}, "E2_2": {"images": 64}}
        base["ensemble"] = ["E2_3", "E2_2", "E1_0"]
        del base["single"]

    found = differences(deeper)
    assert found["train/base/E2_3"] == ("new", [])
    assert found["train/base/single"] == found["evaluate/base/single"] == ("gone", [])
    assert found["promote/smoke"][0] == "changed"  # it reads other experts
    assert list(found)[-3:] == ["train/base/single", "evaluate/base/single", "compare/base"]


def test_runtime_changes_are_told_apart():
    found = differences(lambda raw: raw["stages"]["base"]["cadence"].update(keep_latest=5))
    trained = [f"train/base/{e}" for e in ("E0_0", "E1_1", "E1_0", "single")]
    assert found == {name: ("runtime", ["keep_latest: 2 → 5"]) for name in trained}


@pytest.fixture
def specs(tmp_path):
    mine = raw()
    mine["stages"]["sr32"]["experts"]["E0_0"]["images"] = 144
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    return str(SPECS / "smoke.yaml"), str(tmp_path / "mine.yaml")


def test_text_and_json_agree(specs):
    said = CliRunner().invoke(app, ["diff", *specs]).output.splitlines()
    told = json.loads(CliRunner().invoke(app, ["diff", *specs, "--json"]).output)
    assert [d["node"] for d in told] == [
        "train/sr32/E0_0",
        "adopt/sr32",
        "evaluate/sr32/ensemble",
        "promote/smoke",
    ]
    assert said[0] == f"4 of {len(smoke().verdicts)} nodes differ"
    assert said[2].split() == ["changed", "train/sr32/E0_0", "images:", "128", "→", "144"]
    assert [line.split()[1] for line in said[2:]] == [d["node"] for d in told]


def test_an_error_names_the_spec_that_it_is_in(specs, tmp_path):
    bad = raw()
    bad["data"]["train"] = {"path": "nowhere"}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(bad))
    found = CliRunner().invoke(app, ["diff", specs[0], str(tmp_path / "bad.yaml")])
    assert str(found.exception).startswith(f"{tmp_path / 'bad.yaml'}: ")
