"""The record of the smoke run in MLflow, read back with MLflow's own client."""

import re
from pathlib import Path

import pytest
from kit import Finished

EXPERTS = ("E0_0", "E1_1", "E1_0", "single")


class Record:
    """Both executions of the shared store, as MLflow has them."""

    def __init__(self, smoke: Finished) -> None:
        import mlflow

        self.uri = f"sqlite:///{smoke.store}/mlflow.db"
        self.client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        experiment = self.client.get_experiment_by_name("smoke").experiment_id
        runs = self.client.search_runs([experiment], max_results=1000)
        tops = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
        self.all = runs
        self.first, self.second = sorted(tops, key=lambda r: r.info.start_time)

    def nodes(self, execution):
        """Node → its run in an execution."""
        mine = execution.data.tags["ediffi.execution"]
        runs = [r for r in self.all if r.data.tags["ediffi.execution"] == mine]
        return {r.data.tags["ediffi.node"]: r for r in runs if "ediffi.node" in r.data.tags}

    def files(self, run, folder=None):
        return {f.path for f in self.client.list_artifacts(run.info.run_id, folder)}


@pytest.fixture(scope="module")
def record(smoke):
    return Record(smoke)


def parent(run):
    return run.data.tags["mlflow.parentRunId"]


def test_nested_runs_are_the_expert_tree(record):
    for execution in (record.first, record.second):
        nodes = record.nodes(execution)
        assert len(nodes) == 19
        root = nodes["train/base/E0_0"]
        assert parent(root) == execution.info.run_id
        for child in ("E1_1", "E1_0", "single"):
            assert parent(nodes[f"train/base/{child}"]) == root.info.run_id
        others = [r for n, r in nodes.items() if not n.startswith("train/base")]
        assert {parent(r) for r in others} == {execution.info.run_id}


def test_every_run_has_ended(record):
    assert len(record.all) == 40
    assert {r.info.status for r in record.all} == {"FINISHED"}


def test_flat_tags_to_filter_by(smoke, record):
    nodes = record.nodes(record.first)
    for expert in EXPERTS:
        tags, manifest = (
            nodes[f"train/base/{expert}"].data.tags,
            smoke.manifest(f"train/base/{expert}"),
        )
        assert tags["ediffi.stage"] == "base" and tags["ediffi.expert"] == expert
        assert tags["ediffi.state"] == "done"
        assert tags["ediffi.fingerprint"] == manifest["fingerprint"]
        assert tags["ediffi.weights_sha256"] == manifest["info"]["weights_sha256"]
        assert tags["ediffi.parent"] == ("" if expert == "E0_0" else "train/base/E0_0")
    high, low = (nodes[f"train/base/{e}"].data.tags for e in ("E1_1", "E1_0"))
    assert high["ediffi.level"] == low["ediffi.level"] == "1"
    assert (
        high["ediffi.sigma_lo"] == low["ediffi.sigma_hi"] == "0.301194"
    )  # exp(P_mean), the median
    assert (low["ediffi.sigma_lo"], high["ediffi.sigma_hi"]) == ("0", "inf")


def test_the_tags_find_runs_by_filter(record):
    found = record.client.search_runs(
        [record.first.info.experiment_id],
        "tags.`ediffi.expert` = 'E1_1' and tags.`ediffi.state` = 'done'",
    )
    assert [r.info.run_id for r in found] == [
        record.nodes(record.first)["train/base/E1_1"].info.run_id
    ]


def test_curves_have_points_at_the_images_they_were_measured_at(record):
    run = record.nodes(record.first)["train/base/E0_0"]

    def points(key):
        return {m.step: m.value for m in record.client.get_metric_history(run.info.run_id, key)}

    assert points("loss").keys() == {64, 128, 192, 256}
    assert points("images_per_s").keys() == {64, 128, 192, 256}
    bins = [k for k in run.data.metrics if k.startswith("val_loss_bin/")]
    assert len(bins) == 8
    for key in ("val_loss", *bins):
        assert points(key).keys() == {128, 256} and min(points(key).values()) > 0


def test_a_childs_curve_covers_its_own_interval_only(record):
    run = record.nodes(record.first)["train/base/E1_1"]
    assert len([k for k in run.data.metrics if k.startswith("val_loss_bin/")]) == 4


def test_gains_over_the_parent(smoke, record):
    for expert in ("E1_1", "E1_0"):
        metrics = record.nodes(record.first)[f"train/base/{expert}"].data.metrics
        gain = metrics["final/val_gain"]
        assert metrics["final/val_gain_low"] < gain < metrics["final/val_gain_high"]
        loss_saved = metrics["final/val_loss_parent"] - metrics["final/val_loss"]
        assert gain == pytest.approx(loss_saved, rel=1e-5)  # the losses are float32
        assert gain == smoke.manifest(f"train/base/{expert}")["metrics"]["val_gain"]


def test_the_executions_run_shows_the_tree(record):
    for execution in (record.first, record.second):
        note = execution.data.tags["mlflow.note.content"]
        assert all(expert in note for expert in EXPERTS)
        assert note.index("E0_0") < note.index("**E1_1**") < note.index("**E1_0**")
        assert "lineage.html" in record.files(execution)
        place = record.client.download_artifacts(execution.info.run_id, "lineage.html")
        text = Path(place).read_text()
        assert all(expert in text for expert in EXPERTS)
        runs = record.nodes(execution)
        assert all(runs[f"train/base/{expert}"].info.run_id[:8] in text for expert in EXPERTS)
        sources = re.findall(r'(?:src|href)="([^"]{5})', text)
        assert set(sources) == {"data:"}  # it needs nothing but itself


def test_sample_pictures_are_in_the_record(smoke, record):
    run = record.nodes(record.first)["evaluate/base/ensemble"]
    assert record.files(run, "evaluate") >= {"evaluate/samples.png", "evaluate/captions.txt"}
    place = record.client.download_artifacts(run.info.run_id, "evaluate/samples.png")
    assert (
        Path(place).read_bytes()
        == (smoke.folder("evaluate/base/ensemble") / "samples.png").read_bytes()
    )


def test_a_reused_nodes_run_names_the_run_it_came_from(record):
    first, second = record.nodes(record.first), record.nodes(record.second)
    for node, run in second.items():
        assert run.data.tags["ediffi.state"] == "reused"
        assert run.data.tags["ediffi.reused_from"] == first[node].info.run_id
        assert run.info.run_id != first[node].info.run_id


def test_the_ensemble_is_registered_once_for_both_executions(smoke, record):
    """The second made no new weights."""
    (version,) = record.client.search_model_versions("name = 'smoke'")
    aliases = record.client.get_registered_model("smoke").aliases
    assert str(aliases["candidate"]) == str(version.version)
    assert version.run_id == record.first.info.run_id
    promoted = smoke.manifest("promote/smoke")
    assert version.tags["ediffi.fingerprint"] == promoted["fingerprint"]
