"""The plan alone: what changes which fingerprints, in what order, and why. No Ray, no files."""

import pytest
import yaml
from kit import SPECS

from pipelines.dag import plan, sources
from pipelines.executor.commit import commit
from pipelines.reports import plan as plan_view
from pipelines.runs.context import Result
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store

DEMO = yaml.safe_load((SPECS / "demo.yaml").read_text())
TRAINED = {"train", "adopt", "evaluate", "compare", "promote"}
AFTER_E1_1 = {
    "train/base/E1_1",
    "train/base/E2_3",
    "adopt/base",
    "evaluate/base/ensemble",
    "compare/base",
    "evaluate/sr32/ensemble",
    "evaluate/sr64/ensemble",
    "promote/emoji-scenes",
}


def edited(**changes):
    """The demo's spec with ``a__b=value`` put at a.b."""
    raw = yaml.safe_load(yaml.safe_dump(DEMO))
    for at, value in changes.items():
        *path, key = at.split("__")
        place = raw
        for part in path:
            place = place.setdefault(part, {})
        place[key] = value
    return Spec.model_validate(raw)


def made(store, **changes):
    spec = edited(**changes)
    return plan.make(spec, store, sources.identify_all(spec))


@pytest.fixture
def store(tmp_path):
    return Store.at(str(tmp_path))


@pytest.fixture
def done(store):
    """A store in which every node of the demo is done (with results of no size)."""
    manifests = {}
    for verdict in made(store).verdicts.values():
        manifests[verdict.node.id] = commit(store, verdict, Result(files=[]), manifests, 0.0)
    return store


def changed(store, **changes):
    before, after = made(store).verdicts, made(store, **changes).verdicts
    assert before.keys() == after.keys()
    return {i for i in before if before[i].fingerprint != after[i].fingerprint}


def test_one_experts_setting_reruns_it_and_what_follows(done):
    """Nothing else runs again, and the plan says which setting did it."""
    verdicts = made(done, stages__base__experts__E1_1__images=3232).verdicts
    assert {i for i, v in verdicts.items() if not v.cached} == AFTER_E1_1
    assert "images: 640 → 3232" in verdicts["train/base/E1_1"].why
    assert "input train/base/E1_1 changed" in verdicts["train/base/E2_3"].why
    assert "input adopt/base changed" in verdicts["evaluate/base/ensemble"].why


def test_an_unchanged_spec_runs_nothing(done):
    verdicts = made(done).verdicts.values()
    assert all(v.cached and "unchanged" in v.why for v in verdicts)


def test_a_first_plan_runs_everything(store):
    verdicts = made(store).verdicts.values()
    assert not any(v.cached for v in verdicts)
    assert {v.why for v in verdicts} == {"never done here"}


def test_a_lost_file_reruns_its_node_alone(done, tmp_path):
    """A manifest does not stand in for files that are gone."""
    verdict = made(done).verdicts["train/base/E1_0"]
    done.write(f"{verdict.folder}/raw.safetensors", b"weights")
    manifests = {i: dict(v.manifest) for i, v in made(done).verdicts.items()}
    commit(done, verdict, Result(files=["raw.safetensors"]), manifests, 0.0)
    assert made(done).verdicts["train/base/E1_0"].cached
    (tmp_path / verdict.folder / "raw.safetensors").unlink()
    after = made(done).verdicts
    assert {i for i, v in after.items() if not v.cached} == {"train/base/E1_0"}
    assert after["train/base/E1_0"].why == "files lost"


def test_results_of_an_earlier_format_are_made_again_and_the_plan_says_so(store, monkeypatch):
    """As those from when biases decayed too; what they were made of is reused."""
    manifests = {}
    with monkeypatch.context() as earlier:
        earlier.setitem(plan.FORMATS, "train", plan.FORMATS["train"] - 1)
        for verdict in made(store).verdicts.values():
            manifests[verdict.node.id] = commit(store, verdict, Result(files=[]), manifests, 0.0)
    verdicts = made(store).verdicts
    assert {v.node.kind for v in verdicts.values() if v.cached} == {
        "data",
        "encoders",
        "embed",
        "metric",
    }
    assert verdicts["train/base/E0_0"].why == "format of its result changed"
    assert "train/base/E0_0 changed" in verdicts["train/base/E1_1"].why


@pytest.mark.parametrize(
    "changes",
    [
        {"cpus": 1},
        {"storage": "elsewhere"},
        {"tracking": "http://127.0.0.1:5000"},
        {"stages__base__experts__E0_0__cpus": 1},
        {"stages__base__cadence__checkpoint_images": 128},
        {"stages__base__cadence__validate_draws": 64},
        {"evaluate__batch": 8},
    ],
    ids=lambda c: next(iter(c)),
)
def test_how_a_run_is_done_changes_no_fingerprint(store, changes):
    assert changed(store, **changes) == set()


