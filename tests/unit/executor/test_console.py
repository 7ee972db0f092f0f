"""What the console prints of running nodes."""

import io

import pytest
from rich.console import Console as Rich
from rich.live import Live

from pipelines.executor import console
from pipelines.executor.console import Console


@pytest.fixture
def at(monkeypatch):
    """``at(seconds)`` sets the clock."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 100.0 + seconds)


def test_an_embedding_job_says_rows_bytes_and_what_is_left(at):
    shown = Console()
    shown.state("embed/train", "running")
    shown.report("embed/train", _row(2, rows=200, size=4e9))  # from an earlier run: no speed
    assert "left" not in shown.progress_line("embed/train")
    at(60)
    shown.report("embed/train", _row(12, rows=6200, size=24e9))
    assert shown.progress_line("embed/train").split("  ")[-5:] == [
        "12/128 shards",
        "6,200 rows",
        "24.0 GB",
        "100 rows/s",
        "11:36 left",
    ]


def test_a_training_node_counts_images(at):
    shown = Console()
    shown.state("train/base/E0_0", "running")
    shown.report("train/base/E0_0", {"done": 0, "of": 640, "unit": "images"})
    at(2)
    shown.report("train/base/E0_0", {"done": 64, "of": 640, "unit": "images", "loss": 0.5})
    assert shown.progress_line("train/base/E0_0").endswith("loss 0.5000  32 images/s  0:18 left")


def _row(done, *, rows, size):
    return {"done": done, "of": 128, "unit": "shards", "rows": rows, "bytes": int(size)}


def test_it_says_what_was_saved_when_and_where_the_pictures_are(at, capsys):
    shown = Console()
    node = "train/base/E0_0"
    shown.state(node, "running")
    shown.report(node, {"done": 64, "of": 640, "unit": "images"})
    shown.report(node, {"checkpoint": 64})
    capsys.readouterr()
    shown.report(node, {"picture": "store/nodes/train/base/E0_0-1/samples/000000064.png"})
    printed = capsys.readouterr().out
    assert printed.endswith(f"{node} drew store/nodes/train/base/E0_0-1/samples/000000064.png\n")
    at(75)
    assert shown.progress_line(node).split("  ")[-2:] == [
        "saved 64 (1:15 ago)",
        "pictures in store/nodes/train/base/E0_0-1/samples",
    ]
    lines = shown.progress_line(node, width=80).split("\n")
    assert all(len(line) <= 80 for line in lines)
    assert [line.strip() for line in lines] == [
        f"{node:<22}       64/640 images  saved 64 (1:15 ago)",
        "pictures in store/nodes/train/base/E0_0-1/samples",
    ]
    assert "\n" not in shown.progress_line(node)


def test_a_log_file_names_the_first_picture_of_a_node_alone(capsys):
    shown = Console()
    shown.state("train/base/E0_0", "running")
    for images in (64, 128):
        shown.report("train/base/E0_0", {"picture": f"store/samples/{images:09}.png"})
    assert capsys.readouterr().out.count("drew") == 1


def test_on_a_terminal_a_line_keeps_its_time(at):
    """A line above the live lines is written in one piece, with no erasing inside."""
    out = io.StringIO()
    with Console() as shown:
        lines = shown.lines
        lines.rich = Rich(file=out, force_terminal=True, soft_wrap=True, highlight=False)
        lines.live = Live(console=lines.rich, refresh_per_second=2, transient=True)
        lines.live.start()
        shown.state("train/base/E0_0", "running")
        shown.refresh("0 of 3 nodes done")
        shown.log("something happened")
    assert "[ 0:00] train/base/E0_0 started" in out.getvalue()
    assert "[ 0:00] something happened" in out.getvalue()


def test_a_log_file_gets_one_line_a_minute_for_all_nodes(at, capsys):
    shown = Console()
    for node in ("train/base/E1_0", "train/base/E1_1", "train/sr32/E0_0"):
        shown.state(node, "running")
    capsys.readouterr()
    for second in range(1801):
        at(second)
        shown.refresh("3 of 19 nodes done; about 40:00 left")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30
    assert lines[0] == "[ 1:00] 3 of 19 nodes done; about 40:00 left"


def test_an_evaluation_says_of_how_many_pictures_its_numbers_are(capsys):
    metrics = {
        "kernel_distance": 0.0312,
        "kernel_distance_ci95": 0.0104,
        "kernel_distance_pictures": 128,
        "val_loss": 0.13712,
        "val_loss_ci95": 0.0021,
        "val_loss_pictures": 1000,
    }
    Console().done("evaluate/base/ensemble", {"metrics": metrics, "seconds": 61.0})
    assert (
        capsys.readouterr()
        .out.strip()
        .endswith("KID 0.031 ±0.010 (128 pictures); val loss 0.1371 ±0.0021 (1,000 pictures)")
    )
