"""A study's cells are ordinary pipelines, and its plan makes what they share once."""

import json

import pytest
import yaml
from paths import ROOT

from pipelines.dag import plan, sources
from pipelines.dag.merged import merge
from pipelines.dag.node import path_of
from pipelines.spec.loading import load, load_study, merged
from pipelines.store.artifacts import Store
from pipelines.studies import planning
from pipelines.studies.cells import open_study, write_cells
from pipelines.studies.status import status
from pipelines.studies.status import text as status_text

STUDY = {
    "study": "small",
    "title": "A small study",
    "base": "base.yaml",
    "axes": {
        "rate": {"slow": {}, "fast": {"stages": {"base": {"training": {"learning_rate": 0.002}}}}},
        "arm": {
            "two": {},
            "one": {
                "stages": {"base": {"experts": {"E1_1": None, "E1_0": None}, "ensemble": ["E0_0"]}}
            },
        },
        "seed": [3, 4],
    },
    "experiments": {
        "arms": {"asks": "Which arm?", "cells": {"arm": "all", "seed": "all"}},
        "rates": {"asks": "Which rate?", "cells": {"rate": "all", "seed": [3]}},
    },
}


@pytest.fixture
def write(tmp_path):
    base = yaml.safe_load((ROOT / "pipelines/specs/smoke.yaml").read_text())
    del base["stages"]["sr32"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))

    def make(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(merged(STUDY, changes), sort_keys=False))
        return path

    return make


@pytest.fixture
def opened(write, tmp_path):
    return open_study(write(), storage=str(tmp_path / "store"))


def plan_of(opened):
    store = Store.at(opened.base.storage)
    return store, planning.make(opened, store, planning.sources_of(opened))


def test_each_combination_is_one_cell_however_many_experiments_name_it(opened):
    assert [c.name for c in opened.cells] == [
        "small-s3",
        "small-one-s3",
        "small-fast-s3",
        "small-s4",
        "small-one-s4",
    ]
    assert opened.cells[0].experiments == ("arms", "rates")
    assert dict(opened.cells[2].at) == {"rate": "fast", "arm": "two", "seed": "3"}
    assert opened.cells[2].spec.stages["base"].training.learning_rate == 0.002
    assert opened.cells[4].spec.seed == 4
    assert list(opened.cells[1].spec.stages["base"].experts) == ["E0_0"]


def test_a_merged_plan_has_each_node_once_and_keeps_fingerprints_and_folders(opened):
    _, made = plan_of(opened)
    folders = [v.folder for v in made.verdicts.values()]
    assert len(folders) == len(set(folders))
    alone = {v.folder: v for p in made.cells.values() for v in p.verdicts.values()}
    deciding = {f for f, v in alone.items() if v.node.kind in ("compare", "promote", "gate")}
    assert set(folders) == alone.keys() - deciding and deciding
    for verdict in made.verdicts.values():
        assert verdict.fingerprint == alone[verdict.folder].fingerprint
        assert path_of(verdict.node.id) == alone[verdict.folder].node.id
    roots = [i for i in made.verdicts if path_of(i) == "train/base/E0_0"]
    assert roots == [f"{c}:train/base/E0_0" for c in ("small-s3", "small-fast-s3", "small-s4")]


def test_every_node_comes_after_what_it_needs(opened):
    _, made = plan_of(opened)
    seen = set()
    for i, verdict in made.verdicts.items():
        assert set(verdict.node.dependencies) <= seen
        seen.add(i)
    lengths = plan.path_lengths(made)
    for i, verdict in made.verdicts.items():
        assert all(lengths[n] > lengths[i] for n in verdict.node.dependencies)


def test_a_node_keeps_its_cell_when_an_earlier_cell_grows_into_it(opened):
    _, made = plan_of(opened)
    first, second = list(made.cells)[:2]
    homes = {}
    before = merge(made.spec, {second: made.cells[second]}, stands_in=homes)
    after = merge(
        made.spec, {first: made.cells[first], second: made.cells[second]}, stands_in=homes
    )
    assert before.verdicts.keys() <= after.verdicts.keys()


def test_a_cell_as_yaml_is_the_same_pipeline(opened, tmp_path):
    store, made = plan_of(opened)
    for path in write_cells(opened, tmp_path / "cells"):
        spec = load(path)
        again = plan.make(spec, store, sources.identify_all(spec))
        assert {i: v.fingerprint for i, v in again.verdicts.items()} == {
            i: v.fingerprint for i, v in made.cells[path.stem].verdicts.items()
        }


def test_the_plan_says_what_it_will_take(opened):
    _, made = plan_of(opened)
    said = planning.text(opened, made)
    assert said.startswith("study small: 5 cells in 2 experiments")
    assert "arms: 4 cells; Which arm?" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line[:1].isalpha()}
    # Three roots and single models of 256 and 512 images, and two children each of 128.
    trained = 3 * (256 + 256 + 128 + 128)
    assert rows["train"][1:] == ["12", "0", "12", f"{trained:,}", "?"]
    assert json.dumps(planning.data(opened, made))


def test_the_time_left_follows_from_nodes_that_are_done(opened):
    store, made = plan_of(opened)
    trainings = [v for v in made.verdicts.values() if v.node.kind == "train"]
    root = next(v for v in trainings if v.node.name == "base/E0_0")
    store.commit(root.folder, [], {"seconds": 64.0, "metrics": {}, "info": {}, "settings": {}})
    _, made = plan_of(opened)
    work = {of.kind: of for of in planning.work_of(made)}
    # 256 images took 64 s, so the 2,048 that are left take 512 s.
    assert work["train"].seconds == pytest.approx(512)
    assert work["evaluate"].seconds is None
    assert "0 of 5 cells are finished" in status_text(status(opened, store, made))


def test_a_study_like_another_is_that_study_with_changes(write, tmp_path):
    write()
    path = tmp_path / "other.yaml"
    path.write_text("like: study.yaml\nstudy: other\naxes: {rate: {fast: null}, seed: [9]}\n")
    path.write_text(path.read_text() + "experiments: {rates: {cells: {seed: all}}}\n")
    assert [c.name for c in open_study(path).cells] == ["other-s9", "other-one-s9"]
    path.write_text("like: other.yaml\n")
    with pytest.raises(ValueError, match=r"is like itself; remove a `like:`"):
        open_study(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "none.yaml"}, "there is no spec at"),
        ({"stage": "sr64"}, "`stage: sr64` is none of"),
        ({"experiments": {"arms": {"cells": {"arms": "all"}}}}, "there is no axis 'arms'"),
        ({"experiments": {"arms": {"cells": {"arm": ["tow"]}}}}, "did you mean `two`?"),
        ({"axes": {"seed": None}}, "`axes:` needs `seed:`"),
        (
            {"axes": {"rate": {"fast": {"stages": {"base": {"training": {"lr": 1.0}}}}}}},
            "cell small-fast-s3: unknown key `stages.base.training.lr`",
        ),
        (
            {"claims": {"c": {"says": "x", "mine": {}, "theirs": {"at": {"arm": "three"}}}}},
            "`claims.c`: axis arm has no value 'three'",
        ),
        ({"report": [{"title": "t", "figures": ["f"]}]}, "names figure 'f'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(write, changes, words):
    with pytest.raises(ValueError) as refused:
        open_study(write(**changes))
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines/specs/studies").glob("*.yaml")))
def test_every_study_of_the_project_opens(path):
    if "study" in yaml.safe_load(path.read_text()):
        found = open_study(path)
        assert len({c.name for c in found.cells}) == len(found.cells) > 1
        assert load_study(path) == found.study
    else:
        load(path)
