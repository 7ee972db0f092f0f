"""Parquet files from other tools, and damaged ones."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import JPEG, collect_rows, reasons, source_at, write_parquet

from pipelines.data.formats import parquet
from pipelines.data.rows import RejectedRow, Row
from pipelines.data.sources import list_shards, read_shard


def rows_of(count, **more):
    return [
        {"key": f"k{i}", "image": JPEG, "caption": f"cat {i}"} | {k: v[i] for k, v in more.items()}
        for i in range(count)
    ]


def cells(**columns):
    return pa.table(columns)


def test_cells_that_are_null_or_of_another_kind(tmp_path):
    write_parquet(
        tmp_path / "a.parquet",
        [
            {"key": "no image", "image": None, "caption": "fine", "score": 1.0},
            {"key": "no caption", "image": JPEG, "caption": None, "score": 1.0},
            {"key": None, "image": JPEG, "caption": "fine", "score": 1.0},
            {"key": "good", "image": JPEG, "caption": "fine", "score": 1.0},
            {"key": "good", "image": JPEG, "caption": "fine", "score": 1.0},
            {"key": "low", "image": JPEG, "caption": "fine", "score": 0.5},
            {"key": "unscored", "image": JPEG, "caption": "fine", "score": None},
            {"key": "nan", "image": JPEG, "caption": "fine", "score": float("nan")},
        ],
    )
    source = source_at(tmp_path, scores=["score"], filters={"scores": {"score": {"min": 0.75}}})
    rows, rejected = collect_rows(source, source.filters)
    assert [(row.key, row.scores) for row in rows] == [("good", {"score": 1.0})]
    assert sorted((bad.key, bad.reason.name) for bad in rejected) == [
        ("", "KEY_MISSING"),
        ("good", "KEY_REPEATED"),
        ("low", "SCORE_BOUNDS"),
        ("nan", "SCORE_TYPE"),
        ("no caption", "CAPTION_MISSING"),
        ("no image", "IMAGE_MISSING"),
        ("unscored", "SCORE_MISSING"),
    ]
    wrong = cells(key=["ints", "text"], image=[JPEG, JPEG], caption=[{"en": "a"}, {"en": "b"}])
    pq.write_table(wrong, tmp_path / "b.parquet")
    assert {b.reason.name for b in collect_rows(source_at(tmp_path / "b.parquet"))[1]} == {
        "CAPTION_TYPE"
    }
    pq.write_table(cells(image=[1, 2], caption=["a", "b"]), tmp_path / "c.parquet")
    assert {b.reason.name for b in collect_rows(source_at(tmp_path / "c.parquet"))[1]} == {
        "IMAGE_TYPE"
    }


def test_pictures_beside_the_file_as_hugging_face_writes_them(tmp_path, monkeypatch):
    home = tmp_path / "set"
    (home / "img").mkdir(parents=True)
    (home / "img" / "a.jpg").write_bytes(JPEG)
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    places = {
        "within": "img/a.jpg",
        "dotted": "img/../img/a.jpg",
        "absolute": str(home / "img" / "a.jpg"),
        "outside": "../secret.jpg",
        "rooted": str(tmp_path / "secret.jpg"),
        "url of a file": f"file://{tmp_path}/secret.jpg",
        "chain": f"simplecache::file://{tmp_path}/secret.jpg",
        "chain of http": f"http://x::file://{tmp_path}/secret.jpg",
        "gone": "img/b.jpg?token=secret",
        "folder": "img",
        "nul": "img/a.jpg\0",
        "blank": "",
    }
    paths = list(places.values())
    expected = {
        "outside": "PATH_OUTSIDE",
        "rooted": "PATH_OUTSIDE",
        "url of a file": "PATH_OUTSIDE",
        "chain": "PATH_OUTSIDE",
        "chain of http": "PATH_OUTSIDE",
        "gone": "IMAGE_FETCH",
        "folder": "IMAGE_FETCH",
        "nul": "IMAGE_FETCH",
        "blank": "IMAGE_EMPTY",
    }
    structs = [{"bytes": None, "path": path} for path in paths]
    for image in (paths, structs):
        table = cells(key=list(places), image=image, caption=["fine"] * len(places))
        pq.write_table(table, home / "a.parquet")
        rows, rejected = collect_rows(source_at(home, format="parquet"))
        assert {row.key for row in rows} == {"within", "dotted", "absolute"}
        assert {bad.key: bad.reason.name for bad in rejected} == expected
        assert "secret" not in next(bad.detail for bad in rejected if bad.key == "gone")
    both = cells(image=[{"bytes": JPEG, "path": "../x"}], caption=[["one", "two"]])
    pq.write_table(both, home / "a.parquet")
    (row,) = collect_rows(source_at(home, format="parquet"))[0]
    assert row.captions == ("one", "two")


def test_a_file_cut_short_is_one_bad_row_and_its_neighbours_are_whole(tmp_path):
    for name in "abc":
        write_parquet(tmp_path / f"{name}.parquet", rows_of(20))
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[: len(data) // 2])
    rows, rejected = collect_rows(source_at(tmp_path))
    assert len(rows) == 40
    assert [(bad.source, bad.reason.name) for bad in rejected] == [("b.parquet", "FILE_BROKEN")]


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    path = tmp_path / "a.parquet"
    noise = [bytes([i]) * 4000 for i in range(40)]
    rows = [row | {"image": JPEG + more} for row, more in zip(rows_of(40), noise)]
    write_parquet(path, rows, row_group_size=10, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    (shard,) = list_shards(source_at(path))
    found = list(read_shard(source_at(path), shard))
    keys = [item.key for item in found if isinstance(item, Row)]
    assert keys == [f"k{i}" for i in (*range(10), *range(20, 40))]
    (bad,) = [item for item in found if isinstance(item, RejectedRow)]
    assert bad.reason.name == "FILE_BROKEN"
    assert bad.detail.startswith("rows 10 to 19")


def test_a_file_that_lacks_a_column_the_others_have(tmp_path):
    write_parquet(tmp_path / "a.parquet", rows_of(3))
    pq.write_table(cells(image=[JPEG]), tmp_path / "b.parquet")
    rows, rejected = collect_rows(source_at(tmp_path))
    assert len(rows) == 3
    assert [(b.source, b.reason.name, b.detail) for b in rejected] == [
        ("b.parquet", "COLUMN_MISSING", "caption")
    ]


def test_a_connection_that_breaks_is_raised_not_quarantined(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write_parquet(path, rows_of(40), row_group_size=10)
    (shard,) = list_shards(source_at(path))
    opened = parquet.Location.open

    class Broken:
        def __init__(self, handle):
            self.handle, self.left = handle, 4

        def read(self, size=-1):
            self.left -= 1
            if not self.left:
                raise ConnectionResetError("reset by peer")
            return self.handle.read(size)

        def __getattr__(self, name):
            return getattr(self.handle, name)

    monkeypatch.setattr(
        parquet.Location, "open", lambda location, path: Broken(opened(location, path))
    )
    with pytest.raises(ConnectionResetError):
        list(read_shard(source_at(path), shard))


def test_without_keys_a_row_is_named_by_its_place(tmp_path):
    for name in ("x/a.parquet", "x-a.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(cells(image=[JPEG] * 2, caption=["a", "b"]), tmp_path / name)
    rows, _ = collect_rows(source_at(tmp_path))
    assert len({row.key for row in rows}) == 4
    assert reasons(collect_rows(source_at(tmp_path))[1]) == {}
    names = [shard.name for shard in list_shards(source_at(tmp_path))]
    assert len(set(names)) == 2 and not any("/" in name for name in names)


def test_rows_stream(tmp_path):
    """Only a few batches of a row group are in memory at a time."""
    path = tmp_path / "a.parquet"
    rows = [r | {"image": JPEG + bytes([i]) * 2**20} for i, r in enumerate(rows_of(40))]
    pages = {"data_page_size": 2**18, "write_batch_size": 1}
    write_parquet(path, rows, compression="none", use_dictionary=False, **pages)
    (shard,) = list_shards(source_at(path))
    before = pa.total_allocated_bytes()
    peak = 0
    for _ in read_shard(source_at(path), shard):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 30 * 2**20  # the group has 40 MiB, a batch 16


def test_two_columns_of_one_name_that_are_read(tmp_path):
    """The plan refuses them in the first file; a later file becomes one rejected row."""
    columns = [pa.array([JPEG]), pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    for twice in ("caption", "key", "id"):
        names = ["image", *dict.fromkeys(["caption", twice]), twice, "more"][:4]
        pq.write_table(pa.table(columns, names=names), tmp_path / "b.parquet")
        settings = {"key": "id"} if twice == "id" else {}
        with pytest.raises(ValueError, match=f"two columns '{twice}'"):
            list_shards(source_at(tmp_path, **settings))
        first = {"image": JPEG, "caption": "a cat", "id": "1"}
        write_parquet(tmp_path / "a.parquet", [first])
        rows, rejected = collect_rows(source_at(tmp_path, **settings))
        assert len(rows) == 1
        assert [(b.source, b.reason.name, b.detail) for b in rejected] == [
            ("b.parquet", "COLUMN_REPEATED", twice)
        ]
        (tmp_path / "a.parquet").unlink()
    names = ["image", "caption", "other", "other"]
    pq.write_table(pa.table(columns, names=names), tmp_path / "b.parquet")
    assert len(collect_rows(source_at(tmp_path))[0]) == 1


def test_parquet_without_rows_is_reported_by_the_plan(tmp_path):
    empty = pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
    for name in "ab":
        pq.write_table(empty, tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match="hold no row"):
        list_shards(source_at(tmp_path))
    write_parquet(tmp_path / "c.parquet", rows_of(1))
    assert len(collect_rows(source_at(tmp_path))[0]) == 1
