"""The reader returns the right rows from disk and bucket, with few reads, and clear errors."""

import errno
import itertools

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from tiny_shards import header, made_rows

from pipelines.store import remote, shard_file
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version
from pipelines.store.order import Order
from pipelines.store.reader import BufferPool, Reader
from pipelines.store.remote import StorageError


def same(a, b):
    (x, c), (y, d) = a, b
    assert torch.equal(x, y)
    for kind in ("sequences", "masks", "pooled"):
        mine, theirs = getattr(c, kind), getattr(d, kind)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(t, theirs[name]) for name, t in mine.items())


def ordered(version, resolution=8, lanes=4, window=6):
    return Order(
        version.usable(resolution),
        group_rows=version.header.packing.row_group_rows,
        seed=0,
        lanes=lanes,
        window=window,
    )


def test_rows_hold_what_was_written(store, make_version):
    rows = made_rows(10, small=(0, 4))
    reader = Reader(store, make_version([rows]), 8)
    kept = [i for i in range(10) if i not in (0, 4)]
    x, cond = reader.rows([7, 0, 3, 3])
    assert reader.captions([7, 0, 3, 3]) == [rows["caption"][kept[n]] for n in (7, 0, 3, 3)]
    assert x.dtype == torch.float32 and x.is_contiguous()
    for i, n in enumerate((7, 0, 3, 3)):
        pixels = torch.from_numpy(rows["pixels_8"][kept[n]]).permute(2, 0, 1)
        assert torch.equal(x[i], pixels.float() / 127.5 - 1)
        tokens = rows["t5"][kept[n]].half()
        assert cond.masks["t5"][i].sum() == len(tokens)
        assert torch.equal(cond.sequences["t5"][i, : len(tokens)], tokens)
        assert not cond.sequences["t5"][i, len(tokens) :].any()
        assert torch.equal(cond.pooled["clip_image"][i], rows["clip_image"][kept[n]].half())
    assert len(reader) == 8
    with pytest.raises(ValueError, match="rows must be 0 to 7, got 0 to 8"):
        reader.rows([0, 8])


def test_a_batch_is_its_caller_s_own(store, version):
    reader = Reader(store, version, 8)
    x, cond = reader.rows([0, 1])
    before = reader.rows([0, 1])
    for tensor in (x, cond.sequences["t5"], cond.pooled["clip_image"]):
        tensor.zero_()
    same(before, reader.rows([0, 1]))


def test_a_batch_s_memory_is_its_own_while_any_view_of_it_is_left(store, version):
    reader = Reader(store, version, 8)
    x, cond = reader.rows(range(4))
    kept = [t.view(torch.uint8).numpy()[1:, 1:] for t in (x, cond.sequences["t5"])]
    before = [view.copy() for view in kept]
    del x, cond
    for first in range(4, 24):
        reader.rows(range(first, first + 4))
    assert all(np.array_equal(*pair) for pair in zip(kept, before, strict=True))


def test_memory_that_nothing_refers_to_is_lent_again():
    memory = BufferPool()
    first = memory(1000)
    place = first.ctypes.data
    del first
    others = [np.empty(1024, np.uint8) for _ in range(4)]  # would reuse freed memory
    second = memory(900)
    assert len(second) == 900 and second.ctypes.data == place
    assert memory(1000).ctypes.data not in {place, *(o.ctypes.data for o in others)}


@pytest.mark.parametrize(("resolution", "count"), [(4, 37), (8, 31)])
def test_a_stage_reads_every_row_it_can_use_once(store, version, resolution, count):
    reader = Reader(store, version, resolution, order=ordered(version, resolution))
    assert len(reader) == count
    indices = [np.arange(i, min(i + 4, count)) for i in range(0, count, 4)]
    seen = torch.cat([c.pooled["clip_image"] for _, c in reader.stream(indices)])
    all_rows = reader.rows(range(count))[1].pooled["clip_image"]
    assert sorted(seen.tolist()) == sorted(all_rows.tolist())


