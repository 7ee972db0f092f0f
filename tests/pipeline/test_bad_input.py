"""A user's mistake is one line that says what to do, and exit code 2; never a traceback."""

import json
import shutil

import pytest
from kit import SMOKE, call, ediffi, spec_with

from pipelines.runs.lease import only_driver
from pipelines.store.artifacts import Store


@pytest.fixture
def mistake(capsys):
    """``mistake(*arguments)`` → the one line that the command answers a mistake with."""

    def run(*args):
        capsys.readouterr()
        code = call(*args)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith("ediffi: ")
        return err

    return run


BASE = ("stages", "base")
BAD_SPECS = {
    "unknown key": ((*BASE, "cadence", "checkpoint_image"), 64, "`checkpoint_images`"),
    "unknown key at the top": (("evaluat",), {}, "`evaluate`"),
    "wrong type": ((*BASE, "training", "batch"), "many", "`stages.base.training.batch`"),
    "number as text": (("seed",), "3", "`seed`"),
    "missing": ((*BASE, "experts", "E1_1"), {}, "`stages.base.experts.E1_1.images` is missing"),
    "overlapping ensemble": ((*BASE, "ensemble"), ["E0_0", "E1_1"], "E1_1"),
    "uncovered ensemble": ((*BASE, "ensemble"), ["E1_1"], "M_C"),
    "unknown expert": ((*BASE, "ensemble"), ["E1_1", "E1_2"], "E1_2"),
    "no multiple of the batch": ((*BASE, "experts", "E1_1"), {"images": 100}, "write 96"),
    "unknown solver": ((*BASE, "sampling", "solver"), "deis", "deis3"),
    "unknown preset": ((*BASE, "network", "preset"), "huge", "smoke"),
    "half a network": ((*BASE, "network"), {"blocks": 1}, "`stages.base.network.channels`: is"),
    "path and make": (("data", "train", "path"), "mine", "either `path:`"),
}


