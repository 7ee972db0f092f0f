"""The command at the shell: how it begins, ends and refuses; version, help, store and width."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import kit
import pytest
import typer
from paths import SMOKE
from typer.testing import CliRunner

import pipelines.cli
from pipelines.cli.app import DEFAULT_STORAGE
from pipelines.cli.help import VERBS, verbs_of
from pipelines.cli.verbs import app
from pipelines.formatting import folded
from pipelines.runs.execution import Execution, by_id, recent
from pipelines.store.artifacts import Store

EVERY = [verb for verbs in VERBS.values() for verb in verbs]
MODULE = (sys.executable, "-m", "pipelines.cli")


@pytest.fixture
def store(tmp_path):
    """A store with three runs of two pipelines."""
    made = Store.open(str(tmp_path / "store"))
    order = ("train/z", "train/a", "promote/demo")
    for name, day, state in [("other", 3, "failed"), ("demo", 1, "done"), ("demo", 2, "done")]:
        Execution(
            id=f"{name}-2026010{day}-120000-000001",
            pipeline=name,
            fingerprint="f",
            attempt=1,
            state=state,
            started=f"2026-01-0{day}T12:00:00+00:00",
            ended=f"2026-01-0{day}T13:00:00+00:00",
            nodes={node: {"state": state, "seconds": 1.0} for node in order},
        ).save(made)
    return made


@pytest.fixture
def ediffi(monkeypatch, capsys):
    """``ediffi(*words)`` → exit code, stdout and stderr, in this process."""
    monkeypatch.delenv("EDIFFI_STORE", raising=False)
    monkeypatch.delenv("EDIFFI_DEBUG", raising=False)

    def call(*words):
        capsys.readouterr()
        return kit.call(*words), *capsys.readouterr()

    return call


def refused(result):
    """The one line of an error."""
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1), result
    return err


def on_terminal(*words, columns=60, answers="", **env):
    """What a terminal shows of the command, and its exit code."""
    pid, screen = pty.fork()
    if pid == 0:
        env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **env}
        os.execve(sys.executable, [*MODULE, *map(str, words)], env)
    os.write(screen, answers.encode())
    shown = b""
    while True:
        try:
            part = os.read(screen, 65536)
        except OSError:  # the other side has closed
            break
        if not part:
            break
        shown += part
    os.close(screen)
    return shown.decode().replace("\r\n", "\n"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def plain(shown):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


# -- how it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["runs"], ["models", "--json"]])
def test_a_full_disk_behind_stdout_is_one_line(words, store):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*MODULE, *words], stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "EDIFFI_STORE": store.root},
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == ("ediffi: standard output cannot be written (No space left on device)\n")


def test_what_the_system_refuses_is_one_line_that_names_the_file(ediffi, tmp_path):
    for words in (["plan", tmp_path / ("a" * 300 + ".yaml")], ["tree", "--html", "b" * 300]):
        line = refused(ediffi(*words))
        assert "ong" in line and ("a" * 300 in line or "b" * 300 in line)


def test_with_the_variable_it_is_a_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("EDIFFI_DEBUG", "1")
    with pytest.raises(OSError, match="too long"):
        kit.call("plan", tmp_path / ("a" * 300 + ".yaml"))


@pytest.mark.slow
def test_a_tree_is_not_written_into_a_folder_or_a_missing_one(ediffi, store, tmp_path):
    for place, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "x.html", "cannot be")):
        line = refused(ediffi("tree", "--html", place, "--storage", store.root))
        assert str(place) in line and why in line and "--html" in line


@pytest.mark.slow
def test_ctrl_c_ends_it_silently_while_its_modules_are_imported():
    """From the moment at which the command's own first module is read."""
    waits = (
        "import sys\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer':\n"
        "            print('imports', flush=True)\n"
        "            import time; time.sleep(600)\n"
        "sys.meta_path.insert(0, Late())\n"
        "from pipelines.cli import main\n"
        "main()\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", waits], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout.readline() == "imports\n"
    started.send_signal(signal.SIGINT)
    _, err = started.communicate()
    assert (started.returncode, err) == (130, "")


def test_the_command_s_package_imports_nothing():
    """Else Ctrl-C meanwhile would end in a traceback."""
    names = vars(pipelines.cli)
    assert {n for n, v in names.items() if callable(v) and not n.startswith("__")} == {"main"}
    code = "import sys; before = {*sys.modules}; import pipelines.cli; "
    code += "print(sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['pipelines', 'pipelines.cli']\n"


