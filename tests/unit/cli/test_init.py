"""`ediffi init`: what it finds in data of every format, and that the spec it writes plans as is."""

import json
import sys

import pytest
from dirty import encoded, noise, write_parquet, write_tar

from pipelines import cli
from pipelines.dag import plan, sources
from pipelines.planning import lint, starter_spec
from pipelines.spec import loading as specs
from pipelines.store.artifacts import Store


@pytest.fixture
def ediffi(capsys, monkeypatch):
    """``ediffi(verb, …)`` → (exit code, stdout, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["ediffi", *map(str, args)])
        monkeypatch.delenv("EDIFFI_DEBUG", raising=False)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def init(ediffi, tmp_path):
    """``init(data, …)`` → the spec that was written, and what was printed."""

    def call(data, *args):
        file = tmp_path / "my.yaml"
        code, out, err = ediffi("init", file, "--data", data, "--gpus", 0, "--force", *args)
        assert (code, err) == (0, "")
        return specs.load(file), dict(line.split(maxsplit=1) for line in out.splitlines())

    return call


def jpeg(i, side=64):
    return encoded(noise((side, side + i), seed=i))


def rows(numbers, side=64, image="image", caption="caption"):
    return [{image: jpeg(i, side), caption: f"the thing number {i}"} for i in numbers]


def parquet_files(folder, names, each=3, **options):
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        write_parquet(folder / name, rows(range(k * each, (k + 1) * each), **options))
    return folder


def tars(folder, count, members, each=3):
    folder.mkdir(parents=True)
    for k in range(count):
        names = range(k * each, (k + 1) * each)
        write_tar(folder / f"{k:04}.tar", [m for i in names for m in members(i)])
    return folder


def pictures(folder, numbers, side=64):
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        (folder / f"{i}.jpg").write_bytes(jpeg(i, side))
    return folder


def planned(spec, store, assume=False):
    """The nodes of a spec's plan, and the errors that would keep it from running."""
    made = plan.make(spec, Store.at(str(store)), sources.identify_all(spec, assume))
    return set(made.verdicts), [f for f in lint.check(spec, made) if f.is_error]


def check(spec, tmp_path):
    """The spec plans with the data and without."""
    for assume in (False, True):
        nodes, errors = planned(spec, tmp_path / "store", assume)
        assert errors == [] and {"embed/train", "embed/validation"} <= nodes


def test_parquet_with_other_column_names(init, tmp_path):
    files = ["a.parquet", "b.parquet", "c.parquet"]
    data = parquet_files(tmp_path / "d", files, image="jpg", caption="prompt")
    spec, said = init(data)
    assert spec.data.train.path == [str(data / "a.parquet"), str(data / "b.parquet")]
    assert spec.data.validation.path == str(data / "c.parquet")
    assert (spec.data.train.image, spec.data.train.caption) == ("jpg", "prompt")
    assert (spec.data.train.pairs, spec.data.validation.pairs) == (6, 3)
    assert said["found"].startswith("Parquet, 2 files, ") and said["found"].endswith(" 6 pairs")
    assert said["columns"] == "image: jpg, caption: prompt"
    assert said["pictures"] == "shortest side 64 pixels" and said["captions"] == "4 words"
    assert said["validation"] == "the last file of 3, held out: 3 pairs"
    assert spec.name == "my" and list(spec.stages) == ["base"]
    check(spec, tmp_path)


def test_parquet_columns_that_cannot_be_told_apart(ediffi, tmp_path, init):
    row = {"left": jpeg(0), "right": jpeg(1), "caption": "a cat"}
    for name in ("a", "b"):
        (tmp_path / "d").mkdir(exist_ok=True)
        write_parquet(tmp_path / "d" / f"{name}.parquet", [row])
    code, _, err = ediffi("init", tmp_path / "my.yaml", "--data", tmp_path / "d")
    assert code == 2 and "several columns may be the image: there are left, right" in err
    assert "--image COLUMN" in err and not (tmp_path / "my.yaml").exists()
    spec, _ = init(tmp_path / "d", "--image", "right")
    assert spec.data.train.image == "right" and "caption" not in spec.data.train.model_fields_set
    check(spec, tmp_path)