@pytest.mark.parametrize(("at", "value", "word"), BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_a_bad_spec(mistake, tmp_path, at, value, word):
    def spoil(raw):
        *path, key = at
        for part in path:
            raw = raw[part]
        raw[key] = value

    spec = spec_with(tmp_path / "bad.yaml", spoil)
    for verb in ("plan", "run"):
        assert word in mistake(verb, spec, "--storage", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_network_that_could_not_run(mistake, tmp_path):
    """Which of its keys to change is known before anything is embedded or trained."""

    def widen(raw):
        raw["stages"]["base"]["network"] |= {"channels": 18}

    spec = spec_with(tmp_path / "bad.yaml", widen)
    for verb in ("plan", "run"):
        line = mistake(verb, spec, "--storage", tmp_path / "store")
        assert "`stages.base.network.channels`: channels 18 give" in line and "write 20" in line


@pytest.mark.parametrize("text", ["", "[1, 2]", "name: [", "name: smoke\n"])
def test_a_file_that_is_no_spec(mistake, tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    assert "bad.yaml" in mistake("plan", tmp_path / "bad.yaml")


def test_a_spec_that_is_not_there(mistake, tmp_path):
    assert "pipelines/specs/" in mistake("run", tmp_path / "no.yaml")


def with_own_data(to, folder):
    """A spec that trains on the Parquet in a folder."""

    def change(raw):
        raw["data"]["train"] = {"path": str(folder)}
        raw["encoders"] = {"t5": "nowhere/t5", "clip": "nowhere/clip"}

    return spec_with(to, change)


def test_a_data_folder_that_is_missing_empty_or_torn(mistake, tmp_path):
    spec, data, store = with_own_data(tmp_path / "s.yaml", tmp_path / "d"), tmp_path / "d", "x"
    assert "does not exist" in mistake("run", spec, "--storage", tmp_path / store)
    data.mkdir()
    assert "no .parquet" in mistake("run", spec, "--storage", tmp_path / store)
    (data / "a.parquet").write_bytes(b"PAR1 and then nothing")
    for more in ("", ", and so are 1 more"):
        line = mistake("run", spec, "--storage", tmp_path / store)
        assert f"no readable Parquet file: a.parquet is damaged or cut short{more}; copy" in line
        (data / "b.parquet").write_bytes(b"")


def test_parquet_without_captions(mistake, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": [b""], "words": ["a"]}), tmp_path / "d" / "a.parquet")
    spec = with_own_data(tmp_path / "s.yaml", tmp_path / "d")
    line = mistake("run", spec, "--storage", tmp_path / "store")
    assert "no column 'caption', only image, words" in line and "`caption:`" in line


def test_storage_that_cannot_be_written(mistake, tmp_path):
    """Root may write anywhere but below a file."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        line = mistake("run", SMOKE, "--storage", place)
        assert f"storage {str(place)!r} cannot be written" in line and "--storage" in line
        assert "--storage" in mistake("status", "--storage", place)


def test_a_second_driver(mistake, tmp_path):
    """Of the same pipeline and store; another pipeline in the store is free to run."""
    store = Store.open(str(tmp_path / "store"))
    with only_driver(store, "smoke"), only_driver(store, "other"):
        assert "is already running" in mistake("run", SMOKE, "--storage", tmp_path / "store")


def test_nothing_to_show_yet(mistake, tmp_path):
    assert "ediffi run" in mistake("status", "--storage", tmp_path)
    assert "ediffi run" in mistake("tree", "--storage", tmp_path)
    assert "no run x" in mistake("tree", "x", "--storage", tmp_path)


@pytest.fixture
def sample(mistake, tmp_path):
    """``sample(model, *options)`` → what it complains of; nothing was drawn."""

    def run(model, *options, output=tmp_path / "out.png"):
        line = mistake("sample", model, "a frog", "-o", output, *options)
        assert not output.exists()
        return line

    return run


def test_sample_with_a_model_that_is_unknown(sample, smoke, tmp_path):
    place = ("--storage", smoke.store)
    assert "'smock'" in sample("smock", *place)
    assert "smoke@retired" in sample("models:/smoke@retired", *place)
    assert "no.json" in sample(tmp_path / "no.json")
    (tmp_path / "bad.json").write_text("{}")
    assert "is not an ensemble manifest" in sample(tmp_path / "bad.json")


def test_sample_with_an_unknown_solver(sample, smoke):
    line = sample("smoke", "--storage", smoke.store, "--solver", "dpm")
    assert "'dpm'" in line and "deis3" in line


def test_sample_to_a_place_that_cannot_be_written(sample, smoke, tmp_path):
    place = ("--storage", smoke.store)
    assert "out.png" in sample("smoke", *place, output=tmp_path / "no" / "out.png")
    assert "nonsense" in sample("smoke", *place, output=tmp_path / "out.nonsense")


def test_a_checkpoint_of_another_interval(sample, smoke, tmp_path):
    """An ensemble that claims another interval than the expert was trained on is refused."""
    ensemble = json.loads((smoke.folder("promote/smoke") / "ensemble.json").read_text())
    ensemble["stages"][0]["experts"]["E1_1"] = [0.75, 1.0]
    (tmp_path / "other.json").write_text(json.dumps(ensemble))
    line = sample(tmp_path / "other.json")
    assert "E1_1" in line and "0.75" in line and "0.5" in line


def test_a_damaged_checkpoint(sample, smoke, tmp_path):
    """One flipped bit in the weights is found by their sha256, a cut by the format."""
    store = smoke.copy(tmp_path / "store", "embed", "data", "evaluate")
    ensemble = json.loads((smoke.folder("promote/smoke") / "ensemble.json").read_text())
    ensemble["store"] = str(store)
    (tmp_path / "here.json").write_text(json.dumps(ensemble))
    weights = store / ensemble["weights"]["base/E1_0"]["path"]
    whole = weights.read_bytes()
    for damaged in (whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], whole[: len(whole) // 2]):
        weights.write_bytes(damaged)
        assert "E1_0" in sample(tmp_path / "here.json")
    shutil.rmtree(weights.parent)
    assert "E1_0" in sample(tmp_path / "here.json")


def test_the_command_itself_says_no_more_than_a_line(tmp_path):
    """In a process of its own, where libraries' warnings would show."""
    end = ediffi("run", tmp_path / "no.yaml")
    assert (end.returncode, end.stdout, end.stderr.count("\n")) == (2, "", 1)
