"""A curve in MLflow: one run, its points as metrics and its report as artifacts."""

import shutil

import pytest

from ediffi_core.distances import Measured
from pipelines.evaluation.curve import Curve, Line, Point
from pipelines.lineage import curves, quiet_mlflow, record
from pipelines.store.artifacts import Store


def point(w, value):
    found = Measured(value=value, low=value - 1, high=value + 1, count=9, features="", sha256="")
    measures = {"fid/inception": found, "clip_score": found}
    return Point(setting={"guidance": w}, fingerprint=f"{w}", measures=measures)


@pytest.mark.slow
def test_a_curve_is_recorded_once(fresh_database, tmp_path, monkeypatch):
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "curve.png").write_bytes(b"png")
    (folder / "README.md").write_text("# a\n\n![a](curve.png)\n\n| model |\n")
    (folder / "other.txt").write_bytes(b"of the user")
    lines = [Line(model="a@champion", points=[point(0.0, 3.0), point(1.5, 2.0)])]
    made = Curve(
        title="a",
        command="ediffi evaluate a@champion",
        along="guidance",
        alignment="clip_score",
        distance="fid/inception",
        about={"captions": 9},
        lines=lines,
    )
    store = Store.open(str(tmp_path / "store"))
    for _ in range(2):
        assert curves.record(made, folder, store, "a") == uri
    client = quiet_mlflow().MlflowClient(tracking_uri=uri)
    [run] = client.search_runs([client.get_experiment_by_name("a").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["captions"] == "9"
    history = client.get_metric_history(run.info.run_id, "a_champion/fid/inception")
    assert sorted((m.step, m.value) for m in history) == [(0, 3.0), (1, 2.0)]
    assert run.data.metrics["a_champion/guidance"] == 1.5
    assert run.data.metrics["a_champion/fid/inception_high"] == 3.0
    kept = [f.path for f in client.list_artifacts(run.info.run_id, "curve")]
    assert kept == ["curve/README.md", "curve/curve.png"]
    assert run.data.tags["mlflow.note.content"] == "# a\n\n\n| model |"


def test_a_long_page_is_cut_after_a_line():
    page = "\n".join(f"| {i} | 0.5 |" for i in range(1000))
    found = curves.description(page)
    assert 4900 < len(found) <= record.TAG_CHARACTERS and page.startswith(found + "\n")