def test_splits_that_file_names_make(init, tmp_path):
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    more = ["test-00000-of-00001.parquet", "validation-00000-of-00001.parquet"]
    data = parquet_files(tmp_path / "d", names + more)
    spec, said = init(data)
    assert spec.data.train.path == [str(data / name) for name in names]
    assert spec.data.validation.path == str(data / more[1])
    assert said["validation"].startswith(f"validation in {data}, by name")
    check(spec, tmp_path)


def test_splits_that_folders_make(init, tmp_path):
    data = tmp_path / "d"
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        folder = pictures(data / split, numbers)
        for i in numbers:
            (folder / f"{i}.txt").write_text(f"thing {i}")
    spec, said = init(data)
    assert (spec.data.train.path, spec.data.validation.path) == (f"{data}/train", f"{data}/val")
    assert said["found"].startswith("a folder of pictures, 6 pictures, ")
    check(spec, tmp_path)


def test_a_caption_file(init, tmp_path):
    for split, numbers in (("one", range(4)), ("two", range(2))):
        folder = pictures(tmp_path / split, numbers)
        lines = [json.dumps({"filename": f"{i}.jpg", "prompt": f"thing {i}"}) for i in numbers]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    spec, said = init(tmp_path / "one", "--validation", tmp_path / "two")
    assert said["columns"] == "image: filename, caption: prompt"
    assert spec.data.validation.pairs == 2
    check(spec, tmp_path)


def test_pictures_of_trains_are_no_split(tmp_path, ediffi):
    folder = pictures(tmp_path / "d", range(2))
    for i, name in enumerate(("train-1.jpg", "test-2.jpg")):
        (folder / f"{i}.jpg").rename(folder / name)
        (folder / name).with_suffix(".txt").write_text("a locomotive")
    code, _, err = ediffi("init", tmp_path / "my.yaml", "--data", folder)
    assert code == 2 and "move a few hundred of its pictures" in err


def test_many_files_are_not_listed(tmp_path, ediffi, monkeypatch):
    monkeypatch.setattr("pipelines.planning.starter_spec.MOST_LISTED", 2)
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet", "c.parquet"])
    code, _, err = ediffi("init", tmp_path / "my.yaml", "--data", data)
    assert code == 2 and "move some of its 3 files" in err
    names = ["train-0.parquet", "train-1.parquet", "train-2.parquet", "val-0.parquet"]
    data = parquet_files(tmp_path / "e", names)
    code, _, err = ediffi("init", tmp_path / "my.yaml", "--data", data)
    assert code == 2 and "to folders of their own, named train and validation" in err


@pytest.mark.parametrize("at_root", [True, False])
def test_coco(init, tmp_path, at_root):
    data = tmp_path / "coco"
    (data / "annotations").mkdir(parents=True)
    for split, numbers in (("train2017", range(4)), ("val2017", range(4, 6))):
        pictures(data / split, numbers)
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in numbers]
        captions = [{"image_id": i, "id": i, "caption": f"thing {i}"} for i in numbers]
        whole = {"images": images, "annotations": captions}
        (data / f"annotations/captions_{split}.json").write_text(json.dumps(whole))
    train, val = (data / f"annotations/captions_{s}2017.json" for s in ("train", "val"))
    spec, said = init(data if at_root else train)
    assert (spec.data.train.path, spec.data.validation.path) == (str(train), str(val))
    assert said["found"].startswith("COCO, 4 pictures, ")
    check(spec, tmp_path)


def test_tars_whose_captions_are_in_a_json_field(init, tmp_path):
    def members(i):
        meta = json.dumps({"description": f"thing {i}", "width": 64}).encode()
        return (f"{i:03}.jpg", jpeg(i)), (f"{i:03}.json", meta)

    data = tars(tmp_path / "d", 3, members)
    spec, said = init(data)
    assert spec.data.train.caption == "description" and said["columns"] == "caption: description"
    assert said["found"].startswith("WebDataset, 2 files, ")
    check(spec, tmp_path)


def test_tars_with_two_pictures_a_sample(init, ediffi, tmp_path):
    def members(i):
        return (f"{i:03}.in.jpg", jpeg(i)), (f"{i:03}.out.jpg", jpeg(i)), (f"{i:03}.txt", b"a")

    data = tars(tmp_path / "d", 2, members)
    code, _, err = ediffi("init", tmp_path / "x.yaml", "--data", data)
    assert code == 2 and err.count("\n") == 1 and "in.jpg, out.jpg, txt" in err
    spec, _ = init(data, "--image", "out.jpg")
    assert spec.data.validation.image == "out.jpg"
    check(spec, tmp_path)


