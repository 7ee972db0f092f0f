"""Fashion-MNIST: its files are checked, its pairs reproducible, its captions read back."""

import gzip
import hashlib
import io
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.demo.fashion import files
from pipelines.demo.fashion.captions import CLASSES, NAMES, parse, write
from pipelines.demo.fashion.files import FILES, folder, missing, read_idx, read_split
from pipelines.demo.fashion.make import SIDE, write_parquet
from pipelines.demo.fashion.scorer import FashionMnist
from pipelines.metrics import metric
from pipelines.spec.data import FASHION_ROWS, FASHION_SIDE

COUNTS = {"train": 400, "validation": 120}
ARGUMENTS = {"split": "validation", "count": 50, "shards": 3, "seed": 7, "quiet": True}

needs_files = pytest.mark.skipif(
    bool(missing()), reason="Debian's package dataset-fashion-mnist is not installed"
)


def idx(values):
    """The bytes of an IDX file."""
    return (
        bytes([0, 0, 8, values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.astype(np.uint8).tobytes()
    )


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A small data set of the same files: each class is a bright bar at a height of its own."""
    rng = np.random.default_rng(3)
    for split, count in COUNTS.items():
        classes = rng.integers(10, size=count)
        pictures = rng.integers(60, size=(count, 28, 28))
        for picture, label in zip(pictures, classes, strict=True):
            picture[2 + 2 * label : 6 + 2 * label, 4:24] = 220
        for name, values in zip(FILES[split], (pictures, classes), strict=True):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values), mtime=0))
            monkeypatch.setitem(files.SHA256, name, hashlib.sha256(idx(values)).hexdigest())
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    return tmp_path


def test_idx_files_are_read_as_they_were_written():
    values = np.random.default_rng(0).integers(256, size=(5, 3, 4))
    found = read_idx(idx(values), "a file")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "announces 60 values, and there are 59"),
        (lambda data: data + b"0", "announces 60 values, and there are 61"),
        (lambda data: b"\x89PNG" + data, "not an IDX file"),
        (lambda data: data[:3] + b"\xff" + data[4:], "not an IDX file"),
        (lambda data: b"", "not an IDX file"),
    ],
)
def test_what_is_no_idx_file_is_refused(damage, words):
    with pytest.raises(ValueError, match=f"a file .*{words}"):
        read_idx(damage(idx(np.zeros((5, 3, 4)))), "a file")


def test_packed_and_unpacked_files_are_the_same(made_up):
    packed = read_split("train")
    for name in FILES["train"]:
        file = made_up / f"{name}.gz"
        (made_up / name).write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    for one, other in zip(packed, read_split("train"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_missing_and_damaged_files_are_explained_in_one_line(made_up, monkeypatch):
    with pytest.raises(ValueError, match="train, validation"):
        read_split("test")
    name = FILES["train"][0]
    file = made_up / f"{name}.gz"
    whole = file.read_bytes()
    other = gzip.compress(gzip.decompress(whole)[:-1] + b"\x07", mtime=0)
    for content, words in (
        (whole[:-100], "cannot be read"),
        (b"not gzip", "cannot be read"),
        (other, "damaged or another file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=words) as error:
            read_split("train")
        assert str(file) in str(error.value) and "\n" not in str(error.value)
    file.unlink()
    assert missing() == [name]
    with pytest.raises(ValueError, match=f"no {name} or .*install Debian's package dataset-fashio"):
        read_split("train")
    monkeypatch.setenv(files.VARIABLE, str(made_up / "nowhere"))
    assert len(missing()) == 4
    monkeypatch.delenv(files.VARIABLE)
    assert folder() == files.DEBIAN


def test_captions_are_read_back_to_their_class():
    rng = np.random.default_rng(0)
    for label in range(len(CLASSES)):
        captions = {write(label, rng) for _ in range(200)}
        assert {parse(c) for c in captions} == {label}
        for name in NAMES[label]:
            assert any(name in c for c in captions)
    assert parse("Two  Ankle Boots,\nthe left one old") == 9
    assert parse("a shirt") != parse("a t-shirt")
    for wrong in ("a frog", "a shirt under a coat", ""):
        with pytest.raises(ValueError, match="name one of t-shirt, trousers"):
            parse(wrong)


def test_pairs_are_a_choice_of_the_seed(made_up, tmp_path):
    def written(name, **changed):
        paths = write_parquet(tmp_path / name, **{**ARGUMENTS, **changed})
        return [row for path in paths for row in pq.read_table(path).to_pylist()]

    first = written("a")
    assert first == written("b")
    assert written("more", count=100)[:50] == first  # a larger data set has the smaller one's pairs
    assert [r["key"] for r in written("c", seed=8)] != [r["key"] for r in first]
    assert len({r["key"] for r in first}) == 50
    pictures, classes = read_split("validation")
    for record in first:
        index = int(record["key"].removeprefix("validation-"))
        picture = np.asarray(Image.open(io.BytesIO(record["image"])))
        assert picture.shape == (SIDE, SIDE, 3)
        for channel in range(3):
            np.testing.assert_array_equal(picture[2:-2, 2:-2, channel], pictures[index])
        assert picture.sum() == 3 * int(pictures[index].sum())  # the border is black
        assert parse(record["caption"]) == classes[index]


def test_more_rows_than_there_are_pictures_are_refused(made_up, tmp_path):
    with pytest.raises(ValueError, match=r"120 pictures for validation; write `data\.validation"):
        write_parquet(tmp_path / "a", **{**ARGUMENTS, "count": 121})


def test_the_metric_recognises_classes_after_fitting(made_up, tmp_path):
    seen = []
    own = FashionMnist(images=6400).fit(
        tmp_path, resolutions=[16, 32], seed=7, progress=lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (6400, 6400)
    assert min(own["classes_16"], own["classes_32"]) > 0.9
    scorer = FashionMnist(images=6400)
    scorer.open(tmp_path)
    paths = write_parquet(tmp_path / "pairs", **ARGUMENTS)
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows])
    captions = [row["caption"] for row in rows]
    (right,) = scorer.score(pictures, captions).values()
    (wrong,) = scorer.score(pictures, captions[1:] + captions[:1]).values()
    assert right.mean() > 0.9 and wrong.mean() < 0.4
    assert set(np.unique(right)) <= {0, 1}
    features = scorer.features(pictures)
    assert features.shape == (50, 128) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="must divide 32, not 64"):
        own = FashionMnist().fit(tmp_path, resolutions=[64], seed=0, progress=lambda done, of: None)


def test_the_metric_is_found_by_its_name():
    assert isinstance(metric("fashion-mnist", {"images": 640}), FashionMnist)
    with pytest.raises(ValueError, match=r"fashion-mnist.*at least 64"):
        metric("fashion-mnist", {"images": 3})


@needs_files
def test_the_published_files_are_what_the_spec_says(monkeypatch):
    monkeypatch.delenv(files.VARIABLE, raising=False)
    for split, rows in FASHION_ROWS.items():
        pictures, classes = read_split(split)
        assert pictures.shape == (rows, 28, 28)
        np.testing.assert_array_equal(np.bincount(classes), [rows // 10] * 10)
    assert SIDE == FASHION_SIDE


@needs_files
@pytest.mark.slow
def test_the_metric_reads_published_pictures(tmp_path):
    own = FashionMnist(images=9600).fit(
        tmp_path, resolutions=[32], seed=7, progress=lambda done, of: None
    )
    assert own["classes_32"] > 0.78