@pytest.mark.parametrize(
    ("changes", "touched"),
    [
        ({"name": "other"}, None),
        ({"seed": 8}, {"data", "encoders", "embed", "metric", *TRAINED}),
        ({"encoders__clip_images": 256}, {"encoders", "embed", *TRAINED}),
        ({"evaluate__captions": 3}, {"evaluate", "compare", "promote"}),
        ({"stages__base__sampling__steps": 3}, {"evaluate", "compare", "promote"}),
    ],
    ids=lambda c: next(iter(c)) if isinstance(c, dict) else "",
)
def test_what_determines_a_result_changes_its_fingerprint(store, changes, touched):
    """Every node of the kinds named, and none of another kind."""
    if touched is None:  # a pipeline's name is in the id of its promote node alone
        ids = made(store).verdicts.keys() ^ made(store, **changes).verdicts.keys()
        assert ids == {"promote/emoji-scenes", "promote/other"}
        return
    kinds = {v.node.id for v in made(store).verdicts.values() if v.node.kind in touched}
    assert changed(store, **changes) == kinds


def test_a_setting_of_one_stage_trains_that_stage_alone(store):
    """Base and super-resolution learn apart; what they draw together is measured again."""
    for stage in ("base", "sr32", "sr64"):
        touched = changed(store, **{f"stages__{stage}__training__learning_rate": 3e-3})
        trained = {i for i in touched if i.startswith("train/")}
        assert trained == {i for i in made(store).verdicts if i.startswith(f"train/{stage}/")}
        assert {"evaluate/sr64/ensemble", "promote/emoji-scenes"} <= touched
        assert ("evaluate/base/ensemble" in touched) == (stage == "base")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"stages__sr32__resolution": 24}, "whole multiple"),
        ({"stages__sr32__network__preset": "demo"}, "demo-sr"),
        ({"stages__base__network__preset": "demo-sr"}, "those that are: base64"),
        ({"stages__sr64__crop": 33}, "multiple of 2"),
        ({"stages__base__crop": 8}, "super-resolution"),
    ],
    ids=lambda c: next(iter(c)) if isinstance(c, dict) else "",
)
def test_a_cascade_that_cannot_be(changes, word):
    with pytest.raises(ValueError, match=word):
        edited(**changes)


def test_encoders_in_a_folder_are_what_they_hold(store, tmp_path):
    """A moved folder changes no fingerprint, another weight in it all that read it."""

    def fingerprints(folder):
        raw = yaml.safe_load(yaml.safe_dump(DEMO))
        raw["encoders"] = {"t5": str(folder), "clip": "ViT-L-14"}
        spec = Spec.model_validate(raw)
        verdicts = plan.make(spec, store, sources.identify_all(spec)).verdicts
        return {i: v.fingerprint for i, v in verdicts.items()}

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.safetensors").write_bytes(b"weights")
    before = fingerprints(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert fingerprints(tmp_path / "there") == before
    (tmp_path / "there" / "model.safetensors").write_bytes(b"others!")
    after = fingerprints(tmp_path / "there")
    same = {i for i in before if before[i] == after[i]}
    assert same == {"data/train", "data/validation", "metric/emoji-scenes"}
    assert fingerprints("google/t5-v1_1-xxl")["embed/train"] != before["embed/train"]


def test_validation_data_is_watched_and_trains_nothing(store):
    touched = changed(store, data__validation__rows=400)
    assert not {i for i in touched if i.startswith(("train/", "encoders/", "data/train"))}
    assert {"data/validation", "embed/validation", "evaluate/base/root"} <= touched


def test_nodes_come_after_what_they_need(store):
    seen = set()
    for verdict in made(store).verdicts.values():
        assert set(verdict.node.dependencies) <= seen, verdict.node.id
        seen.add(verdict.node.id)
    assert len(seen) == 26


def test_the_plan_shows_every_interval(store):
    """As numbers for programs, in words for people; together they cover (0, ∞) once."""
    shown = made(store)
    nodes = {n["id"]: n for n in plan_view.data(shown)["nodes"]}
    pieces = sorted(
        (nodes[f"train/base/{e}"]["sigma"] for e in ("E2_3", "M_C", "E1_0")),
        key=lambda s: s["sigma_lo"],
    )
    assert pieces[0]["sigma_lo"] == 0 and pieces[-1]["sigma_hi"] is None
    assert pieces[0]["sigma_hi"] == pieces[1]["sigma_lo"]
    assert pieces[1]["sigma_hi"] == pieces[2]["sigma_lo"]
    lines = plan_view.text(shown).splitlines()
    for expert, word in {"E0_0": "all σ", "E2_3": "σ ≥", "M_C": "≤ σ <", "E1_0": "σ <"}.items():
        [line] = [x for x in lines if x.startswith("run ") and f"train/base/{expert}" in x.split()]
        assert word in line
    assert "26 to run, 0 reused" in lines[-1]
