"""A data set is listed completely, or the plan reports what could not be read."""

import errno
import functools
import http.server
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import JPEG, collect_rows, source_at, write_parquet, write_tar
from web_server import Server

from pipelines.data.sources import list_shards
from pipelines.jobs.portability import is_relative
from pipelines.spec.data import Source

PAIR = [{"image": JPEG, "caption": "a cat"}]


@pytest.fixture
def open_folder():
    """A folder that other users may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def stranger():
    """Act as another user, since root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def closed(open_folder):
    for name in ("open", "closed/deep"):
        (open_folder / name).mkdir(parents=True)
        write_parquet(open_folder / name / "a.parquet", PAIR)
    yield open_folder / "closed"
    (open_folder / "closed").chmod(0o755)


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_may_not_be_listed_or_entered_is_named(closed, mode, request):
    """Silently skipped, it would make the data set smaller and its version different."""
    closed.chmod(mode)
    request.getfixturevalue("stranger")
    for path in (closed.parent, closed, closed / "deep", [closed.parent / "open", closed]):
        source = Source(path=[str(p) for p in path] if isinstance(path, list) else str(path))
        with pytest.raises(ValueError, match=rf"{closed}.* cannot be read .*Permission denied"):
            list_shards(source)


def test_a_failing_disk_rejects_no_row(tmp_path, monkeypatch):
    """A transient error while listing or reading is raised, and no row is rejected."""
    from pipelines.data.sources import read_shard

    write_parquet(tmp_path / "a.parquet", [{"image": "1.jpg", "caption": "a cat"}])
    (tmp_path / "1.jpg").write_bytes(JPEG)
    source = source_at(tmp_path, format="parquet")
    [shard] = list_shards(source)
    path_stat = Path.stat

    def failing(path, *args, **kwargs):
        if str(path).endswith("1.jpg"):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return path_stat(path, *args, **kwargs)

    monkeypatch.setattr(Path, "stat", failing)
    with pytest.raises(OSError, match="Stale"):
        list(read_shard(source, shard))
    with pytest.raises(ValueError, match=r"1\.jpg cannot be read \(Stale"):
        list_shards(source)


def test_files_that_spark_and_delta_leave_behind_are_skipped(tmp_path):
    """But not a partition whose column begins with ``_``, nor pictures anywhere."""
    for name in (
        "part-0.parquet",
        "_x=1/part-1.parquet",
        "_temporary/0/_temporary/attempt_1/part-0.parquet",
        "_delta_log/00000000000000000010.checkpoint.parquet",
        "x=1/_staging/a.pq",
        "x=1/_a.parquet",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_parquet(tmp_path / name, PAIR)
    kept = ["_x=1/part-1.parquet", "part-0.parquet", "x=1/_a.parquet"]
    assert [s.path for s in list_shards(source_at(tmp_path))] == kept
    named = Source(path=[str(tmp_path / "x=1" / "_staging"), str(tmp_path / "_x=1")])
    assert len(list_shards(named)) == 2  # a folder that is named explicitly is read


def test_pictures_in_folders_of_any_name_are_read(tmp_path):
    for folder in ("_best", "_delta_log"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "_DSC1.jpg").write_bytes(JPEG)
        (tmp_path / folder / "_DSC1.txt").write_text("a cat")
    write_parquet(tmp_path / "_delta_log" / "a.parquet", PAIR)
    rows, rejected = collect_rows(source_at(tmp_path))
    assert len(rows) == 2 and not rejected


@pytest.mark.timeout(30)
def test_a_pipe_among_pictures_blocks_nothing(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("a cat")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "c.txt")
    rows, rejected = collect_rows(source_at(tmp_path, follow_links=True))
    assert [row.key for row in rows] == ["a"]
    assert {bad.key: bad.reason.name for bad in rejected} == {
        "b": "IMAGE_FETCH",
        "c": "CAPTION_MISSING",
    }


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["a.parquet", "a.tar", "captions.csv"])
def test_a_pipe_instead_of_a_file_is_named(tmp_path, name):
    os.mkfifo(tmp_path / name)
    if name == "captions.csv":
        (tmp_path / "a.jpg").write_bytes(JPEG)
    with pytest.raises(ValueError, match=rf"{name} is a pipe"):
        list_shards(source_at(tmp_path))


@pytest.fixture
def served(tmp_path):
    """A folder served over http, and its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with Server(handler).running() as server:
        yield folder, server.url + "/"


@pytest.mark.slow
def test_files_behind_http_one_or_a_folder_of_them(served):
    folder, address = served
    write_parquet(folder / "a.parquet", PAIR)
    write_tar(folder / "b.tar", [("1.jpg", JPEG), ("1.txt", b"a cat")])
    for name in ("a.parquet", "b.tar"):
        [shard] = list_shards(source_at(address + name))
        assert shard.bytes == (folder / name).stat().st_size
        rows, rejected = collect_rows(source_at(address + name))
        assert (len(rows), rejected) == (1, [])
    rows, _ = collect_rows(source_at(address, format="parquet"))
    assert len(rows) == 1
    with pytest.raises(ValueError, match="does not exist"):
        list_shards(source_at(address + "gone.parquet"))


def test_pictures_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("x/1", "x/2"):
            archive.writestr(f"{name}.jpg", JPEG)
            archive.writestr(f"{name}.txt", "a cat")
    for within, keys in (("", ["x/1", "x/2"]), ("x", ["1", "2"])):
        rows, rejected = collect_rows(source_at(f"zip://{within}::{tmp_path}/a.zip"))
        assert sorted(row.key for row in rows) == keys and not rejected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/x", "gcsfs"),
        ("az://container/x", "adlfs"),
        ("foo://x", "foo"),
        ("zip://::{0}/gone.zip", "cannot be opened"),
        ("zip://::{0}/text.zip", "cannot be opened"),
        ("zip://y::{0}/a.zip", "does not exist"),
        ("memory://nothing", "does not exist"),
        ("http://127.0.0.1:1/a.parquet", "127.0.0.1:1"),
        ("{0}/\0", "does not exist"),
        ("", "holds no"),
    ],
)
def test_an_address_that_leads_to_nothing_is_one_line(tmp_path, address, message, monkeypatch):
    from pipelines.store import remote

    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "")
    with pytest.raises((ValueError, remote.StorageError)) as error:
        list_shards(source_at(address.format(tmp_path)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_zip_is_where_its_file_is():
    assert is_relative("zip://::pictures.zip") and not is_relative("zip://x::/data/pictures.zip")
    assert not is_relative("zip://x::s3://bucket/pictures.zip")


def test_broken_and_circular_links_do_not_break_a_listing(tmp_path):
    pq.write_table(pa.table({"image": [JPEG], "caption": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere.txt").symlink_to("nothing")
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(list_shards(source_at(tmp_path))) == 1
