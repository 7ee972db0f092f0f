"""`ediffi data` on a small version, of which every number is known."""

import json

import embedded
import pytest
from typer.testing import CliRunner

from pipelines import cli
from pipelines.cli.verbs import app
from pipelines.data import contact_sheet, stats
from pipelines.data.formats.shard import SourceShard
from pipelines.data.rows import Reason
from pipelines.store.artifacts import Store

A = [
    "a red fox",
    "a red fox",
    "snow",
    "eine Straße in Köln",
    "日本の山",
    "a " + "very " * 60 + "end",
]
B = ["two", "small ones", "Ω ≠ ω", "Москва зимой"]


def shard(name):
    return SourceShard(
        name=name, folder="/data", path=f"{name}.parquet", identity=f"sha256:{name}", bytes=1000
    )


@pytest.fixture
def folder(tmp_path):
    """Ten rows in two shards, four that are not, and a shard without any."""
    job = embedded.job(Store.at(str(tmp_path / "store")))
    bad = [
        ("b-8", Reason.IMAGE_BROKEN, "41 bytes"),
        ("b-9", Reason.CAPTION_EMPTY, ""),
        ("b-7", Reason.SCORE_BOUNDS, "0.1"),
    ]
    record = [
        embedded.embed(job, shard("a"), A, batches={"t5": 64, "clip_image": 8}),
        embedded.embed(job, shard("b"), B, small=(0,), bad=bad, batches={"t5": 8192}),
        embedded.embed(job, shard("c"), [], bad=[("c", Reason.FILE_BROKEN, "no footer")]),
    ]
    embedded.version(job, record)
    return tmp_path / "store"


