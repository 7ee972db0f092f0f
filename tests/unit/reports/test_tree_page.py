"""The lineage page: the whole tree, drawn to scale, in one self-contained file."""

import io
import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from page_kit import Element, Page
from PIL import Image
from tree_kit import MEASURED

from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.lineage.address import Runs
from pipelines.reports import tree as tree_view
from pipelines.reports import tree_page
from pipelines.reports.tree_page.thumbnails import LIMIT_BYTES
from pipelines.store.artifacts import Store


def parsed(tree, **more):
    return Page(tree_page.html(tree, **more)).root


def stage_of(page, name):
    return page.one("section", data_stage=name)


def rows_of(page, name):
    """Expert → its row."""
    rows = stage_of(page, name).all("tr")
    return {r.attributes["data-expert"]: r for r in rows if "data-expert" in r.attributes}


def test_every_expert_has_a_row_with_its_numbers(tree):
    page = parsed(tree)
    for stage, experts in MEASURED.items():
        rows = rows_of(page, stage)
        assert rows.keys() == experts.keys()
        for name, (loss, *gain) in experts.items():
            expert = tree["stages"][stage]["experts"][name]
            assert f"{expert['images']:,}" in rows[name].text
            assert f"{loss:.4f}" in rows[name].text
            assert tree_view.interval_text(expert) in rows[name].text
            if gain:
                said = "{1:+.4f} [{2:+.4f}, {3:+.4f}]".format(*gain).replace("-", "−")
                assert said in rows[name].text
            is_in = "in" in rows[name].attributes["class"].split()
            assert is_in == expert["in_ensemble"]


def test_bars_lie_where_the_axis_says(tree):
    page = parsed(tree)
    base = stage_of(page, "base")
    labels = {float(t.text): t.style("left") for t in base.one(class_="ticks").all("span")}
    decade = labels[1] - labels[0.1]
    assert labels[10] - labels[1] == pytest.approx(decade, abs=0.02)

    def at(sigma):
        return labels[1] + decade * math.log10(sigma)

    bars = {name: row.one(class_="bar") for name, row in rows_of(page, "base").items()}
    assert (bars["E0_0"].style("left"), bars["E0_0"].style("width")) == (0, 100)
    for name, bar in bars.items():
        expert = tree["stages"]["base"]["experts"][name]
        if expert["sigma_lo"]:
            assert bar.style("left") == pytest.approx(at(expert["sigma_lo"]), abs=0.05)
        if expert["sigma_hi"]:
            end = bar.style("left") + bar.style("width")
            assert end == pytest.approx(at(expert["sigma_hi"]), abs=0.05)


def polygon(path):
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", path)]
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise([*points, points[0]]))) / 2


def test_the_coloured_parts_of_the_curve_are_the_experts_shares_of_p_sigma(tree):
    base = stage_of(parsed(tree), "base")
    areas = [polygon(p.attributes["d"]) for p in base.all("path", class_="area")]
    names = [piece["expert"] for piece in tree["stages"]["base"]["ensemble"]]
    assert names == ["E2_3", "M_C", "E1_0"]
    assert np.array(areas) / sum(areas) == pytest.approx([0.25, 0.25, 0.5], abs=0.003)


def test_gains_are_drawn_about_one_zero(tree):
    rows = rows_of(parsed(tree), "base")
    cells = {name: row.one(class_="gain") for name, row in rows.items()}
    drawn = {n: cell.one(class_="track") for n, cell in cells.items() if cell.text != "–"}
    measured = {n: m for n, m in MEASURED["base"].items() if len(m) > 1}
    assert drawn.keys() == measured.keys()
    zero = {t.one(class_="zero").style("left") for t in drawn.values()}
    assert len(zero) == 1
    values = [m[2] for m in measured.values()]
    dots = [drawn[n].one(class_="dot").style("left") for n in measured]
    slope, start = np.polyfit(values, dots, 1)
    assert start == pytest.approx(*zero, abs=0.05) and slope > 0
    for name, (*_, gain, low, high) in measured.items():
        between, dot = (drawn[name].one(class_=c) for c in ("between", "dot"))
        assert between.style("left") == pytest.approx(start + slope * low, abs=0.05)
        assert between.style("width") == pytest.approx(slope * (high - low), abs=0.05)
        assert dot.style("left") == pytest.approx(start + slope * gain, abs=0.05)
    kinds = {n: t.attributes["class"].split()[1] for n, t in drawn.items()}
    assert kinds == {
        "E1_1": "better",
        "E2_3": "unsure",
        "M_C": "better",
        "E1_0": "worse",
        "single": "better",
    }


