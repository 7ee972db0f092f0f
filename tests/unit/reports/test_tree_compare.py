"""Comparing two trees, and the command that shows trees."""

import copy
import json

import pytest
from typer.testing import CliRunner

from pipelines.cli.verbs import app
from pipelines.models.champions import Entry, add_candidate
from pipelines.reports import tree_compare
from pipelines.runs.execution import Execution
from pipelines.store.artifacts import Store


@pytest.fixture
def other(tree):
    """The same pipeline on another day: trained longer, split elsewhere."""
    found = copy.deepcopy(tree)
    found["execution"] = "emoji-scenes-20260203-040506-000007"
    base = found["stages"]["base"]
    del base["experts"]["single"], base["evaluations"]["single"]
    base["experts"]["E2_3"]["images"] += 2400
    base["experts"]["E2_3"] |= {"weights_sha256": "f" * 64, "in_ensemble": False}
    base["experts"]["E2_3"]["metrics"] |= {"val_loss": 0.1768, "val_gain": 0.0090}
    base["experts"]["M_C"] |= {"q_hi": 1.0, "sigma_hi": None, "weights_sha256": "e" * 64}
    base["evaluations"]["ensemble"] |= {"concepts": 0.400}
    del found["stages"]["sr64"]
    return found


def test_differences_are_b_minus_a(tree, other):
    found = tree_compare.compare(tree, other)["stages"]["base"]
    e2_3 = found["experts"]["E2_3"]
    assert e2_3["difference"]["images"] == 2400
    assert e2_3["difference"]["val_loss"] == pytest.approx(-0.01)
    assert e2_3["difference"]["val_gain"] == pytest.approx(0.01)
    assert (e2_3["a"]["in_ensemble"], e2_3["b"]["in_ensemble"]) == (True, False)
    assert not e2_3["same_weights"] and found["experts"]["E1_1"]["same_weights"]
    aligned = found["evaluations"]["ensemble"]["concepts"]
    assert aligned == {"a": 0.317, "b": 0.4, "difference": pytest.approx(0.083)}


def test_swapping_the_runs_changes_only_signs(tree, other):
    there, back = tree_compare.compare(tree, other), tree_compare.compare(other, tree)
    assert there["stages"].keys() == back["stages"].keys() == tree["stages"].keys()
    for name, stage in there["stages"].items():
        for expert, e in stage["experts"].items():
            opposite = back["stages"][name]["experts"][expert]
            assert (e["a"], e["b"]) == (opposite["b"], opposite["a"])
            for key, value in e.get("difference", {}).items():
                assert value is None or opposite["difference"][key] == -value


def test_experts_of_one_run_or_with_other_intervals_have_no_difference(tree, other):
    found = tree_compare.compare(tree, other)["stages"]
    assert found["base"]["experts"]["single"]["only_in"] == "a"
    assert "difference" not in found["base"]["experts"]["single"]
    assert found["base"]["experts"]["M_C"]["difference"] == {"images": 0}
    assert found["base"]["evaluations"]["single"]["concepts"]["difference"] is None
    assert found["sr64"]["experts"]["E0_0"]["only_in"] == "a"
    assert tree_compare.compare(other, tree)["stages"]["sr64"]["experts"]["E0_0"]["only_in"] == "b"


@pytest.fixture
def ediffi(tree, other, tmp_path):
    """The command on a store with both runs; → its answer."""
    store = Store.open(str(tmp_path / "store"))
    for found in (tree, other):
        run = Execution(
            id=found["execution"], pipeline="emoji-scenes", fingerprint="x", attempt=1, state="done"
        )
        store.write_json(f"executions/{run.id}.tree.json", found)
        run.nodes["promote/emoji-scenes"] = {"state": "done", "folder": f"nodes/promote/x-{run.id}"}
        run.save(store)
        entry = Entry(fingerprint=run.id.rpartition("-")[2], folder="x", why="finished", by="run")
        add_candidate(store, "emoji-scenes", entry)

    def call(*args):
        return CliRunner().invoke(app, ["tree", *map(str, args), "--storage", store.root])

    return call


def test_the_command_compares_two_runs(ediffi, tree, other):
    runs = (tree["execution"], other["execution"])
    lines = ediffi("--compare", *runs).stdout.splitlines()
    assert lines[:2] == [f"A  {runs[0]}  done", f"B  {runs[1]}  done  candidate"]

    def line(start):
        return " ".join(next(x for x in lines if x.lstrip("● ").startswith(start)).split())

    experts = tree["stages"]["base"]["experts"]
    images, cut = experts["E2_3"]["images"], f"{experts['E1_1']['sigma_lo']:.4g}"
    assert line("E2_3") == (
        f"● E2_3 σ ≥ {experts['E2_3']['sigma_lo']:.4g} {images:,} {images + 2400:,} "
        "0.1868 0.1768 -0.0100 -0.0010 +0.0090 +0.0100"
    )
    assert line("E1_1").endswith("= same weights")
    assert line("single").endswith("only in A")
    assert line("M_C").endswith(f"B: σ ≥ {cut}")
    at = next(i for i, x in enumerate(lines) if x.startswith("  ensemble  "))
    assert [" ".join(x.split()) for x in lines[at : at + 3]] == [
        "ensemble A 0.317 0.137",
        "B 0.400 0.137",
        "B − A +0.083 =",
    ]
    as_json = json.loads(ediffi("--compare", *runs, "--json").stdout)
    found = tree_compare.compare(tree, other | {"labels": ["candidate"]})
    assert as_json == json.loads(json.dumps(found))


def test_the_command_writes_the_page(ediffi, other, tmp_path):
    page = tmp_path / "lineage.html"
    assert ediffi("--html", page).stdout == f"{page}: the tree of {other['execution']}\n"
    assert other["execution"] in page.read_text()


def test_invalid_arguments_are_explained(ediffi, tree, tmp_path):
    name = tree["execution"]
    for args, said in (
        (("--compare", name, "nothing"), "no run nothing in "),
        ((name, "--compare", name, name), "leave out RUN and --html"),
        (("--html", tmp_path / "none" / "page.html"), "give a writable path with --html"),
    ):
        error = ediffi(*args).exception
        assert isinstance(error, ValueError) and said in str(error)