def called(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_every_number(folder):
    result = called("stats", "--storage", folder, "--json", "--quarantined", 9)
    found = json.loads(result.output)
    assert (found["read"], found["rows"], found["captions"]) == (14, 10, 9)
    assert found["usable"] == {"8": 10, "16": 9}
    sizes = [p.stat().st_size for p in sorted((folder / "embeddings/tiny").glob("*.parquet"))]
    assert found["bytes"] == sum(sizes)
    assert found["bytes_a_row"] == sum(sizes) / 10
    assert found["shards"] == {
        "count": 2,
        "empty": 1,
        "min_bytes": min(sizes),
        "median_bytes": sum(sizes) / 2,
        "max_bytes": max(sizes),
    }
    words = [3, 3, 1, 4, 1, 62, 1, 2, 3, 2]
    t5, clip = found["tokens"]["t5"], found["tokens"]["clip_text"]
    assert (t5["mean"], t5["longest"], t5["median"]) == (8.2, 62, 2)
    assert t5["histogram"] == {"1": 3, "2": 2, "3": 3, "4": 1, "62": 1}
    assert clip["mean"] == pytest.approx(sum(words) / 10 + 2)
    assert found["fp16_token_bytes_a_row"] == pytest.approx(2 * (8.2 * 4 + 10.2 * 6))
    assert found["quarantined"] == {
        str(reason): {"rows": 1, "share": 1 / 14}
        for reason in (Reason.CAPTION_EMPTY, Reason.FILE_BROKEN, Reason.IMAGE_BROKEN)
    }
    assert found["filtered"] == {str(Reason.SCORE_BOUNDS): {"rows": 1, "share": 1 / 14}}
    assert found["encoders"] == embedded.ENCODERS
    assert found["rms_error"]["t5"] == 0.0
    assert found["repeated"] == {"rows": 0, "examples": []}
    assert found["batches"] == {
        "t5": {"least": 64, "most": 8192},
        "clip_image": {"least": 8, "most": 8},
    }
    assert found["rows_per_s"] == {"decode": 14 / 1.5, "t5": 14 / 6.0}
    assert [f["key"] for f in found["faults"]] == ["b-8", "b-9", "c"]


def test_the_old_name_of_the_option_is_taken_with_a_warning(folder):
    by_old = called("stats", "--storage", folder, "--faults", 2)
    by_new = called("stats", "--storage", folder, "--quarantined", 2)
    assert by_old.stdout == by_new.stdout and by_new.stderr == ""
    assert by_old.stderr == "ediffi: warning: --faults is now --quarantined\n"


def test_the_page(folder):
    lines = called("stats", "--storage", folder, "--quarantined", 2).output.splitlines()
    assert any(line.startswith("rows        10 kept of 14 read; 9 captions") for line in lines)
    assert "                     9 at 16 (90.0 %)" in lines
    assert "           1    7.1 %  image is damaged or cut short" in lines
    assert "  t5                64 to 8,192 tokens" in lines
    assert "  clip_image        8 pictures" in lines
    assert not any(line.startswith("repeated") for line in lines)
    assert lines[-2:] == [
        "  b-8  (b.parquet)  image is damaged or cut short: 41 bytes",
        "  b-9  (b.parquet)  caption is empty",
    ]
    assert max(map(len, lines)) < 110


def test_repeated_keys_are_on_the_page(tmp_path):
    job = embedded.job(Store.at(str(tmp_path / "store")))
    keys = [f"k{i}" for i in range(4)]
    record = [embedded.embed(job, shard(n), B, keys=keys) for n in "ab"]
    embedded.version(job, record)
    lines = called("stats", "--storage", tmp_path / "store").output.splitlines()
    at = lines.index("repeated    4 rows have a key that another shard has too")
    assert sorted(lines[at + 1 : at + 5]) == [f"            {key} in a and b" for key in keys]


def test_a_histogram_has_few_bins_of_equal_width_and_loses_no_row():
    lines = stats.histogram({1: 3, 2: 2, 62: 1})
    assert len(lines) <= stats.MAX_BINS
    assert [line.split()[0] for line in lines][:2] == ["0–9", "10–19"]
    assert lines[0].count("█") == stats.BAR_WIDTH
    assert stats.bar(1e-9) == "▏"
    assert stats.bar(0) == ""


def test_the_same_version_makes_the_same_picture(folder, tmp_path):
    for name in ("one.png", "two.png"):
        result = called("show", "--storage", folder, "-n", 6, "-o", tmp_path / name)
        assert f"{name}: 6 pictures\n" in result.output
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_pictures_are_spread_and_go_with_their_captions(folder):
    version = stats.find(Store.at(str(folder)), "train").version
    assert contact_sheet.evenly_spaced(1000, 4) == [125, 375, 625, 875]
    assert contact_sheet.evenly_spaced(3, 16) == [0, 1, 2]
    all_of_8 = contact_sheet.samples(version, 8, 16)
    assert {(p.key, p.caption) for p in all_of_8} == {
        *((f"a-{i}", c) for i, c in enumerate(A)),
        *((f"b-{i}", c) for i, c in enumerate(B)),
    }
    of_16 = contact_sheet.samples(version, 16, 16)
    assert "b-0" not in {p.key for p in of_16}
    assert {p.picture.size for p in of_16} == {(16, 16), (16, 20)}  # whole
    assert next(p for p in of_16 if p.key == "a-1").picture.size == (16, 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stats", "test"), "no data set 'test' in"),
        (("stats", "test"), "there are train"),
        (("stats", "nodes/embed/gone"), "run its embed node first"),
        (("show", "--resolution", "64"), "ediffi: the data set has pictures of 8 and 16 pixels"),
        (("show", "--resolution", "64"), "none of 64; choose --resolution 8 or 16"),
        (("show", "-o", "/"), "/ is a folder; name a file with --output"),
        (("show", "-o", "/nowhere/grid.png"), "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(folder, arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ediffi", "data", *arguments, "--storage", str(folder)])
    monkeypatch.delenv("EDIFFI_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("ediffi: ")
    assert error.count("\n") == 1


def test_a_folder_names_a_version_too(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    by_name = called("stats", "--storage", folder).output
    for name in (
        "nodes/embed/train-f00d",
        "store/nodes/embed/train-f00d",
        f"{folder}/nodes/embed/train-f00d/",
    ):
        assert called("stats", name, "--storage", folder).output == by_name
