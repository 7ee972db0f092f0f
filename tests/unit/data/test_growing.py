"""A data set that grows keeps the names and content of its existing shards."""

import random
import shutil
from pathlib import Path

import pytest
from dirty import JPEG, PNG, json_line, write_parquet, write_tar

from pipelines.data.files import list_folders
from pipelines.data.formats import folder
from pipelines.data.sources import list_shards, read_shard
from pipelines.spec.data import Source


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def shards(*paths):
    return {(s.name, s.identity) for s in list_shards(Source(path=[str(p) for p in paths]))}


def rows(*paths, **settings):
    source = Source(path=[str(p) for p in paths], **settings)
    return [row for shard in list_shards(source) for row in read_shard(source, shard)]


def as_parquet(home, caption):
    write_parquet(home / "part-0.parquet", [{"image": JPEG, "caption": caption}])


def as_tar(home, caption):
    write_tar(home / "0.tar", [("0.jpg", JPEG), ("0.txt", caption.encode())])


def as_pictures(home, caption):
    (home / "0.jpg").write_bytes(JPEG)
    (home / "0.txt").write_text(caption)


def as_jsonl(home, caption):
    (home / "0.jpg").write_bytes(JPEG)
    (home / "captions.jsonl").write_bytes(json_line(file="0.jpg", text=caption))


@pytest.fixture(params=[as_parquet, as_tar, as_pictures, as_jsonl])
def years(request, tmp_path):
    """Folders of the same files' names, each a data set by itself."""
    found = [tmp_path / "one" / "2024", tmp_path / "one" / "2025", tmp_path / "two" / "2025"]
    for home in found:
        home.mkdir(parents=True)
        request.param(home, f"a cat of {home.parent.name} {home.name}")
    return found


def test_a_folder_more_in_a_list_leaves_the_others_as_they_were(years):
    """Whatever folder the list's members share by then."""
    alone = {(s.name, s.identity) for s in list_shards(Source(path=str(years[0])))}
    one, two, three = (shards(*years[:n]) for n in (1, 2, 3))
    assert alone == one < two < three and len(three) == 3
    assert len({name for name, _ in three}) == 3
    assert shards(*years[:2], *years[:2]) == two  # named twice, there once


def test_each_folder_of_a_list_is_read_as_it_is_alone(years):
    together = rows(*years)
    assert [row.captions[0] for row in together] == [
        f"a cat of {home.parent.name} {home.name}" for home in years
    ]
    assert len({row.source for row in together}) == 3
    assert together[0] == rows(years[0])[0]


def test_pictures_of_two_folders_have_keys_of_their_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        as_pictures(tmp_path / name, "a cat")
    assert [row.key for row in rows(tmp_path / "a", tmp_path / "b")] == ["0", "b/0"]


