"""A spool outlives its writer, and only whole lines count."""

import os

import pytest

from pipelines.lineage import spool as module
from pipelines.lineage.delivery import batches
from pipelines.lineage.spool import Spool, free_spool, private_folder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool" / "run.jsonl"


def after_the_death_of(spool):
    """The same spool, opened by the next process."""
    spool._out.close()
    return Spool(spool.path)


def items(spool):
    return [item for _, item in spool.pending_items()]


def metric(node, count):
    return {"do": "metrics", "node": node, "values": [["loss", 0.5, 1, i] for i in range(count)]}


def test_another_process_finds_the_undelivered_items_only(path):
    first = Spool(path)
    for n in range(3):
        first.append({"n": n})
    first.mark_delivered(next(first.pending_items())[0])
    second = after_the_death_of(first)
    assert items(second) == [{"n": 1}, {"n": 2}] and second.pending == 2
    second.append({"n": 3})
    assert items(second) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_half_a_line_is_dropped_and_a_damaged_one_is_reported(path):
    first = Spool(path)
    first.append({"n": 0})
    with path.open("ab") as file:
        file.write(b'\0\0\0\n{"n": 1}\n{"n": ')
    spool = after_the_death_of(first)
    spool.append({"n": 2})
    assert items(spool) == [{"n": 0}, None, {"n": 1}, {"n": 2}]


def test_a_large_file_is_truncated_once_it_is_delivered(path, monkeypatch):
    monkeypatch.setattr(module, "TRUNCATE_ABOVE_BYTES", 100)
    spool = Spool(path)
    while path.stat().st_size <= 100:
        spool.append({"n": 0})
    ends = [end for end, _ in spool.pending_items()]
    spool.mark_delivered(ends[-2])
    assert spool.pending == 1
    spool.mark_delivered(ends[-1])
    assert path.stat().st_size == 0 and spool.is_empty
    spool.append({"n": 1})
    assert items(spool) == [{"n": 1}]
    assert items(after_the_death_of(spool)) == [{"n": 1}]


def test_a_kill_during_truncation_loses_nothing(path):
    spool = Spool(path)
    spool.append({"n": 0})
    spool.position_file.write_text("5000")  # the file was cut, the note of it not yet written
    assert items(after_the_death_of(spool)) == [{"n": 0}]


@pytest.mark.parametrize("noted", [b"", b"\0\0\0"])
def test_without_a_valid_position_everything_is_delivered_again(path, noted):
    spool = Spool(path)
    spool.append({"n": 0})
    spool.position_file.write_bytes(noted)
    assert items(after_the_death_of(spool)) == [{"n": 0}]


def test_all_delivered_leaves_no_file(path):
    spool = Spool(path)
    spool.append({"n": 0})
    spool.mark_delivered(path.stat().st_size)
    spool.close()
    assert not path.parent.exists()


def test_a_spool_that_a_paused_process_has_is_left_to_it(path):
    paused, mine = Spool(path), free_spool(path)
    third = free_spool(path)
    assert [s.path.name for s in (mine, third)] == ["run.1.jsonl", "run.2.jsonl"]
    paused.append({"n": 0})
    mine.append({"n": 1})
    assert items(mine) == [{"n": 1}] and items(paused) == [{"n": 0}]
    paused.close(discard=True)
    assert not path.exists() and items(free_spool(path)) == []


def test_consecutive_points_of_one_run_are_batched_up_to_a_thousand(path):
    spool = Spool(path)
    for item in [metric("a", 600), metric("a", 400), metric("a", 1), metric("b", 5)]:
        spool.append(item)
    spool.append({"do": "fail", "node": "b"})
    spool.append(metric("b", 5))
    sizes = [[len(i.get("values", ())) for i in batch] for _, batch in batches(spool)]
    assert sizes == [[600, 400], [1], [5], [0], [5]]
    ends = [end for end, _ in batches(spool)]
    assert ends == sorted(set(ends)) and ends[-1] == path.stat().st_size


def test_a_shared_folder_has_one_of_this_user_s_alone(tmp_path):
    folder = private_folder(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert private_folder(tmp_path) == folder and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "file", "other user's"])
def test_what_somebody_else_put_in_its_place_is_left_alone(kind, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    planted = tmp_path / f"ediffi-mlflow-spool-{os.getuid()}"
    if kind == "link":
        planted.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        planted.write_text("")
    else:
        planted.mkdir(mode=0o755)
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
        planted.rename(tmp_path / f"ediffi-mlflow-spool-{os.getuid()}")
        planted = tmp_path / f"ediffi-mlflow-spool-{os.getuid()}"
    mode = planted.stat().st_mode
    folder = private_folder(tmp_path)
    assert folder != planted and folder.is_dir() and not folder.is_symlink()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert planted.stat().st_mode == mode and list((tmp_path / "elsewhere").iterdir()) == []
