"""`ediffi evaluate`: curves of several models, points that are drawn once, and bad input."""

import json
import signal

import pytest
from curve_kit import Redness, finished, install_redness, points_of

from pipelines.cli import evaluating
from pipelines.cli.app import writable_folder
from pipelines.cli.evaluate_options import rank_deficient
from pipelines.evaluation import points, worker
from pipelines.evaluation.comparison import Options
from pipelines.evaluation.workers import WorkersDied
from pipelines.spec.evaluation import FeatureNetwork


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def metric(monkeypatch):
    install_redness(monkeypatch)


@pytest.mark.slow
def test_models_and_settings_become_lines_and_points(evaluate, store, tmp_path):
    code, out, err = evaluate(
        store, "tiny", "tiny/single", "--guidance", "0:2:1", "--steps", "1,2", "--captions", 6
    )
    assert (code, err) == (0, "")
    assert "tiny/single, guidance 2, steps 2: redness" in out
    found = points_of(tmp_path / "report")
    assert (found["along"], found["alignment"], found["distance"]) == (
        "guidance",
        "redness",
        "kernel_distance",
    )
    assert [(line["model"], line["fixed"]) for line in found["lines"]] == [
        ("tiny", {"steps": 1}),
        ("tiny", {"steps": 2}),
        ("tiny/single", {"steps": 1}),
        ("tiny/single", {"steps": 2}),
    ]
    points = [point for line in found["lines"] for point in line["points"]]
    assert len({json.dumps(point["measures"]) for point in points}) == 12  # all differ
    for point in points:
        redness = point["measures"]["redness"]
        assert redness["count"] == 6 and redness["low"] < redness["value"] < redness["high"]
    assert (tmp_path / "report/curve.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report/README.md").read_text()
    assert "ediffi evaluate tiny tiny/single --guidance 0:2:1" in page
    assert page.count("\n| tiny") == 12


@pytest.mark.slow
def test_a_second_call_draws_only_what_is_new(evaluate, drawn, tmp_path, store):
    asked = ("tiny", "--captions", 8, "--batch", 4, "--seed", 5, "--guidance")
    assert evaluate(store, *asked, "0,1")[0] == 0
    assert drawn == [4, 4] * 2
    first = points_of(tmp_path / "report")["lines"][0]["points"]
    del drawn[:]
    code, out, _ = evaluate(store, *asked, "0,1")
    assert (code, drawn, out.count("(from the store)")) == (0, [], 2)
    assert points_of(tmp_path / "report")["lines"][0]["points"] == first
    evaluate(store, *asked, "0:2:1")
    assert drawn == [4, 4]
    assert points_of(tmp_path / "report")["lines"][0]["points"][:2] == first
    assert not [f for f in store.files("curves/points") if "/parts/" in f]


@pytest.mark.slow
def test_whatever_changes_a_result_is_measured_again(evaluate, store, drawn):
    asked = ("tiny", "--captions", 6)
    evaluate(store, *asked)
    del drawn[:]
    for other in (["--seed", 1], ["--set", "threshold=static"], ["--captions", 7]):
        assert (
            evaluate(store, *asked, *other)[0] == 0
        )  # of an option given twice, the last one counts
    assert drawn == [6, 6, 7]


@pytest.mark.slow
def test_after_a_kill_only_the_chunk_in_hand_is_drawn_again(
    evaluate, store, drawn, monkeypatch, tmp_path
):
    asked = ("tiny", "--captions", 8, "--batch", 2, "--seed", 77)
    original = worker.Worker.compute

    def killed(self, chunk):
        if chunk.start == 4 and self.stages:
            raise KeyboardInterrupt
        original(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "compute", killed)
        assert evaluate(store, *asked)[0] != 0
    assert drawn == [2, 2]
    assert evaluate(store, *asked)[0] == 0
    assert drawn == [2, 2, 2, 2]
    [line] = points_of(tmp_path / "report")["lines"]
    evaluate(store, "tiny", "--captions", 8, "--batch", 2, "--seed", 78)
    [other] = points_of(tmp_path / "report")["lines"]
    assert other["points"][0]["measures"] != line["points"][0]["measures"]


@pytest.mark.slow
def test_two_calls_at_once_share_their_points(evaluate, store, drawn, monkeypatch, tmp_path):
    """The second ends while the first draws its last chunk, and removes the parts of both."""
    asked = ("tiny", "--captions", 6, "--batch", 3, "--seed", 31)
    original, codes = worker.Worker.compute, []

    def overtaken(self, chunk):
        original(self, chunk)
        if self.stages and chunk.start == 3:
            monkeypatch.setattr(worker.Worker, "compute", original)
            codes.append(evaluate(store, *asked)[0])

    monkeypatch.setattr(worker.Worker, "compute", overtaken)
    code, _, err = evaluate(store, *asked)
    assert (code, err, codes, drawn) == (0, "", [0], [3, 3])
    [line] = points_of(tmp_path / "report")["lines"]
    assert line["points"][0]["measures"]["redness"]["count"] == 6


@pytest.mark.slow
def test_parts_of_another_batch_are_removed_with_the_others(evaluate, store, monkeypatch):
    original = worker.Worker.compute

    def killed(self, chunk):
        if self.stages and chunk.start:
            raise KeyboardInterrupt
        original(self, chunk)

    asked = ("tiny", "--captions", 6, "--seed", 32, "--batch")
    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "compute", killed)
        assert evaluate(store, *asked, 2)[0] != 0
    assert [f for f in store.files("curves/points") if "/parts/2/" in f"/{f}"]
    assert evaluate(store, *asked, 3)[0] == 0
    assert not [f for f in store.files("curves/points") if "/parts/" in f"/{f}"]


