"""Links in a data folder: those that lead out of it are read only if the spec says so."""

import pytest
from dirty import JPEG, collect_rows, json_line, source_at, write_parquet, write_tar

from pipelines.data.inspect import inspect
from pipelines.data.rows import Reason
from pipelines.data.sources import list_shards, read_shard
from pipelines.planning.starter_spec import look


@pytest.fixture
def outside(tmp_path):
    """A folder with a data set of each kind, beside the one that is named."""
    folder = tmp_path / "outside"
    folder.mkdir()
    write_parquet(folder / "a.parquet", [{"image": JPEG, "caption": "a cat"}])
    write_tar(folder / "a.tar", [("1.jpg", JPEG), ("1.txt", b"a cat")])
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "a.txt").write_text("a cat")
    (folder / "captions.jsonl").write_bytes(json_line(file_name="b.jpg", caption="a cat"))
    return folder


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


LINKS = {
    "a parquet": {"a.parquet": "a.parquet"},
    "a tar": {"a.tar": "a.tar"},
    "a picture": {"a.jpg": "a.jpg", "a.txt": "a.txt"},
    "a caption": {"b.txt": "a.txt"},
    "a caption file": {"captions.jsonl": "captions.jsonl"},
    "a folder": {"deep": "."},
    "a relative link": {"a.tar": "../outside/a.tar"},
}


def link(folder, outside, targets):
    for name, target in targets.items():
        (folder / name).symlink_to(target if target.startswith("..") else outside / target)


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}", "list"])
def test_a_link_that_leads_out_is_named_with_the_remedy(data, outside, kind, form):
    (data / "b.jpg").write_bytes(JPEG)
    link(data, outside, LINKS[kind])
    path = [str(data)] if form == "list" else form.format(data)
    source = source_at(data).model_copy(update={"path": path, "format": None})
    with pytest.raises(ValueError, match=r"is a link that leads out .*`follow_links: true`"):
        list_shards(source)
    with pytest.raises(ValueError, match=r"is a link .*give --follow-links beside --data"):
        look([str(data)], [])


@pytest.mark.parametrize("kind", ["a parquet", "a tar", "a picture"])
def test_it_is_read_if_the_spec_says_so(data, outside, kind):
    link(data, outside, LINKS[kind])
    rows, rejected = collect_rows(source_at(data, follow_links=True))
    assert [row.image for row in rows] == [JPEG] and not rejected
    assert inspect(str(data), follow_links=True).source.follow_links


def test_links_that_stay_inside_are_read(data):
    (data / "deep").mkdir()
    (data / "deep" / "a.jpg").write_bytes(JPEG)
    (data / "deep" / "a.txt").write_text("a cat")
    (data / "b.jpg").symlink_to("deep/a.jpg")
    (data / "b.txt").symlink_to(data / "deep" / "a.txt")
    (data.parent / "named").symlink_to(data)  # the folder that the spec names may be a link
    rows, rejected = collect_rows(source_at(data.parent / "named"))
    assert sorted(row.key for row in rows) == ["b", "deep/a"] and not rejected


@pytest.mark.parametrize("name", ["c.jpg", "deep/../c.jpg", ".hidden/a.jpg", "in/a.jpg"])
def test_a_row_may_not_name_such_a_link_either(data, outside, name):
    """Neither one that appeared after the plan, nor a hidden one, which is not listed."""
    write_parquet(data / "a.parquet", [{"image": name, "caption": "a cat"}])
    source = source_at(data, format="parquet")
    [shard] = list_shards(source)
    (data / "deep").mkdir()
    (data / "c.jpg").symlink_to(outside / "a.jpg")
    (data / ".hidden").symlink_to(outside)
    (data / "in").symlink_to(outside)
    [bad] = read_shard(source, shard)
    assert bad.reason == Reason.PATH_OUTSIDE and "follow_links" in bad.detail
    trusted = source_at(data, format="parquet", follow_links=True)
    [shard] = list_shards(trusted)
    [row] = read_shard(trusted, shard)
    assert row.image == JPEG


def test_a_shard_that_became_a_link_after_the_plan_is_not_read(data, outside):
    write_parquet(data / "a.parquet", [{"image": JPEG, "caption": "a cat"}])
    source = source_at(data)
    [shard] = list_shards(source)
    (data / "a.parquet").unlink()
    (data / "a.parquet").symlink_to(outside / "a.parquet")
    with pytest.raises(ValueError, match="is a link that leads out"):
        list(read_shard(source, shard))