@pytest.mark.parametrize("ahead", [1, 5])
def test_the_stream_is_the_batches_in_turn_from_anywhere(store, version, ahead):
    reader = Reader(store, version, 8, order=ordered(version))
    indices = [np.arange(i, i + 4) for i in range(0, 80, 4)]
    whole = [reader.batch(i) for i in indices]
    for start in (0, 9):
        fresh = Reader(store, version, 8, order=ordered(version))
        for got, want in itertools.zip_longest(
            fresh.stream(iter(indices[start:]), ahead), whole[start:]
        ):
            same(got, want)


def test_an_endless_stream_is_taken_a_few_batches_ahead_only(store, version):
    reader = Reader(store, version, 8, order=ordered(version))
    asked = []

    def indices():
        for i in itertools.count():
            asked.append(i)
            yield np.arange(4 * i, 4 * i + 4)

    stream = reader.stream(indices(), ahead=3)
    for _ in range(5):
        next(stream)
    stream.close()
    assert len(asked) == 8


def test_ranks_read_each_row_group_once_an_epoch(store, make_version):
    version = make_version([made_rows(61, name=str(s), seed=s) for s in range(8)])
    batch, ranks = 8, 4
    order = ordered(version, lanes=batch, window=16)
    reads = 0
    group_bytes = Reader(store, version, 8).files.read(0, 0, ["t5", "clip_image", "pixels_8"]).bytes
    held = batch // ranks * (16 // 4 + 2)
    for rank in range(ranks):
        reader = Reader(store, version, 8, order=order, cache_bytes=held * group_bytes * 3 // 2)
        shares = (
            np.arange(start, min(start + batch, order.rows))[2 * rank : 2 * rank + 2]
            for start in range(0, order.rows, batch)
        )
        for _ in reader.stream((s for s in shares if len(s)), ahead=2):
            pass
        reads += reader.reads
    groups = 8 * -(-61 // 4)
    assert groups <= reads <= 1.1 * groups


def test_the_cache_forgets(store, version):
    reader = Reader(store, version, 8, cache_bytes=1)
    reader.rows([0])
    reader.rows([0])
    assert reader.reads == 2
    roomy = Reader(store, version, 8)
    roomy.rows([0])
    roomy.rows([0])
    assert roomy.reads == 1


@pytest.mark.parametrize("pictures", ["raw", "png", "jpeg"])
def test_a_full_picture_gives_the_square_its_image_index_draws(store, make_version, pictures):
    rows = made_rows(8, full=(8,))
    head = header(pictures=pictures, full=(8,), jpeg_quality=100)
    version = make_version([rows], head)
    reader = Reader(store, version, 8, seed=1)
    numbers, index = [3] * 40, np.arange(40)
    x, _ = reader.rows(numbers, index)
    assert torch.equal(x, reader.rows(numbers, index)[0])
    assert torch.equal(x[5:9], reader.rows([3] * 4, index[5:9])[0])
    picture = torch.from_numpy(rows["pixels_8"][3]).permute(2, 0, 1).float() / 127.5 - 1
    spare = max(picture.shape[1:]) - 8
    assert spare > 0
    windows = picture.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    distance = (x[:, None] - windows).abs().amax(dim=(2, 3, 4))
    if pictures != "jpeg":
        assert (distance.amin(dim=1) == 0).all()
        assert len(distance.argmin(dim=1).unique()) == spare + 1
        assert torch.equal(reader.rows([3])[0][0], windows[(spare + 1) // 2])


@pytest.fixture
def bucket(store, version):
    """The same version where only ranges can be asked for."""
    memory = Store.at(f"memory://{store.root.strip('/')}")
    for path in [f"{version.folder}/dataset.parquet"] + [version.path(i) for i in range(5)]:
        memory.write(path, store.read(path))
    yield memory
    fsspec.filesystem("memory").rm(memory.root, recursive=True)


def test_a_bucket_gives_the_same_rows_in_few_requests(store, version, bucket, monkeypatch):
    requests = []
    fetch = shard_file.fetch
    monkeypatch.setattr(
        shard_file, "fetch", lambda s, p, a, b: requests.append((p, a, b)) or fetch(s, p, a, b)
    )
    monkeypatch.setattr(shard_file, "_TAIL", 4096)
    here, there = Reader(store, version, 8), Reader(bucket, version.folder, 8)
    same(here.rows(range(31)), there.rows(range(31)))
    shards = len({p for p, _, _ in requests})
    assert shards == 5
    assert len(requests) <= shards * 2 + there.reads  # a long footer takes one more
    assert here.captions(range(31)) == there.captions(range(31))


@pytest.mark.parametrize("failures", [1, remote.ATTEMPTS - 1])
def test_a_server_that_stumbles_is_asked_again(store, version, bucket, monkeypatch, failures):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    left = itertools.count(failures, -1)
    cat_file = MemoryFileSystem.cat_file

    def stumbling(self, path, *args, **kwargs):
        if kwargs.get("start") is not None and next(left) > 0:
            raise OSError("503 Slow Down")
        return cat_file(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", stumbling)
    same(Reader(bucket, version.folder, 8).rows([0]), Reader(store, version, 8).rows([0]))


def test_a_server_that_stays_down_is_named_with_the_shard(version, bucket, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    calls = []
    cat_file = MemoryFileSystem.cat_file

    def down(self, path, *args, **kwargs):
        if kwargs.get("start") is None:
            return cat_file(self, path, *args, **kwargs)
        calls.append(path)
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", down)
    reader = Reader(bucket, version.folder, 8)
    with pytest.raises(
        StorageError, match=r"0000.parquet cannot be read: .* attempts failed.*reset"
    ):
        reader.rows([0])
    assert len(calls) == remote.ATTEMPTS


def test_a_machine_that_fails_is_no_mistake_of_the_user(store, version, monkeypatch):
    """A ValueError would end the training that reads; a StorageError is retried."""

    def exhausted(path):
        raise OSError(errno.EMFILE, "Too many open files", path)

    reader = Reader(store, version, 8)
    monkeypatch.setattr(shard_file.pa, "memory_map", exhausted)
    with pytest.raises(StorageError, match=r"0000.parquet cannot be read: .*Too many open files"):
        reader.rows([0])
    monkeypatch.undo()
    assert reader.rows([0])[0].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-100], "it has .* bytes"),
        (lambda data: b"x" * len(data), "magic bytes"),
        (lambda data: data.replace(torch.tensor([7.0]).half().numpy().tobytes(), b"!!"), "CRC"),
    ],
    ids=["torn", "foreign", "rotten"],
)
def test_a_damaged_shard_is_one_line(store, version, change, words):
    path = version.path(0)
    store.write(path, change(store.read(path)))
    with pytest.raises(ValueError, match=rf"shard .*0000.parquet cannot be used: .*{words}"):
        Reader(store, version, 8, checksums=True).rows(range(9))


def test_a_missing_shard_is_one_line(store, tmp_path, version):
    (tmp_path / version.path(0)).unlink()
    with pytest.raises(ValueError, match=r"0000.parquet is missing; run its embed node again"):
        Reader(store, version, 8).rows([0])


def test_a_shard_of_other_encoders_is_refused(store, version):
    table = version.table
    other = header()
    object.__setattr__(other, "encoders", {"t5": {"name": "another"}})
    mixed = Version.write(store, "nodes/embed/mixed", table, other)
    with pytest.raises(
        ValueError, match=r"its encoders are .*t5-tiny.* the version's are .*another"
    ):
        Reader(store, mixed, 8).rows([0])


def test_a_stage_without_pictures_is_told_which_there_are(store, version, make_version):
    with pytest.raises(ValueError, match="has pictures of 4, 8 pixels, none of 16"):
        Reader(store, version, 16)
    small = make_version([made_rows(3, small=(0, 1, 2))])
    with pytest.raises(ValueError, match=r"no row of .* has a picture of 8"):
        Reader(store, small, 8)