@pytest.mark.slow
def test_the_best_settings_are_written_into_an_ensemble(evaluate, store, tmp_path):
    file = tmp_path / "best.json"
    code, out, _ = evaluate(
        store, "tiny", "--captions", 6, "--guidance", "0,4", "--write-best", file
    )
    assert code == 0 and f"{file}: tiny with guidance" in out
    [stage] = json.loads(file.read_text())["stages"]
    assert f"with guidance {stage['sampling']['guidance']:g};" in out
    code, _, err = evaluate(store, file, "--captions", 6)  # and it is a model like others
    assert (code, err) == (0, "")


@pytest.mark.slow
def test_a_plan_draws_nothing(evaluate, store, drawn, tmp_path):
    code, out, err = evaluate(
        store,
        "tiny",
        "--captions",
        9,
        "--guidance",
        "0:3:1",
        "--plan",
        "--gpu",
        "H100",
        "--price",
        2,
    )
    assert (code, err, drawn) == (0, "", [])
    assert "36 = 4 × 9" in out and "base 2 to 4 a picture" in out and "USD" in out
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tiny", "--guidance", "0:1"], "--guidance '0:1' cannot be read"),
        (["tiny", "--solver", "heum"], "did you mean `heun`"),
        (["tiny", "--set", "stesp=3"], "did you mean `steps`"),
        (["tiny", "--set", "steps=3", "--steps", "1,2"], "steps is both compared and set"),
        (["tiny", "tiny"], "tiny is named twice"),
        (["nobody"], "neither an ensemble.json"),
        (["tiny/root"], "has evaluated no root model"),
        (["nobody/single"], "there is no pipeline 'nobody'"),
        (["tiny", "--stage", "sr8"], "tiny has no stage 'sr8'; it has base (8)"),
        (["tiny", "--captions", "13"], "has 12 captions with 8×8 pictures, 13 are asked for"),
        (["tiny", "--data", "train"], "does not say which train data"),
        (["tiny", "--alignment", "beauty"], "'beauty' was not measured, only redness"),
        (["tiny", "--measures", "fidd"], "there is no 'fidd'; did you mean `fid`"),
        (["tiny", "--measures", "kid"], "name a network with --features"),
        (
            ["tiny", "--measures", "cmmd", "--features", "i={kind: inception, weights: f.pth}"],
            "cmmd is measured on features of CLIP",
        ),
        (["tiny", "--clip-pretrained", "openai"], "of --clip, which is not given"),
        (["tiny", "--gpu", "H100"], "are of --plan"),
        (["tiny", "--plan", "--price", "2"], "name its kind with --gpu"),
        (["tiny", "--features", "inception"], "the benchmark has no such features"),
        (["tiny", "--features", "i={kind: inception}"], "--features i: features of kind"),
        (["tiny", "--plan", "--gpu", "B17"], "'B17' is unknown"),
        (["tiny/single", "--captions", "6", "--write-best", "best.json"], "is no ensemble"),
        (["tiny", "--protocol", "nowhere.yaml"], "there is no protocol at nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line(evaluate, store, args, message):
    code, _, err = evaluate(store, *args)
    assert code == 2 and err.startswith("ediffi: ") and err.count("\n") == 1
    assert message in err


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(
    evaluate, store, drawn, tmp_path
):
    (tmp_path / "report").write_text("a file")
    assert "is a file; name a folder with -o" in evaluate(store, "tiny", "--captions", 6)[2]
    assert drawn == []
    with pytest.raises(ValueError, match=r"report is a file; name a folder with -o"):
        writable_folder(tmp_path / "report/of/today", "-o")
    writable_folder(tmp_path / "new/of/today", "-o")
    assert not (tmp_path / "new").exists()


def test_a_metric_of_another_version_is_not_mixed_with_the_fitted_one(
    evaluate, store, drawn, monkeypatch
):
    monkeypatch.setattr(Redness, "version", 2)
    code, _, err = evaluate(store, "tiny", "--captions", 6)
    assert (code, drawn) == (2, []) and "redness is of version 2 here, and of 1" in err


def test_workers_that_die_are_one_line(evaluate, store, monkeypatch):
    def measure(*given):
        raise WorkersDied("3 workers died while computing pictures-0:\nout of memory")

    monkeypatch.setattr(points.Measuring, "measure", measure)
    code, _, err = evaluate(store, "tiny", "--captions", 5)
    assert code == 2 and err.count("\n") == 1 and "3 workers died" in err


def test_an_fid_of_fewer_pictures_than_features_is_said():
    given = {"kind": "inception", "weights": "/models/inception.pth", "layer": "64"}
    options = Options(features={"i": FeatureNetwork.model_validate(given)})
    [text] = rank_deficient(options, 64)
    assert "fid/i has 64 features, but 64 pictures" in text
    assert rank_deficient(options, 65) == []


def test_sigterm_ends_the_command_with_its_usual_code():
    before = signal.getsignal(signal.SIGTERM)
    try:
        evaluating._exit_on_sigterm()
        with pytest.raises(SystemExit) as stop:
            signal.raise_signal(signal.SIGTERM)
        assert stop.value.code == 143
    finally:
        signal.signal(signal.SIGTERM, before)
