"""A study's report: every kind of figure has its data, and the page stands alone."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
import study_kit as kit

from pipelines.spec.study import FigureKind
from pipelines.studies import claims
from pipelines.studies.report import axes, content, cost, shown, theme
from pipelines.studies.report.figures import KINDS, prepared
from pipelines.studies.report.page import prose
from pipelines.studies.report.shown import Source
from pipelines.studies.report.write import write
from pipelines.studies.results import Cell, Results

VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}


class Page(HTMLParser):
    """Elements of a page; checks that each is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.faults = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def of(self, *tags):
        return [attrs for tag, attrs in self.found if tag in tags]


@pytest.fixture(scope="module")
def made():
    return kit.results()


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    target = tmp_path_factory.mktemp("report")
    write(made, claims.find(made), target, kit.PROVENANCE, noise=kit.NOISE, read=kit.read)
    return target


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def shown_of(results, name, **source):
    return prepared(Source(results=results, noise=kit.NOISE, read=kit.read, **source))[name]


def only(results, **keep):
    """Cells with these values."""
    cells = [c for c in results.cells if all(c.at[axis] == v for axis, v in keep.items())]
    return Results(study=results.study, cells=tuple(cells))


# -- the folder ------------------------------------------------------------------------------------


def test_every_kind_of_figure_is_drawn(folder):
    assert set(KINDS) == set(get_args(FigureKind)) == {f["kind"] for f in kit.FIGURES.values()}
    for name, figure in kit.FIGURES.items():
        suffixes = {path.suffix for path in (folder / "figures").glob(f"{name}-*")}
        if figure["kind"] == "losses_by_noise":
            assert suffixes == set()
        else:
            assert suffixes == ({".png"} if figure["kind"] == "pictures" else {".png", ".svg"})


