"""The smallest study: stopped and continued, its cells are ordinary pipelines, and its report is
the same whenever it is written."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from kit import EDIFFI, driver, said
from paths import SPECS

STUDY = SPECS / "studies/smoke.yaml"


@dataclass(frozen=True)
class Done:
    """The finished study."""

    store: Path
    text: str
    """What its last run printed."""


pytestmark = pytest.mark.soak  # minutes: seven cells are trained


@pytest.fixture(scope="module")
def study(smoke, tmp_path_factory):
    """In a copy of the smoke run's store, whose data and encoders it has too. Its pod is killed
    amid the trainings."""
    folder = tmp_path_factory.mktemp("study")
    store = smoke.copy(folder / "store")
    before = {m.parent.name for m in store.glob("nodes/train/base/*/manifest.json")}

    def trained():
        return {m.parent.name for m in store.glob("nodes/train/base/*/manifest.json")} - before

    run = (EDIFFI, "study", "run")
    with driver(STUDY, store, folder / "log1", program=run) as first:
        first.until(lambda: len(trained()) >= 4, "its fourth training")
        first.kill(workers=True)
    done = {
        name: (store / "nodes/train/base" / name / "manifest.json").stat() for name in trained()
    }
    with driver(STUDY, store, folder / "log2", program=run) as second:
        assert second.finish() == 0, second.text()
    assert ", attempt 2: " in second.text()
    for name, stat in done.items():
        now = (store / "nodes/train/base" / name / "manifest.json").stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), name
    return Done(store, second.text())


def test_the_run_ends_with_its_claims(study):
    claims = study.text[study.text.rindex("MLflow at") :].splitlines()[1:-1]
    assert len(claims) == 3
    assert all(line.split()[0] in ("supported", "refuted", "open") for line in claims)
    assert "Two experts have a lower loss than one model: " in claims[0]
    assert " 2 seeds × 32 pictures" in claims[0]
    assert study.text.rstrip().endswith("report.html")


def test_nothing_is_left_to_do(study):
    assert "\n0 to run, " in said("study", "plan", STUDY, "--storage", study.store)
    told = said("study", "status", STUDY, "--storage", study.store)
    assert told.startswith("study study-smoke: done, attempt 2; 7 of 7 cells are finished")


def test_a_cell_is_a_pipeline_whose_nodes_are_done(study, tmp_path):
    said("study", "cells", STUDY, "--storage", study.store, "--output", tmp_path)
    cells = sorted(path.name for path in tmp_path.iterdir())
    assert len(cells) == 7 and "study-smoke-tree-s0.yaml" in cells
    for name in cells:
        planned = json.loads(said("plan", tmp_path / name, "--storage", study.store, "--json"))
        todo = {node["id"].split("/")[0] for node in planned["nodes"] if not node["cached"]}
        assert todo == {"compare", "promote"}, name
    told = said("diff", tmp_path / "study-smoke-s0.yaml", tmp_path / "study-smoke-s1.yaml")
    assert "train/base/E0_0" in told and "seed" in told


def test_the_report_has_every_figure_and_the_same_bytes_each_time(study, tmp_path):
    for name in ("one", "two"):
        said("study", "report", STUDY, "--storage", study.store, "--output", tmp_path / name)
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two
    assert "Not shown" not in one[Path("report.md")].decode()
    numbers = json.loads(one[Path("results.json")])
    assert len(numbers["claims"]) == 3
    figures = {
        path.stem for path in one if path.parent.name == "figures" and path.suffix == ".json"
    }
    assert {"main", "by-noise", "losses", "budget", "gradients", "guidance", "seconds"} <= figures


def test_equal_budgets_are_counted(study, tmp_path):
    said("study", "report", STUDY, "--storage", study.store, "--output", tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["cost"]
    cost = {(row["comparison"], row["at"]): row for row in rows}
    tree = cost["ensemble against reweighted", "tree"]
    # The root of 128 images, and four experts of 32; a model that trains on from there to 256.
    assert tree["training images"] == [256, 256] and tree["equal"]
    assert tree["parameters in use"][0] == tree["parameters in use"][1]
    assert tree["parameters stored"][0] == 3 * tree["parameters stored"][1]


def test_mlflow_has_the_experts_and_the_report(study):
    client = mlflow.MlflowClient(f"sqlite:///{study.store}/mlflow.db")
    experiment = client.get_experiment_by_name("study-smoke").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    [report] = [r for r in runs if r.data.tags.get("ediffi.kind") == "study report"]
    assert {f.path for f in client.list_artifacts(report.info.run_id, "report")} >= {
        "report/report.html",
        "report/results.json",
    }
    assert {"experts-win/gain", "tree-wins/supported"} <= report.data.metrics.keys()
    experts = {r.data.tags["ediffi.node"]: r for r in runs if "ediffi.expert" in r.data.tags}
    child = experts["study-smoke-s0:train/base/E1_1"]
    root = experts["study-smoke-s0:train/base/E0_0"]
    assert child.data.tags["mlflow.parentRunId"] == root.info.run_id