def test_the_slider_has_the_expert_of_every_step(tree):
    page = parsed(tree)
    for name, stage in tree["stages"].items():
        section = stage_of(page, name)
        [text] = section.one("script", class_="steps").inside
        steps = json.loads(text)
        assert len(steps) == stage["sampling"]["steps"]
        assert int(section.one("input").attributes["max"]) == len(steps)
        assert [s["at"] for s in steps] == sorted((s["at"] for s in steps), reverse=True)
        for step, sigma in zip(steps, stage["sampling"]["sigmas"], strict=True):
            assert float(step["sigma"]) == pytest.approx(sigma, rel=0.006)
            [expert] = step["experts"]
            low, high = (stage["experts"][expert][k] for k in ("sigma_lo", "sigma_hi"))
            assert low <= sigma and (high is None or sigma < high)
            assert stage["experts"][expert]["in_ensemble"]


def test_heun_calls_two_experts_where_a_step_crosses_an_edge(tree):
    stage = tree["stages"]["base"]
    stage["sampling"]["solver"] = "heun"
    works = tree_view.experts_by_step(stage)
    crossed = [asked for _, asked in works if len(asked) == 2]
    assert crossed == [["E2_3", "M_C"], ["M_C", "E1_0"]]
    assert works[-1][1] == ["E1_0"]  # the last step, to no noise at all, asks once


def test_without_script_nothing_is_missing_but_the_slider(tree):
    page = parsed(tree)
    for name, stage in tree["stages"].items():
        section = stage_of(page, name)
        assert "hidden" in section.one(class_="slider").attributes
        shares = [share.text.split() for share in section.all(class_="share")]
        assert sum(int(n) for _, n in shares) == stage["sampling"]["steps"]
        assert [e for e, _ in shares] == [p["expert"] for p in stage["ensemble"]]
    said = stage_of(page, "base").text
    for row in tree_view.evaluation_table(tree["stages"]["base"]["evaluations"]):
        assert " ".join(row).strip() in said


def test_the_page_loads_nothing_from_the_network(tree):
    text = tree_page.html(tree)
    page = Page(text).root
    for element in page.all():
        assert not {"src", "href", "srcset", "action", "data"} & element.attributes.keys()
        assert element.name not in ("link", "iframe", "object", "embed", "base")
    assert not re.search(r"https?://|//[a-z]|@import|url\(|fetch|XMLHttp|import\(", text)
    assert "default-src 'none'" in text


def test_links_lead_to_the_runs_and_contain_no_password(tree):
    runs = Runs(
        uri="https://me:secret@mlflow.example/team/",
        experiment="7",
        run_ids={"": "a" * 32, "train/base/E2_3": "b" * 32},
    )
    text = tree_page.html(tree, links=runs.links())
    links = {a.text: a.attributes["href"] for a in Page(text).root.all("a")}
    at = "https://mlflow.example/team/#/experiments/7/runs/"
    end = "?workflowType=machine_learning"
    assert links == {"a" * 8: at + "a" * 32 + end, "b" * 8: at + "b" * 32 + end}
    assert "secret" not in text
    aside = Runs(uri="sqlite:////here/mlflow.db", experiment="7", run_ids=runs.run_ids)
    text = tree_page.html(tree, links=aside.links())
    assert not list(Page(text).root.all("a")) and "bbbbbbbb" in text and "/here" not in text


