"""The notebooks run from top to bottom on the finished smoke run, and are kept without output."""

import ast
import contextlib
import io
import json
import os
import re
from itertools import pairwise

import numpy as np
import pytest
from kit import SMOKE, environment
from paths import ROOT
from PIL import Image

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def play(notebook, folder, **env):
    """Runs a notebook as its kernel does, with ``folder`` as its place.

    Cells in order in one namespace; what the last expression of each displays is left in
    the folder. → What it printed, and its namespace.
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
    return out.getvalue(), names


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
    """Notebook → what it printed, what it named, and the folder of what it displayed."""
    found = {}
    for notebook in NOTEBOOKS:
        folder = tmp_path_factory.mktemp("notebook")
        env = {"EDIFFI_STORE": str(smoke.store), "EDIFFI_SPEC": str(SMOKE), "EDIFFI_MODEL": "smoke"}
        found[notebook.stem] = (*play(notebook, folder, **env), folder)
    return found


def shown(folder, kind="picture"):
    """The pictures or figures that a notebook displayed, in its order."""
    files = sorted(folder.glob(f"{kind}-*.png"), key=lambda f: int(f.stem.partition("-")[2]))
    return [np.asarray(Image.open(f).convert("RGB")) for f in files]


def rows_of(picture, rows):
    """A grid's rows of pictures, without the gap between them."""
    high = (len(picture) - 4) // rows
    return [picture[4 + i * high : (i + 1) * high] for i in range(rows)]


def test_every_figure_shows_something(played):
    for name, figures in (("01_first_tree", 1), ("02_inside_the_ensemble", 2)):
        drawn = shown(played[name][2], "figure")
        assert len(drawn) == figures
        assert all(len(np.unique(f.reshape(-1, 3), axis=0)) > 100 for f in drawn)


def test_the_first_tells_the_plan_and_the_tree(played):
    said, _, _ = played["01_first_tree"]
    assert "0 to run, 19 reused" in said
    assert re.search(r"● E1_1 +σ ≥ 0.3012 .* gain ", said)
    for line in ("E0_0 ", "E1_0 ", "single ", "ensemble "):
        assert line in said


def test_the_first_s_table_is_the_experts_record(played, smoke):
    [table] = played["01_first_tree"][2].glob("table-*.csv")
    header, *rows = (line.split(",") for line in table.read_text().splitlines())
    experts = {row[header.index("tags.ediffi.expert")]: row for row in rows}
    assert set(experts) == {"E0_0", "E1_1", "E1_0", "single"}
    for name, row in experts.items():
        made = smoke.manifest(f"train/base/{name}")
        assert row[header.index("tags.ediffi.weights_sha256")] == made["info"]["weights_sha256"]
        assert float(row[header.index("metrics.final/val_loss")]) == pytest.approx(
            made["metrics"]["val_loss"]
        )


def test_the_first_draws_with_the_whole_cascade(played):
    [pictures] = shown(played["01_first_tree"][2])
    assert (len(pictures[0]) // (32 * 2), len(pictures) // (32 * 2)) == (4, 2)


def test_the_second_watches_who_works(played):
    said, names, _ = played["02_inside_the_ensemble"]
    # Four steps from 80 to 0.002: 80, 9.7 and 0.5 are at or above the boundary at σ = 0.3012.
    assert "E1_1: 3 of 4 evaluations\nE1_0: 1 of 4 evaluations" in said
    assert [asked.expert for asked in names["seen"]] == ["E1_1"] * 3 + ["E1_0"]


def test_the_second_changes_the_prompt_midway(played):
    _, names, folder = played["02_inside_the_ensemble"]
    [pictures] = shown(folder)
    rows = rows_of(pictures, len(names["shares"]))
    assert not (rows[0] == rows[-1]).all()  # one prompt from the first step, the other to the last
    same = [(a == b).all() for a, b in pairwise(rows)]
    assert True in same and False in same  # four steps have five places to change at


def test_the_second_shares_attention_out_whole(played):
    _, names, _ = played["02_inside_the_ensemble"]
    at = names["at"]
    assert {"null", "t5", "clip_text"} <= at.keys()
    for sigma in at["null"]:
        mean = sum(np.mean(by_sigma[sigma]) for by_sigma in at.values())
        assert mean == pytest.approx(1, abs=1e-4)
    assert sorted(at["null"]) == pytest.approx([0.002, 0.47, 9.7, 80], rel=0.05)


def test_the_third_paints_and_takes_a_style(played):
    _, names, folder = played["03_paint_with_words"]
    painted, reference, styled = shown(folder)
    plain, left, right = rows_of(painted, len(names["layouts"]))
    for a, b in ((plain, left), (plain, right), (left, right)):
        assert not (a == b).all()
    assert names["halves"]["left"].sum() == names["halves"]["right"].sum() > 0
    assert reference.shape == (128, 128, 3)
    without, with_style = rows_of(styled, 2)
    assert not (without == with_style).all()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[n.name for n in NOTEBOOKS])
def test_without_a_run_a_notebook_says_what_is_missing(notebook, tmp_path):
    none = tmp_path / "none"
    with pytest.raises(ValueError, match=r"(smoke was never run in|there is no store at) .*none"):
        play(
            notebook, tmp_path, EDIFFI_STORE=str(none), EDIFFI_SPEC=str(SMOKE), EDIFFI_MODEL="smoke"
        )
    assert not none.exists()