def test_paths_in_a_table_are_of_its_own_folder(tmp_path):
    """Not of the parent folder, when another folder is listed too."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(JPEG if name == "a" else PNG)
        table = tmp_path / name / "0.parquet"
        write_parquet(table, [{"image": "0.jpg", "caption": "a cat"}])
    found = rows(tmp_path / "a", tmp_path / "b", format="parquet")
    assert [row.image for row in found] == [JPEG, PNG]


def test_a_list_that_is_moved_is_the_same(years, tmp_path):
    before = shards(*years)
    for name in ("one", "two"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    moved = [tmp_path / "elsewhere" / home.relative_to(tmp_path) for home in years]
    assert shards(*moved) == before


def test_files_in_a_folder_that_is_listed_too_belong_to_it(tmp_path):
    for name in ("a.parquet", "deep/b.parquet", "c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_parquet(tmp_path / name, [{"image": JPEG, "caption": name}])
    listed = [str(tmp_path / name) for name in ("deep", "a.parquet", "deep/b.parquet")]
    [found] = list_folders(listed)
    assert [f.path for f in found.files] == ["a.parquet", "deep/b.parquet"]
    assert (found.location.folder, found.prefix) == (str(tmp_path), "")


def test_prefixes_tell_any_folders_apart(tmp_path):
    """The shortest that do, and those of a list do not change as it grows."""
    places = ["x/a", "y/a", "z/y/a", "x", "a"]
    for location in [*places, "x/a/a"]:
        (tmp_path / location).mkdir(parents=True, exist_ok=True)
        (tmp_path / location / "0.tar").write_bytes(b"")
    listed = [str(tmp_path / location) for location in ("x/a", "y/a", "z/y/a", "a")]
    found = [f.prefix for f in list_folders(listed)]
    # The first has a folder called "a" itself, in which there is a "0.tar" too.
    assert found == ["", "y/a/", "z/y/a/", f"{tmp_path.name}/a/"]
    for n in range(1, 5):
        assert [f.prefix for f in list_folders(listed[:n])] == found[:n]


def sizes(found):
    return [sum(folder.is_image(path) for path in shard.files) for shard in found]


class Pictures:
    """A listing of a folder, without the folder."""

    def __init__(self, names, monkeypatch):
        from pipelines.data.files import File, Folder, Location

        self.names = set(names)
        self.home = lambda files: Folder(Location("/data"), files)
        self.file = lambda name: File(f"{name}.jpg", 1, ())
        monkeypatch.setattr(
            folder, "identify_each", lambda _, groups: [str([f.path for f in g]) for g in groups]
        )

    def shards(self):
        files = [self.file(name) for name in sorted(self.names)]
        return folder.shards(Source(path="/data"), self.home(files))

    def changed(self, change):
        before = {(s.name, s.identity) for s in self.shards()}
        change(self.names)
        return len({(s.name, s.identity) for s in self.shards()} - before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_runs_hold_every_picture_once_and_are_of_like_size(monkeypatch, seed):
    draw = random.Random(seed)
    names = {f"{draw.choice('abc')}/{draw.getrandbits(40):010x}" for _ in range(20_000)}
    found = Pictures(names, monkeypatch).shards()
    held = [path.removesuffix(".jpg") for shard in found for path in shard.files]
    assert sorted(held) == sorted(names)
    half, twice = folder.SHARD_PICTURES // 2, 2 * folder.SHARD_PICTURES
    assert all(half <= size <= twice for size in sizes(found)[:-1])
    assert 20_000 / len(found) == pytest.approx(folder.SHARD_PICTURES, rel=0.35)


@pytest.mark.slow
def test_new_pictures_land_in_few_runs(monkeypatch):
    """Assigned by hash, they would change all runs; a data set that doubles must not be
    redistributed."""
    pictures = Pictures({f"{i:06d}" for i in range(3000)}, monkeypatch)
    assert len(pictures.shards()) > 2
    assert pictures.changed(lambda names: names.update(f"{i:06d}" for i in range(3000, 3300))) <= 2
    assert pictures.changed(lambda names: names.update(f"b/{i}" for i in range(300))) <= 2
    for _ in range(4):  # doubled again and again
        more = len(pictures.names)
        before = {(s.name, s.identity) for s in pictures.shards()}
        pictures.names |= {f"c/{more + i:06d}" for i in range(more)}
        assert len(before - {(s.name, s.identity) for s in pictures.shards()}) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_picture_anywhere_changes_the_runs_around_it_alone(monkeypatch, seed):
    draw = random.Random(seed)
    pictures = Pictures({f"{draw.getrandbits(40):010x}" for _ in range(50_000)}, monkeypatch)
    changes = [
        lambda names: names.add(f"{draw.getrandbits(40):010x}"),
        lambda names: names.remove(draw.choice(sorted(names))),
    ]
    found = [pictures.changed(draw.choice(changes)) for _ in range(6)]
    assert sum(found) / len(found) < 2 and max(found) < 8  # of some fifty


def test_a_folder_of_one_kind_is_mixed_within_its_run(tmp_path):
    """Training reads row groups whole: neighbours should not be of the same kind."""
    for i in range(64):
        home = tmp_path / f"{i // 32}"
        home.mkdir(exist_ok=True)
        (home / f"{i}.jpg").write_bytes(JPEG)
        (home / f"{i}.txt").write_text(f"kind {i // 32}")
    kinds = [row.captions[0] for row in rows(tmp_path)]
    half = kinds[:32].count("kind 0")
    assert 8 < half < 24
    assert Path(list_shards(Source(path=str(tmp_path)))[0].folder) == tmp_path