def test_texts_from_outside_are_escaped(tree):
    nasty = "</script><script>alert('σ')</script>&amp;\"'><b x="
    tree["pipeline"] = tree["execution"] = nasty
    tree["labels"] = [nasty]
    base = tree["stages"]["base"]
    base["experts"]["E2_3"] |= {"adopted": False, "why": nasty}
    base["ensemble"][0]["expert"] = nasty
    base["decisions"] = [{"after": nasty, nasty: 1}]
    page = parsed(tree)
    assert len(list(page.all("script"))) == len(tree["stages"]) + 1
    assert not list(page.all("b", x=""))
    assert page.one("title").text == f"{nasty} · {nasty}"
    assert page.one(class_="label").text == nasty
    steps = json.loads(stage_of(page, "base").one("script", class_="steps").inside[0])
    assert steps[0]["experts"] == [nasty]


def test_refusals_and_decisions_are_shown_where_there_are_any(tree):
    plain = stage_of(parsed(tree), "base").text
    assert "refused" not in plain and "Growth of the tree" not in plain
    base = tree["stages"]["base"]
    base["experts"]["E2_3"] |= {"adopted": False, "why": "no better than E1_1"}
    base["decisions"] = [{"after": "E1_1", "images_left": 7200, "split": None, "taken": False}]
    tree["labels"] = ["champion"]
    page = parsed(tree)
    [row] = [r for r in page.all("tr") if "no better than" in r.text]
    assert row.attributes["data-expert"] == "E2_3" and "refused" in row.text
    grown = next(stage_of(page, "base").all("table", class_="numbers"))
    cells = [[c.text for c in r.inside if isinstance(c, Element)] for r in grown.all("tr")]
    assert cells == [["after", "images left", "split", "taken"], ["E1_1", "7,200", "–", "no"]]
    said = tree_view.text(tree)
    assert said.splitlines()[0].endswith("done  champion")
    assert "refused" in said and "no better than E1_1" in said and "images left" in said


def test_the_same_tree_makes_the_same_bytes(tree):
    again = json.loads(json.dumps(tree))
    assert tree_page.html(tree) == tree_page.html(again)


def test_a_tree_of_an_earlier_version_is_refused(tree):
    for key in ("ensemble", "noise", "sampling"):
        del tree["stages"]["sr32"][key]
    with pytest.raises(ValueError, match=r"earlier version.*run its spec again"):
        tree_page.html(tree)


def test_pictures_are_embedded_up_to_the_size_limit(tree, tmp_path):
    store = Store.open(str(tmp_path / "store"))
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(noise).save(png, "PNG")
    base = tree["stages"]["base"]
    base["pictures"] = {"ensemble": "drawn.png"}
    Image.new("RGB", (804, 204), "pink").save(plain := io.BytesIO(), "PNG")
    store.write("drawn.png", plain.getvalue())
    for name in ("E0_0", "E1_1", "M_C", "E1_0", "single"):
        base["experts"][name]["picture"] = f"{name}.png"
        store.write(f"{name}.png", png.getvalue())
    base["experts"]["E2_3"]["picture"] = "lost.png"
    found = tree_page.thumbnails(store, tree)
    assert (
        {"drawn.png", "E0_0.png"}
        <= found.keys()
        < {"drawn.png", *(f"{n}.png" for n in MEASURED["base"])}
    )
    assert sum(map(len, found.values())) <= LIMIT_BYTES
    page = parsed(tree, pictures=found)
    assert {i.attributes["src"] for i in page.all("img")} == set(found.values())
    assert all(i.attributes["alt"] for i in page.all("img"))


def test_the_intervals_of_the_ensemble_are_those_of_the_experts(tree):
    noise = NoiseDistribution(**tree["stages"]["base"]["noise"])
    for piece in tree["stages"]["base"]["ensemble"]:
        expert = tree["stages"]["base"]["experts"][piece["expert"]]
        low, high = Interval(expert["q_lo"], expert["q_hi"]).bounds(noise)
        assert piece["sigma_lo"] == low and (piece["sigma_hi"] or math.inf) == high
