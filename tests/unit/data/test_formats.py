"""In every format, every kind of bad row is rejected for its reason and every good row is kept."""

import csv

import fsspec
import pytest
from dirty import (
    CASES,
    EXPECTED_BAD,
    EXPECTED_GOOD,
    collect_rows,
    json_line,
    reasons,
    source_at,
    write_parquet,
    write_tar,
)

from pipelines.spec.data import Source


def as_parquet(folder):
    rows = [{"key": k, "image": i, "caption": c} for k, (i, c, _) in CASES.items()]
    write_parquet(folder / "a.parquet", rows[::2], row_group_size=5)
    write_parquet(folder / "b.parquet", rows[1::2])


def as_webdataset(folder):
    cases = list(CASES.items())
    for name, part in (("a.tar", cases[::2]), ("b.tar", cases[1::2])):
        members = [m for k, (i, c, _) in part for m in ((f"./{k}.jpg", i), (f"./{k}.TXT", c))]
        write_tar(folder / name, members)


def as_folder(folder):
    for key, (image, caption, _) in CASES.items():
        (folder / f"{key}.JPG").write_bytes(image)
        (folder / f"{key}.txt").write_bytes(caption)
    (folder / "notes.md").write_text("not of the data set")
    (folder / "._hidden.jpg").write_bytes(b"")


