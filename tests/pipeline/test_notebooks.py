"""The notebooks run from top to bottom on the finished smoke run, and are kept without output."""

import ast
import contextlib
import io
import json
import os
from pathlib import Path

import pytest
from kit import SMOKE, environment
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def play(notebook, folder, **env):
    """Runs a notebook as its kernel does, with ``folder`` as its place; → what it printed.

    Cells in order in one namespace; what the last expression of each displays is left in
    the folder.
    """
    import matplotlib
    import matplotlib.pyplot as plt
    import mlflow

    names, out = {"__name__": "__main__"}, io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.ExitStack() as after,
    ):
        after.callback(mlflow.set_tracking_uri, mlflow.get_tracking_uri())
        patch.chdir(folder)
        for name in set(os.environ) - set(environment()):  # MLflow keeps its address there
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        matplotlib.use("Agg")
        for number, cell in enumerate(code(notebook)):
            tree = ast.parse(cell, f"cell {number}")
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, f"cell {number}", "exec"), names)
            if last is not None:
                shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
                if hasattr(shown, "save"):
                    shown.save(folder / f"picture-{number}.png")
                elif hasattr(shown, "to_csv"):
                    shown.to_csv(folder / f"table-{number}.csv", index=False)
            for figure in plt.get_fignums():
                plt.figure(figure).savefig(folder / f"figure-{number}.png")
            plt.close("all")
    return out.getvalue()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[n.name for n in NOTEBOOKS])
def test_notebooks_are_thin_and_kept_without_output(notebook):
    raw = json.loads(notebook.read_text())
    for cell in raw["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert len(code(notebook)) <= 10
    assert sum(len(c.splitlines()) for c in code(notebook)) <= 120


@pytest.fixture(scope="module")
def played(smoke, tmp_path_factory):
    """The tour of the expert tree: what it printed, and the folder of what it displayed."""
    folder = tmp_path_factory.mktemp("notebook")
    tour = ROOT / "notebooks" / "expert_tree.ipynb"
    return play(tour, folder, EDIFFI_STORE=str(smoke.store), EDIFFI_SPEC=str(SMOKE)), folder


def test_the_tour_tells_the_plan_the_run_and_the_tree(played):
    said, _ = played
    assert "0 to run, 15 reused" in said
    assert "promote/smoke            reused" in said
    for line in ("E0_0 ", "E1_1 ", "E1_0 ", "single "):
        assert line in said
    # Four steps from 80 to 0.002: 80, 9.7 and 0.5 are at or above the boundary at σ = 0.3012.
    assert "E1_1: 3 of 4 steps\nE1_0: 1 of 4 steps" in said


def test_the_tour_shows_the_intervals_and_pictures(played):
    _, folder = played
    [figure] = folder.glob("figure-*.png")
    with Image.open(figure) as shown:
        assert len(shown.convert("RGB").getcolors(1 << 20)) > 100
    [pictures] = folder.glob("picture-*.png")
    with Image.open(pictures) as shown:
        wide, high = shown.size
        assert (wide // (32 * 2), high // (32 * 2)) == (4, 2)


def test_the_tour_s_table_is_the_experts_record(played, smoke):
    _, folder = played
    [table] = folder.glob("table-*.csv")
    header, *rows = (line.split(",") for line in table.read_text().splitlines())
    experts = {row[header.index("tags.ediffi.expert")]: row for row in rows}
    assert set(experts) == {"E0_0", "E1_1", "E1_0", "single"}
    for name, row in experts.items():
        made = smoke.manifest(f"train/base/{name}")
        assert row[header.index("tags.ediffi.weights_sha256")] == made["info"]["weights_sha256"]
        assert float(row[header.index("metrics.final/val_loss")]) == pytest.approx(
            made["metrics"]["val_loss"]
        )


def test_without_a_run_the_tour_says_what_to_do(tmp_path):
    tour = ROOT / "notebooks" / "expert_tree.ipynb"
    with pytest.raises(ValueError, match=r"smoke was never run in .* start with `ediffi run`"):
        play(tour, tmp_path, EDIFFI_STORE=str(tmp_path / "none"), EDIFFI_SPEC=str(SMOKE))
    assert list(tmp_path.glob("figure-*.png"))  # the plan and its figure need no run
    assert not (tmp_path / "none").exists()
