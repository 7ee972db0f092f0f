"""The tree as data: experts of the ensemble, and growing stages."""

import pytest
from page_kit import Page
from tree_kit import DEMO, demo_tree

from pipelines.dag import plan, sources
from pipelines.reports import tree as tree_view
from pipelines.reports import tree_page
from pipelines.spec.loading import load
from pipelines.store.artifacts import Store


def built(path, root, manifests=None):
    loaded = load(path)
    made = plan.make(loaded, Store.at(str(root)), sources.identify_all(loaded))
    return tree_view.build(made, None, manifests or {})


def adopted(**chosen):
    return {"adopt/base": {"info": chosen, "metrics": {}, "files": {}}}


def test_each_slot_has_its_own_expert_by_default(tmp_path):
    base = built(DEMO, tmp_path)["stages"]["base"]
    assert [(s["seat"], s["expert"]) for s in base["ensemble"]] == [
        ("E2_3", "E2_3"),
        ("M_C", "M_C"),
        ("E1_0", "E1_0"),
    ]
    assert {n for n, e in base["experts"].items() if e["in_ensemble"]} == {"E2_3", "M_C", "E1_0"}


def test_a_refused_experts_slot_goes_to_its_ancestor(tmp_path):
    seats = {"E2_3": "base/E1_1", "M_C": "base/M_C", "E1_0": "champion/base/E1_0"}
    refused = {"base/E2_3": "no gain", "base/E1_0": "no gain"}
    base = built(DEMO, tmp_path, adopted(seats=seats, refused=refused))["stages"]["base"]
    edge, e1_1 = base["ensemble"][0]["sigma_lo"], base["experts"]["E1_1"]
    assert edge == base["experts"]["E2_3"]["sigma_lo"] > e1_1["sigma_lo"]
    assert {n for n, e in base["experts"].items() if e["in_ensemble"]} == {"E1_1", "M_C"}
    assert base["experts"]["E2_3"]["adopted"] is False
    assert base["experts"]["E2_3"]["why"] == "no gain"
    asked = dict.fromkeys(name for _, [name] in tree_view.experts_by_step(base))
    assert list(asked) == ["E1_1", "M_C", "champion's E1_0"]


def test_an_ancestor_in_two_slots_has_one_colour(tmp_path):
    seats = {"E2_3": "base/E0_0", "M_C": "base/E0_0", "E1_0": "base/E1_0"}
    tree = built(DEMO, tmp_path, adopted(seats=seats))
    page = Page(tree_page.html(tree)).root.one("section", data_stage="base")
    shares = [share.text.split() for share in page.all(class_="share")]
    assert [name for name, _ in shares] == ["E0_0", "E1_0"]
    areas = [a.style("--hue") for a in page.all("path", class_="area")]
    assert areas[0] == areas[1] != areas[2]


def test_a_tree_that_still_grows_is_shown_without_an_ensemble(tmp_path):
    tree = built(DEMO.with_name("adaptive.yaml"), tmp_path)
    [(name, stage), *_] = tree["stages"].items()
    assert stage["ensemble"] == [] == tree_view.experts_by_step(stage)
    section = Page(tree_page.html(tree)).root.one("section", data_stage=name)
    assert not list(section.all("input")) and not list(section.all(class_="share"))
    assert {"E0_0", "E1_1", "E1_0"} <= {r.attributes.get("data-expert") for r in section.all("tr")}
    assert "E0_0" in tree_view.text(tree)


@pytest.mark.parametrize("view", [tree_view.text, tree_view.markdown, tree_page.html])
def test_every_view_shows_the_labels_of_the_ensemble(view, tmp_path):
    tree = demo_tree(tmp_path)
    assert "candidate" not in view(tree)
    assert "candidate" in view(tree | {"labels": ["candidate"]})


def test_tables_show_how_many_pictures_were_measured(tmp_path):
    base = demo_tree(tmp_path)["stages"]["base"]
    first = [row[0] for row in tree_view.evaluation_table(base["evaluations"])]
    assert first == ["", "ensemble, 128 pictures", "single model, same budget", "real pictures"]
    table = tree_view.comparison_table(base["compared"])
    assert table == [
        ["ensemble against single model", "gain", "95 %", "pictures", ""],
        ["concepts", "-0.0020", "[-0.0300, +0.0260]", "120", "no difference shown"],
        ["val loss", "-0.0080", "[-0.0090, -0.0070]", "–", "worse"],
        ["val loss, E2_3", "-0.0200", "[-0.0300, -0.0100]", "1,000", "worse"],
    ]


def test_measures_of_sets_have_a_table_of_their_own():
    fid = {"fid/inception": 6.95, "fid/inception_ci95": 0.2, "fid/inception_low": 6.75}
    fid |= {"fid/inception_high": 7.15, "fid/inception_pictures": 30000.0}
    recall = {"recall/clip": 0.5, "recall/clip_pictures": 256.0}
    evaluations = {"single": fid, "ensemble": fid | recall | {"val_loss": 0.3}}
    assert tree_view.set_table(evaluations) == [
        ["", "ensemble", "single model, same budget"],
        ["recall ↑ clip, 256 pictures", "0.500", "–"],
        ["FID ↓ inception, 30,000 pictures", "6.950 ±.200", "6.950 ±.200"],
    ]
    assert tree_view.set_table({"ensemble": {"val_loss": 0.3}}) == []


def test_every_measure_of_sets_has_a_heading():
    import torch

    from ediffi_core.features import Features
    from ediffi_core.measures import MEASURES, measure

    three = [Features.of(torch.rand(24, 3)) for _ in range(3)]
    found = measure(MEASURES, *three[:2], training=three[2], kid_subset_size=8, kid_subsets=2)
    assert set(found) == set(tree_view.SET_MEASURES)


@pytest.mark.parametrize(
    ("pictures", "shown"), [(3, "0.333 of 3"), (10, "0.333 ±.217"), (None, "0.333 ±.217")]
)
def test_a_share_over_few_pictures_shows_their_number_instead_of_an_interval(pictures, shown):
    metrics = {"concepts": 1 / 3, "concepts_ci95": 0.217}
    if pictures:
        metrics["concepts_pictures"] = pictures
    assert tree_view.metric_text(metrics, "concepts") == shown