def test_every_figure_has_its_data(folder):
    numbers = json.loads((folder / "results.json").read_text())
    for name in kit.FIGURES:
        stored = json.loads((folder / "figures" / f"{name}.json").read_text())
        assert stored["records"] and "missing" not in stored
        assert numbers["figures"][name] == stored


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(made, folder, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old-1.svg").write_text("of an earlier report")
    write(made, claims.find(made), tmp_path, kit.PROVENANCE, noise=kit.NOISE, read=kit.read)
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    assert files == [p.relative_to(tmp_path) for p in sorted(tmp_path.rglob("*")) if p.is_file()]
    assert [f for f in files if (folder / f).read_bytes() != (tmp_path / f).read_bytes()] == []


def test_the_numbers_are_few_and_short(folder):
    text = (folder / "results.json").read_text()
    assert len(text) < 300_000
    assert not re.search(r"\d\.\d{12}", text)
    numbers = json.loads(text)
    assert [c["verdict"] for c in numbers["claims"]].count("refuted") == 2
    model = numbers["models"][0]
    assert len(model["means"]["val_loss"]) == len(model["seeds"]) == 5


def test_files_that_the_markdown_names_exist(folder):
    text = (folder / "report.md").read_text()
    named = re.findall(r'(?:src|href)="([^"]+)"|\]\(([^)]+)\)', text)
    paths = {a or b for a, b in named}
    assert {path for path in paths if not (folder / path).is_file()} == set()
    assert {"figures/gains-1.png", "figures/pictures-1.png", "results.json"} <= paths


def test_svg_files_stand_alone(folder):
    for path in (folder / "figures").glob("*.svg"):
        root = ElementTree.fromstring(path.read_text())
        assert root.get("aria-label")
        uses = set(re.findall(r"var\((--\w+)\)", path.read_text()))
        assert uses <= set(re.findall(r"(--\w+):", path.read_text()))
        assert "#0101" not in path.read_text()


# -- the page --------------------------------------------------------------------------------------


def test_the_page_is_well_formed(page):
    read = Page(page)
    assert read.faults == [] and read.open == []
    ids = [attrs["id"] for _, attrs in read.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([\w.-]+)', page)
    assert used and set(used) <= set(ids)


def test_the_page_loads_nothing(page):
    read = Page(page)
    assert read.of("script", "link", "iframe") == []
    addresses = [a[k] for _, a in read.found for k in ("src", "href", "xlink:href") if k in a]
    assert {a.partition(",")[0][:5] for a in addresses if not a.startswith("#")} == {"data:"}
    assert not re.search(r"url\((?!#)|@import", page)
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_page_can_be_read_aloud(page):
    read = Page(page)
    levels = [int(tag[1]) for tag, _ in read.found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert all(a.get("role") == "img" and a.get("aria-label") for a in read.of("svg"))
    assert all(a.get("alt") for a in read.of("img"))
    assert all(a.get("scope") in ("col", "row") for a in read.of("th"))


def test_verdicts_are_told_by_sign_and_word(page):
    assert re.search(r'class="verdict refuted">✗ refuted<', page)
    assert re.search(r'class="verdict open">\? open<', page)


def test_text_of_the_study_is_escaped():
    assert prose("a <script>x</script> **b**") == (
        "<p>a &lt;script&gt;x&lt;/script&gt; <strong>b</strong></p>"
    )
    assert "<img" not in prose("![x](https://example.org/x.png)")
    assert prose("# Head").startswith("<h3>")


# -- figures ---------------------------------------------------------------------------------------


def test_gains_are_those_of_the_claims(made):
    found = {(f.name, f.at.get("data")): f.effect for f in claims.find(made)}
    records = {
        (r["comparison"], r["at"]): r
        for r in shown_of(made, "gains").records
        if r["measure"] == "val_loss"
    }
    for data in ("emoji", "fashion"):
        record, effect = records[kit.PAYS["label"], data], found["pays", data]
        assert record["gain"] == effect.mean
        assert (record["gain low"], record["gain high"]) == effect.interval


def test_experts_begin_to_pay_where_they_were_made_to(made):
    figure = shown_of(made, "against")
    by_images = [r for r in figure.records if r["comparison"] == kit.PAYS["label"]]
    assert [r["images"] for r in by_images if r["at"] == "emoji"] == [5e4, 1e5, 2e5, 4e5]
    crossings = [note for note in figure.notes if ": better above images" in note]
    assert len(crossings) == 4
    assert all(5e4 < float(n.split("images ")[1].split()[0].replace(",", "")) < 1e5
               for n in crossings)  # fmt: skip


def test_the_lowest_losses_are_in_bold(made):
    figure = shown_of(made, "losses")
    for row, column in figure.best:
        place = [r[column] for r in figure.records if r["at"] == figure.records[row]["at"]]
        assert figure.records[row][column] == min(place)
    assert len(figure.best) == 2 * 9


def test_probes_are_means_over_seeds(made):
    figure = shown_of(made, "guidance")
    cells = made.at(made.study.place({}))
    stored = [
        c.measurements["probe/ensemble/guidance"]["points"][0]["measures"]["concepts"]["value"]
        for c in cells.values()
    ]
    first = figure.records[0]
    assert (first["model"], first["w"]) == ("ensemble", 0.0)
    assert first["concepts"] == pytest.approx(np.mean(stored))


def test_the_lost_comparisons_are_listed(made):
    figures = prepared(Source(results=made, noise=kit.NOISE))
    report = content.Report(
        results=made, claims=claims.find(made), figures=figures, provenance=kit.PROVENANCE
    )
    lost = "\n".join(report.lost())
    assert "Experts at the wrong noise levels are better than one model. Refuted." in lost
    assert f"{kit.SWAPPED['label']} (emoji): validation loss −0.1" in lost
    assert "400 k" not in lost


def test_without_noise_levels_are_shares_of_p(made):
    figure = prepared(Source(results=made))["gradients"]
    assert figure.records[0]["σ"] == "1/8"
    assert figure.panels


@pytest.mark.parametrize("name", sorted(kit.FIGURES))
def test_what_is_missing_is_named(name, made):
    bare = [Cell(name=c.name, at=c.at, groups={}) for c in made.cells]
    figure = shown_of(Results(study=made.study, cells=tuple(bare)), name)
    assert figure.missing and not figure.panels and not figure.records


@pytest.mark.slow
def test_a_report_of_one_seed_is_written(made, tmp_path):
    some = only(made, seed="0", data="emoji")
    write(some, claims.find(some), tmp_path, {}, read=kit.read)
    page = (tmp_path / "report.html").read_text()
    assert Page(page).faults == []
    assert "0 of" not in page and "40 of 80" not in page
    assert "8 of 80" in page
    stored = json.loads((tmp_path / "figures" / "gains.json").read_text())
    assert stored["records"][0]["gain low"] is None
    assert any("fashion" in line for line in stored["missing"])


def test_figures_that_no_part_names_come_last(made):
    study = kit.study(report=[])
    report = content.Report(
        results=Results(study=study, cells=()), claims=[], figures={}, provenance={}
    )
    assert [(s.title, s.figures) for s in report.sections()] == [
        ("Further figures", list(kit.FIGURES))
    ]


# -- cost ------------------------------------------------------------------------------------------


def test_both_sides_of_every_comparison_are_counted(made):
    rows = cost.table(made)
    row = next(r for r in rows if r["comparison"] == "ensemble against single")
    assert row["training images"] == [100_000, 100_000]
    assert row["parameters stored"] == [115_652, 57_826]
    assert row["equal"]
    assert len({(r["comparison"], r["at"]) for r in rows}) == len(rows)


def test_unequal_images_are_marked(made):
    from dataclasses import replace

    cells = [
        replace(c, groups={**c.groups, "single": replace(c.groups["single"], images=7)})
        for c in made.cells
    ]
    rows = cost.table(Results(study=made.study, cells=tuple(cells)))
    assert not any(row["equal"] for row in rows)


# -- numbers and drawings --------------------------------------------------------------------------


def test_numbers_as_text_and_as_json():
    assert shown.rounded({"a": (1.23456789, float("nan"), 3)}) == {"a": [1.23457, None, 3]}
    assert shown.shown_number(0.3) == "0.3000"
    assert shown.shown_number(-0.0021, "gain") == "−0.0021"
    assert shown.shown_number(57826) == "57,826"
    assert axes.compact(2_400_000) == "2.4 M"


def test_tick_labels_keep_their_digits():
    panel = theme.Panel(
        title="a < b", describes='says "so"', draw=lambda a, c: a.plot([0.00125, 0.00375], [1, 2])
    )
    root = ElementTree.fromstring(theme.svg(panel, "x"))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b" in texts and "0.0020" in texts
    assert root.get("aria-label") == 'says "so"'


def test_png_has_no_sentinels(folder):
    from PIL import Image

    with Image.open(folder / "figures" / "gains-1.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert picture.size[0] == theme.POINTS * 2
    assert (pixels[0] == 255).all()
    assert not ((pixels[:, 0] == 1) & (pixels[:, 1] == 1)).any()
