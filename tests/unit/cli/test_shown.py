"""What others wrote is shown without what a terminal would obey, and names stay names."""

import ast
import json
import sys

import pytest
from paths import ROOT
from PIL import Image

from pipelines import cli
from pipelines.formatting import align_columns, printable
from pipelines.lineage.lookup import find_drawn_by
from pipelines.models import metadata, painting
from pipelines.models.champions import Entry, add_candidate, registry_path
from pipelines.reports.tree_page.thumbnails import thumbnails
from pipelines.runs.execution import Execution, by_id, latest
from pipelines.store.artifacts import Store

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eab\r\x08 \x7f\nfake  champion"
"""Sets a window's title, clears the screen, turns text round, and makes a line of its own."""


@pytest.fixture
def store(tmp_path):
    made = Store.open(str(tmp_path / "store"))
    execution = Execution(
        id="demo-1",
        pipeline="demo",
        fingerprint="f",
        attempt=1,
        state=f"done{EVIL}",
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T01:00:00+00:00",
        nodes={f"train/{EVIL}": {"state": "failed", "error": EVIL}},
    )
    execution.save(made)
    folder = "nodes/promote/demo-aaaaaaaaaaaaaaaa"
    made.write_json(f"{folder}/manifest.json", {"metrics": {EVIL: 1.0}})
    add_candidate(made, "demo", Entry(fingerprint="a" * 16, folder=folder, why=EVIL, by=EVIL))
    return made


@pytest.fixture
def ediffi(store, monkeypatch, capsys):
    """``ediffi(*words)`` → exit code, stdout and stderr of a verb on that store."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["ediffi", *words, "--storage", store.root])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "words", [["models"], ["models", "demo"], ["models", "demo", "--json"], ["status"]]
)
def test_verbs_escape_what_the_store_says(ediffi, words):
    code, out, _ = ediffi(*words)
    assert code == 0 and printable(out, lines=True) == out
    assert "owned" in out and not [line for line in out.splitlines() if line.startswith("fake")]
    if "--json" in words:
        assert json.loads(out)["demo"]["versions"][0]["why"] == EVIL


def test_status_as_json_is_still_json(ediffi):
    _, out, _ = ediffi("status", "--json")
    assert json.loads(out)["nodes"][f"train/{EVIL}"]["error"] == EVIL


def test_errors_are_one_line_without_escapes(ediffi):
    code, _, err = ediffi("promote", "demo", EVIL)
    assert code == 2 and err.count("\n") == 1 and printable(err[:-1]) == err[:-1]


def test_every_verb_prints_by_the_one_function():
    """Whoever adds a verb may not forget it."""
    direct = [
        f"{path.name}:{node.lineno}"
        for path in sorted((ROOT / "pipelines/cli").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("typer.echo", "typer.secho", "click.echo", "print")
    ]
    assert len(direct) == 1 and direct[0].startswith("app.py:")


def test_text_of_any_script_is_shown_as_it_is():
    for text in ("一只\u3000猫", "قطة", "95\u00a0%", "cafe\u0301", "👍🏽"):
        assert printable(text) == text
    assert printable("a\nb\tc") == r"a\nb\tc" and printable("a\nb\tc", lines=True) == "a\nb\tc"
    assert align_columns([("a\nb", "c"), ("d", "e\x1b")]) == ["a\\nb  c", "d     e\\x1b"]


NAMES = ["../registry/demo", "/etc/passwd", "demo\n", "Demo", "demo/../demo", EVIL]


@pytest.mark.parametrize("name", [*NAMES, "-x", ""])
def test_a_name_that_no_spec_may_have_leads_to_no_file(store, name):
    with pytest.raises(ValueError, match="is no name of a model"):
        registry_path(name)
    with pytest.raises(ValueError, match="is no id of a run"):
        by_id(store, name)
    with pytest.raises(ValueError, match="is no name of a pipeline"):
        latest(store, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", [["models"], ["promote"], ["rollback"], ["status", "--run"]])
def test_verbs_refuse_such_a_name(ediffi, words, name):
    code, out, err = ediffi(*words, name)
    assert (code, out) == (2, "") and "is no " in err


def test_a_picture_may_not_name_a_model_outside_of_the_store(store):
    evil = metadata.ModelId.model_construct(name="../../x", fingerprint="a" * 16, manifest="")
    with pytest.raises(ValueError, match="is no name of a model"):
        find_drawn_by(evil, store.root)


@pytest.mark.parametrize("format", ["EPS", "PPM", "ICO", "TGA"])
def test_pictures_are_opened_in_the_formats_of_data_only(store, tmp_path, format):
    """PostScript is opened by running another program."""
    file = tmp_path / f"a.{format.lower()}"
    Image.new("RGB", (16, 16)).save(file, format)
    for opened in (painting.open_image, metadata.read):
        with pytest.raises(ValueError, match="is not a readable image"):
            opened(file)
    store.write("a.png", file.read_bytes())
    tree = {"stages": {"base": {"pictures": {"ensemble": "a.png"}, "experts": {}}}}
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        thumbnails(store, tree)