def test_a_locale_without_greek_gets_the_rest():
    done = subprocess.run(
        [*MODULE, "ema", "--help"], capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.returncode == 0 and r"\u03c3_rel" in done.stdout, done.stderr


# -- version, help, environment ------------------------------------------------------------------


def test_the_version_is_that_of_the_package(ediffi):
    from importlib.metadata import version

    assert ediffi("--version") == (0, f"ediffi {version('ediffi')}\n", "")


@pytest.mark.parametrize("verb", ["", *EVERY, "data", "study"])
def test_h_is_help(verb):
    found = [CliRunner().invoke(app, [*verb.split(), o]).output for o in ("-h", "--help")]
    assert found[0] == found[1] and "Usage:" in found[0] and "-h, --help" in found[0]


def test_the_help_tells_of_the_environment():
    said = CliRunner().invoke(app, ["--help"]).output
    assert all(f"  {name} " in said for name in ("EDIFFI_STORE", "EDIFFI_DEBUG", "NO_COLOR"))


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_help_fits_the_terminal_and_cuts_nothing_off(columns):
    lines = CliRunner().invoke(app, ["--help"], terminal_width=columns).output.splitlines()
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines[1:] if "..." in line]


def test_every_store_can_be_named_by_the_variable():
    command = typer.main.get_command(app)
    for verb in verbs_of(command):
        found = command
        for word in verb.split():
            found = found.commands[word]
        for param in found.params:
            if "--storage" in param.opts:
                assert (param.envvar, param.metavar) == ("EDIFFI_STORE", "PATH"), verb


def test_the_variable_names_the_store_and_the_option_comes_before_it(
    ediffi, store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDIFFI_STORE", store.root)
    assert len(ediffi("runs")[1].splitlines()) == 4
    assert "there is no store" in refused(ediffi("runs", "--storage", tmp_path / "no"))
    monkeypatch.setenv("EDIFFI_STORE", "")
    assert DEFAULT_STORAGE in refused(ediffi("runs"))


@pytest.mark.slow
def test_a_plan_of_nothing_done_looks_into_no_store(store, monkeypatch):
    """Not even into the one that the environment names."""
    asked = ["plan", SMOKE, "--assume", "--json"]
    before = kit.said(*asked)
    assert kit.said(*asked, EDIFFI_STORE="/proc/version/below") == before


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["status"],
        ["tree"],
        ["cancel"],
        ["gc"],
        ["models"],
        ["models", "demo"],
        ["promote", "demo"],
        ["rollback", "demo"],
        ["data", "stats"],
        ["data", "show"],
        ["schedule", "--list"],
        pytest.param(["sample", "demo", "a frog"], marks=pytest.mark.slow),
        pytest.param(["ema", "demo"], marks=pytest.mark.slow),
        pytest.param(["serve", "demo"], marks=pytest.mark.slow),
    ],
)
def test_a_store_that_is_not_there_is_no_empty_store(ediffi, words, tmp_path):
    line = refused(ediffi(*words, "--storage", tmp_path / "no"))
    assert f"there is no store at {tmp_path / 'no'}" in line and "--storage" in line
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_plan_says_that_the_store_is_not_there(ediffi, tmp_path):
    code, out, err = ediffi("plan", SMOKE, "--storage", tmp_path / "no")
    assert code == 0 and "to run" in out
    assert err == f"note: there is no store at {tmp_path / 'no'} yet; a run makes it\n"
    assert ediffi("plan", SMOKE, "--storage", tmp_path)[2] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["plan", SMOKE, "--svg", "x.png"], "--svg draws an SVG; end the name of x.png in .svg"),
        (["plan", SMOKE, "--svg", "no/x.svg"], "give a writable path with --svg"),
        (["ema", "m", "--length", "0.1", "--plot", "x.svg"], "end the name of x.svg in .png"),
        (["data", "show", "-o", "x.svg"], "x.svg has an unknown extension"),
        (["sample", "m", "a frog", "-o", "x.svg"], "x.svg has an unknown extension"),
    ],
)
def test_a_file_of_another_kind_is_refused_before_any_work(ediffi, words, why, tmp_path):
    assert why in refused(ediffi(*words, "--storage", tmp_path / "no"))


@pytest.mark.slow
def test_the_default_strength_in_the_help_is_the_model_s():
    from pipelines.models.painting import STRENGTH

    said = " ".join(CliRunner().invoke(app, ["sample", "-h"]).output.split())
    assert f"Strength of --paint. [default: ({STRENGTH})" in said


# -- runs ----------------------------------------------------------------------------------------


