"""The paper's Config D, planned without its data: figures by formula, close to the lower bound."""

import json
import xml.etree.ElementTree as ET

import pytest
from planning_kit import SPECS, edited
from typer.testing import CliRunner

from pipelines.cli.verbs import app

D = str(SPECS / "ediffi-d.yaml")


def say(*args):
    found = CliRunner().invoke(app, ["plan", D, "--assume", *map(str, args)])
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def plan_json():
    return json.loads(say("--json"))


def test_it_has_the_paper_s_experts_and_gpus():
    spec = edited("ediffi-d")
    assert {n: s.ensemble for n, s in spec.stages.items()} == {
        "base": ["E9_511", "M_C", "E3_0"],
        "sr256": ["E1_1", "E1_0"],
        "sr1024": ["E0_0"],
    }
    assert [g.count for g in spec.cluster.groups.values()] == [256, 128, 128]
    assert {s.training.batch for s in spec.stages.values()} == {2048}


def test_the_schedule_is_within_five_percent_of_the_lower_bound(plan_json):
    found = plan_json["outlook"]
    assert 0 <= found["above_bound"] < 0.05
    assert found["makespan_s"] == pytest.approx(
        max(found["bounds_s"].values()) * (1 + found["above_bound"])
    )
    assert found["critical_path"][:2] == ["embed/train", "train/base/E0_0"]


def test_its_figures_follow_from_formulas(plan_json):
    nodes = {n["id"]: n for n in plan_json["nodes"]}
    root = nodes["train/base/E0_0"]["cost"]
    # 500,000 × 2048 images × 3 × 690.8 GFLOPs, at 312 TFLOP/s × 0.35, 2 USD an hour
    hours = 500_000 * 2048 * 3 * 690.8e9 / (312e12 * 0.35) / 3600
    assert root["gpu_hours"] == pytest.approx(hours, rel=1e-3)
    assert root["money"] == pytest.approx(2 * hours, rel=1e-3)
    child = nodes["train/base/E9_511"]["cost"]
    assert child["gpu_hours"] == pytest.approx(hours / 10, rel=2e-3)
    total = sum((n["cost"] or {"money": 0})["money"] for n in nodes.values())
    assert plan_json["outlook"]["money"] == pytest.approx(total)


def test_its_spec_is_sound(plan_json):
    assert plan_json["findings"] == []


def test_people_read_the_tree_with_what_it_costs():
    text = say()
    lines = text.splitlines()
    [child] = [x for x in lines if "─ train/base/E2_3 " in x]
    [grandchild] = [x for x in lines if "─ train/base/E3_7 " in x]
    assert grandchild.index("─ train") == child.index("─ train") + 3
    assert "102,400,000 images" in child and "541 GPU-h" in child and "2.1 h" in child
    assert "above the lower bound of 73.5 h (work of base)" in text
    assert "based on" in lines


def test_the_chart_has_a_bar_for_every_node_that_takes_time(tmp_path, plan_json):
    say("--svg", tmp_path / "d.svg")
    root = ET.parse(tmp_path / "d.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    bars = [g.find(f"{space}rect") for g in root.iter(f"{space}g")]
    timed = [n["id"] for n in plan_json["nodes"] if n["cost"] and n["cost"]["seconds"]]
    assert len(bars) == len(timed)
    critical = [b for b in bars if b.get("class") == "critical"]
    assert len(critical) == len(set(plan_json["outlook"]["critical_path"]) & set(timed))
    width = float(root.get("width"))
    assert all(float(b.get("x")) + float(b.get("width")) < width for b in bars)


def test_a_chart_needs_a_cluster(tmp_path):
    asked = ["plan", str(SPECS / "smoke.yaml"), "--svg", str(tmp_path / "x.svg")]
    found = CliRunner().invoke(app, [*asked, "--storage", str(tmp_path)])
    assert isinstance(found.exception, ValueError) and "`cluster:`" in str(found.exception)
    assert not (tmp_path / "x.svg").exists()


def test_every_expert_is_measured_on_equally_many_draws(plan_json):
    """The gate's: 9 of the base's 25 steps are E9_511's, and 0.2 % of p(σ)."""
    nodes = {n["id"]: n["loss_draws"] for n in plan_json["nodes"] if n["loss_draws"]}
    assert nodes == {
        "evaluate/base/ensemble": {"E9_511": 1365, "M_C": 1365, "E3_0": 1365},
        "evaluate/sr256/ensemble": {"E1_1": 2048, "E1_0": 2048},
        "evaluate/sr1024/ensemble": {"E0_0": 4096},
    }
    line = "loss draws per expert's interval: E9_511 1,365, M_C 1,365, E3_0 1,365"
    assert line in say()