def test_large_pictures_get_super_resolution_and_small_ones_are_filtered(init, tmp_path):
    data = tmp_path / "d"
    data.mkdir()
    write_parquet(data / "a.parquet", rows(range(6), side=256) + rows(range(6, 8), side=40))
    write_parquet(data / "b.parquet", rows(range(8, 10), side=256))
    spec, said = init(data)
    assert [(n, s.resolution) for n, s in spec.stages.items()] == [("base", 64), ("sr256", 256)]
    assert spec.data.train.filters.min_side == 64
    assert spec.data.validation.filters.min_side is None
    assert said["pictures"] == "shortest side 40 to 256, median 256 pixels"
    assert "resolution: 256                     # 75 % of" in (tmp_path / "my.yaml").read_text()
    check(spec, tmp_path)


@pytest.mark.parametrize(("side", "resolution"), [(40, 32), (16, 16)])
def test_small_pictures_get_a_small_base(init, tmp_path, side, resolution):
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet"], side=side)
    spec, _ = init(data)
    assert [s.resolution for s in spec.stages.values()] == [resolution]
    check(spec, tmp_path)


def test_a_large_data_set_is_sampled_and_the_report_says_so(init, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.data.inspect.SAMPLE_ROWS", 4)
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet", "c.parquet"], each=8)
    _, said = init(data)
    assert said["pictures"].endswith(" pixels, in a sample of 4 rows")
    assert said["found"].endswith(" 16 pairs")  # from the footers
    folder = pictures(tmp_path / "e", range(9))
    (folder / "captions.csv").write_text(
        "file_name,caption\n" + "".join(f"{i}.jpg,thing {i}\n" for i in range(9))
    )
    _, said = init(folder, "--validation", data)
    assert said["found"].endswith(" 9 pairs")

    def members(i):
        return (f"{i:03}.jpg", jpeg(0, side=128)), (f"{i:03}.txt", b"a thing")

    _, said = init(tars(tmp_path / "t", 3, members, each=20))
    about = said["found"].rpartition("about ")[2]
    assert 38 <= int(about.removesuffix(" pairs")) <= 48  # of 40, and the tars' ends


def test_bad_rows_are_counted(init, tmp_path):
    data = tmp_path / "d"
    data.mkdir()
    bad = [{"image": b"<html>", "caption": "a cat"}, {"image": jpeg(1), "caption": ""}]
    write_parquet(data / "a.parquet", rows(range(4)) + bad)
    write_parquet(data / "b.parquet", rows(range(2)))
    _, said = init(data)
    assert said["unusable"] == (
        "2 of 6 rows read: image is of no known format (1), caption is empty (1)"
    )


def test_a_list_of_data_and_odd_names(init, tmp_path):
    one = parquet_files(tmp_path / "a: #1", ["x.parquet"])
    two = parquet_files(tmp_path / "b 'ü'", ["y.parquet", "z.parquet"])
    spec, _ = init(one, "--data", two)
    assert spec.data.train.path == [str(one / "x.parquet"), str(two / "y.parquet")]
    assert spec.data.validation.path == str(two / "z.parquet")
    check(spec, tmp_path)


@pytest.mark.parametrize("gpus", [1, 3, 8])
def test_gpus(init, tmp_path, gpus):
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet"])
    spec, _ = init(data, "--gpus", gpus)
    workers = spec.stages["base"].workers
    assert (workers.count, workers.gpus) == ({1: 1, 3: 2, 8: 8}[gpus], 1)
    assert spec.gpus == gpus and spec.evaluate.gpus == 1 and spec.embedding.gpus == 1
    check(spec, tmp_path)


@pytest.mark.parametrize("pairs", [1, 30, 5_000, 200_000, 3_000_000, 10**9])
def test_budgets_are_whole_batches_without_a_warning(pairs, init, tmp_path):
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet"], side=256)
    train = starter_spec.inspect(str(data / "a.parquet"))
    held = starter_spec.inspect(str(data / "b.parquet"))
    object.__setattr__(train, "pairs", pairs)
    (tmp_path / "s.yaml").write_text(
        starter_spec.text("s", train, held, "as given", cpus=2, gpus=1)
    )
    spec = specs.load(tmp_path / "s.yaml")
    stage = spec.stages["sr256"]
    batch, root = stage.training.batch, stage.experts["E0_0"].images
    assert root % batch == 0 and stage.experts["E1_0"].images % batch == 0
    assert root < 50 * pairs + batch and root < 50_000_000 + batch
    made = plan.make(spec, Store.at(str(tmp_path / "no")), sources.identify_all(spec, True))
    warned = [f.key for f in lint.check(spec, made)]
    assert [key for key in warned if pairs > 100 or not key.startswith("stages.")] == []


def test_encoders_by_folder(init, ediffi, tmp_path, monkeypatch):
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet"])
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    spec, _ = init(data, "--t5", "./t5", "--clip", "ViT-B-32")
    assert (spec.encoders.t5, spec.encoders.clip) == (str(tmp_path / "t5"), "ViT-B-32")
    check(spec, tmp_path)
    for option, name in (("--t5", "/no/t5"), ("--clip", "ViT-Z-99")):
        code, _, err = ediffi("init", tmp_path / "n.yaml", "--data", data, option, name)
        assert code == 2 and f"{option} {name} is " in err


def test_nothing_is_overwritten_without_force(ediffi, tmp_path):
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet"])
    file = tmp_path / "my.yaml"
    file.write_text("mine")
    code, out, err = ediffi("init", file, "--data", data)
    assert (code, out) == (2, "") and "--force" in err and file.read_text() == "mine"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_is_no_spec(ediffi, tmp_path, force):
    code, out, err = ediffi("init", tmp_path, "--data", tmp_path, *force)
    assert (code, out, err) == (2, "", f"ediffi: {tmp_path} is a folder; name a file with SPEC\n")


def test_errors_name_the_options(ediffi, tmp_path):
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet"])
    file = tmp_path / "my.yaml"
    for options, words in (
        (("--data", data, "--image", "jpg"), "name yours with --image and --caption"),
        (("--data", tmp_path / "none"), "does not exist; set --data to"),
        (("--data", data, "--validation", tmp_path / "none"), "set --validation to"),
        (("--data", data, "--validation", f"{data}/"), "is given as --data too"),
    ):
        code, out, err = ediffi("init", file, *options)
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err, err


def test_a_binary_caption_is_shortened(ediffi, tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("a", "b"):
        made = [{"image": jpeg(0), "caption": "\x00" * 500}]
        write_parquet(tmp_path / "d" / f"{name}.parquet", made)
    code, _, err = ediffi("init", tmp_path / "my.yaml", "--data", tmp_path / "d")
    assert code == 2 and "…)" in err and err.count("x00") < 11


def test_the_report_ends_with_what_is_next(ediffi, tmp_path):
    data, file = tmp_path / "d", tmp_path / "my.yaml"
    parquet_files(data, ["a.parquet", "b.parquet"], image="jpg")
    _, out, _ = ediffi("init", file, "--data", data, "--gpus", 0)
    assert "columns     image: jpg, caption: caption\n" in out
    assert out.endswith(f"next: `ediffi doctor {file}`, then `ediffi plan {file}`\n")


def test_data_that_cannot_be_split_is_refused_with_what_to_do(ediffi, tmp_path):
    single = parquet_files(tmp_path / "one", ["a.parquet"])
    folder = pictures(tmp_path / "two", range(3))
    for i in range(3):
        (folder / f"{i}.txt").write_text("a")
    small = tmp_path / "three"
    small.mkdir()
    for name in ("a", "b"):
        write_parquet(small / f"{name}.parquet", rows(range(2), side=8))
    for data, words in (
        (single, "is one file, and part of the data must be held out"),
        (folder, "move a few hundred of its pictures"),
        (small, "less than 16 pixels"),
        (tmp_path / "none", "does not exist"),
        ("zip://::/data/d.zip", "give validation data with --validation"),
    ):
        code, out, err = ediffi("init", tmp_path / "my.yaml", "--data", data)
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err, err
        assert not (tmp_path / "my.yaml").exists()


@pytest.mark.slow
def test_data_in_a_bucket(s3, init, tmp_path):
    data = parquet_files(tmp_path / "d", ["a.parquet", "b.parquet"])
    store = Store.at("s3://bucket/pairs")
    for name in ("a.parquet", "b.parquet"):
        store.write(name, (data / name).read_bytes())
    spec, said = init(store.root)
    assert spec.data.train.path == f"{store.root}/a.parquet"
    assert said["found"].endswith(" 3 pairs")
    check(spec, tmp_path)