def test_runs_are_listed_from_the_newest(ediffi, store):
    code, out, _ = ediffi("runs", "--storage", store.root)
    head, *rows = out.splitlines()
    assert code == 0 and head.split()[:2] == ["run", "state"]
    assert [row.split()[0][:-14] for row in rows] == [
        "other-20260103", "demo-20260102", "demo-20260101",
    ]  # fmt: skip
    assert rows[1].split()[1:] == ["done", "2026-01-02", "12:00", "1:00:00", "3", "of", "3"]
    assert "0 of 3" in rows[0]
    found = json.loads(ediffi("runs", "demo", "--last", 1, "--storage", store.root, "--json")[1])
    assert [(run["id"][:13], run["seconds"], run["done"]) for run in found] == [
        ("demo-20260102", 3600.0, 3)
    ]
    code, out, _ = ediffi("runs", "nobody", "--storage", store.root)
    assert code == 0 and out.startswith("no runs of nobody in ")
    assert json.loads(ediffi("runs", "nobody", "--storage", store.root, "--json")[1]) == []
    for name, why in (("Demo", "is no name of a pipeline"), ("../x", "there is no spec at ../x")):
        assert why in refused(ediffi("runs", name, "--storage", store.root))


@pytest.mark.parametrize("verb", ["status", "tree", "cancel"])
def test_a_run_is_named_in_one_way(ediffi, store, verb, tmp_path):
    """By its id, or its pipeline's name or file; `--run` still works, where it did."""
    spec = kit.spec_with(tmp_path / "demo.yaml", lambda raw: raw.update(name="demo"))
    newest, older = (run.id for run in recent(store, "demo"))
    place = ("--storage", store.root)
    for name, run in ((newest, newest), (older, older), ("demo", newest), (spec, newest)):
        _, out, err = ediffi(verb, name, *place)
        assert run in out + err, name
    for name in ("nobody", tmp_path / "no.yaml", "No-1"):
        assert str(name) in refused(ediffi(verb, name, *place))
    if verb != "tree":
        _, out, err = ediffi(verb, "--run", older, *place)
        assert older in out + err and err.startswith("ediffi: warning: --run ID is now")


def test_status_has_a_summary_and_the_order_of_the_dag(ediffi, store):
    lines = ediffi("status", "demo", "--storage", store.root)[1].splitlines()
    assert lines[1] == "  3 of 3 nodes done"
    assert [line.split()[0] for line in lines[2:]] == ["train/z", "train/a", "promote/demo"]
    found = json.loads(ediffi("status", "demo", "--storage", store.root, "--json")[1])
    assert [*found["nodes"]] == ["train/z", "train/a", "promote/demo"]


def test_records_of_other_versions_can_be_read(store):
    """Of an earlier one, without an order; of a later one, with more than is known here."""
    path = f"executions/{recent(store, 'demo')[0].id}.json"
    record = store.read_json(path)
    order = record.pop("order")
    store.write_json(path, {**record, "novelty": 1})
    found = by_id(store, record["id"])
    assert [*found.nodes] == sorted(order) and found.state == "done"


# -- a terminal ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_terminal_gets_colours_and_its_width(store):
    shown, code = on_terminal("runs", "--storage", store.root, columns=60)
    assert code == 0 and "\x1b[32mdone" in shown
    assert max(map(len, plain(shown).splitlines())) <= 60, shown


@pytest.mark.parametrize("words", [["status", "demo"], ["runs"]])
def test_no_color_leaves_out_colours_alone(ediffi, store, words, monkeypatch):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    coloured = ediffi(*words, "--storage", store.root)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    bare = ediffi(*words, "--storage", store.root)[1]
    assert "\x1b[32mdone" in coloured and bare == plain(coloured)
    assert max(map(len, bare.splitlines())) <= 60


def test_folding_keeps_every_word_and_the_columns_before_the_fold():
    text = "head  " + "word " * 30 + "\n\n  a    " + "x" * 90 + "  b\nshort    line"
    lines = folded(text, 40).splitlines()
    assert " ".join(lines).split() == text.split() and lines[-1] == "short    line"
    assert all(len(line) <= 40 for line in lines if "x" not in line)
    assert lines[0].startswith("head  word") and lines[1].startswith("    word")


def test_a_pipe_gets_neither(store):
    done = subprocess.run(
        [*MODULE, "runs", "--storage", store.root], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "20"},
    )  # fmt: skip
    assert "\x1b" not in done.stdout and len(done.stdout.splitlines()) == 4