def as_csv(folder):
    for key, (image, _, _) in CASES.items():
        (folder / f"{key}.jpg").write_bytes(image)
    with (folder / "captions.csv").open(
        "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as f:
        table = csv.writer(f, quoting=csv.QUOTE_ALL)
        table.writerow(["file_name", "text"])
        for key, (_, caption, _) in CASES.items():
            table.writerow([f"{key}.jpg", caption.decode("utf-8", "surrogateescape")])


FORMATS = [as_parquet, as_webdataset, as_folder, as_csv]


@pytest.mark.parametrize("write", FORMATS)
def test_every_case_ends_where_it_should(tmp_path, write):
    write(tmp_path)
    rows, rejected = collect_rows(source_at(tmp_path))
    assert reasons(rejected) == EXPECTED_BAD
    assert {row.key for row in rows} == EXPECTED_GOOD
    assert len(rows) + len(rejected) == len(CASES)
    assert all(row.image == CASES[row.key][0] for row in rows)


@pytest.mark.parametrize("write", FORMATS)
def test_a_bucket_is_as_good_as_a_disk(tmp_path, write):
    write(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", f"/{write.__name__}/", recursive=True)
    try:
        rows, rejected = collect_rows(source_at(f"memory://{write.__name__}"))
        assert reasons(rejected) == EXPECTED_BAD
        assert (len(rows), len(rejected)) == (len(EXPECTED_GOOD), len(EXPECTED_BAD))
    finally:
        memory.rm(f"/{write.__name__}", recursive=True)


def test_a_path_may_be_a_file_or_a_list(tmp_path):
    as_parquet(tmp_path)
    files = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    for some in (files[:1], files):
        rows, _ = collect_rows(Source(path=some))
        assert {row.source for row in rows} == {file.rpartition("/")[2] for file in some}
    assert collect_rows(Source(path=files[0])) == collect_rows(Source(path=files[:1]))


def test_json_lines_hold_scores_keys_and_several_captions(tmp_path):
    image = CASES["grey"][0]
    for name in "abcdefg":
        (tmp_path / f"{name}.png").write_bytes(image)
    (tmp_path / "captions.jsonl").write_bytes(
        json_line(file="a.png", captions=["one", "", "two"], id=1, aesthetic=5.5)
        + json_line(file="b.png", text=7, id=2)
        + json_line(file="c.png", text="fine", id=None)
        + json_line(file="d.png", text="fine", id=4, aesthetic="high")
        + json_line(file="e.png", text="\ud800", id=5)
        + json_line(file="f.png", text="first", id=6)
        + json_line(file="./f.png", text="second", id=6)
        + json_line(file="gone.png", text="fine", id=8)
        + json_line(file="../out.png", text="fine", id=9)
        + json_line(text="names nothing")
        + b"\n{broken\n[1]\n"
    )
    source = source_at(tmp_path, key="id", scores=["aesthetic"])
    rows, rejected = collect_rows(source)
    assert {row.key: row.captions for row in rows} == {
        "1": ("one", "two"),
        "6": ("first", "second"),
    }
    assert {row.key: row.scores for row in rows} == {"1": {"aesthetic": 5.5}, "6": {}}
    assert sorted((bad.key, bad.reason.name) for bad in rejected) == [
        ("", "KEY_MISSING"),
        ("1", "CAPTION_DROPPED"),
        ("2", "CAPTION_TYPE"),
        ("4", "SCORE_TYPE"),
        ("5", "CAPTION_ENCODING"),
        ("g", "CAPTION_MISSING"),
        ("gone", "IMAGE_MISSING"),
        ("line 10", "IMAGE_MISSING"),
        ("line 12", "METADATA_BROKEN"),
        ("line 13", "METADATA_BROKEN"),
        ("line 9", "PATH_OUTSIDE"),
    ]
    first, rejected = collect_rows(source.model_copy(update={"captions": "first"}))
    assert {row.key: row.captions for row in first} == {"1": ("one",), "6": ("first",)}
    assert "CAPTION_DROPPED" not in {bad.reason.name for bad in rejected}


def test_a_csv_row_with_a_comma_too_many_does_not_lose_half_its_caption(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(CASES["grey"][0])
    (tmp_path / "captions.csv").write_bytes(
        b'\xef\xbb\xbffile,caption\na.png,a cat, on a mat\nb.png,fine\nb.png,also fine\nc.png,"open'
    )
    rows, rejected = collect_rows(source_at(tmp_path))
    assert {row.key: row.captions for row in rows} == {"b": ("fine", "also fine")}
    assert sorted(bad.reason.name for bad in rejected) == [
        "CAPTION_MISSING",
        "CAPTION_MISSING",
        "METADATA_BROKEN",
        "METADATA_BROKEN",
    ]


def test_pictures_and_texts_that_lack_each_other(tmp_path):
    for name in ("a.png", "b.png", "b.jpg", "sub/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CASES["grey"][0])
    for name in ("b.txt", "sub/a.txt", "lonely.txt"):
        (tmp_path / name).write_bytes(b"a cat\n\na dog\n")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    (tmp_path / "dangling.txt").write_text("fine")
    rows, rejected = collect_rows(source_at(tmp_path))
    assert {row.source: row.captions for row in rows} == {
        "b.jpg": ("a cat", "a dog"),
        "sub/a.png": ("a cat", "a dog"),
    }
    assert sorted((bad.source, bad.reason.name) for bad in rejected) == [
        ("a.png", "CAPTION_MISSING"),
        ("b.png", "KEY_REPEATED"),
        ("dangling.png", "IMAGE_FETCH"),
        ("lonely.txt", "IMAGE_MISSING"),
    ]


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ([], {}, "holds no"),
        (["a.md"], {}, "holds no"),
        (["a.tar", "a.png"], {}, "several formats (folder, webdataset)"),
        (["a.png"], {"format": "parquet"}, "change `format:`"),
        (["a.png", "captions.csv", "metadata.jsonl"], {}, "captions.csv and metadata.jsonl"),
        (["a.png", "a.txt"], {"key": "id"}, "`key:`"),
        (["a.parquet", "b.parquet"], {}, "no readable Parquet"),
    ],
)
def test_a_data_set_that_is_none(tmp_path, files, settings, message):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError) as error:
        collect_rows(source_at(tmp_path, **settings))
    assert message in str(error.value)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist.*braces"):
        collect_rows(source_at(tmp_path / "{000..999}.tar"))


def test_a_column_that_no_file_has(tmp_path):
    as_parquet(tmp_path)
    for setting in ({"image": "img"}, {"caption": "alt"}, {"key": "id"}, {"scores": ["s"]}):
        with pytest.raises(ValueError, match=r"has no column.*only key, image, caption"):
            collect_rows(source_at(tmp_path, **setting))
