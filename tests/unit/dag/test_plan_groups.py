"""What is evaluated beside an ensemble: its nodes, and what their fingerprints depend on."""

import pytest
from plan_kit import spec

from pipelines.dag import plan
from pipelines.dag.experts import combined_density
from pipelines.store.artifacts import Store

GROUPS = {
    "baselines": {
        "longer": {"images": 512, "learning_rate": 1e-4},
        "mixed": {"images": 512, "density": "experts"},
    },
    "merge": {"E1_1": 0.5, "E1_0": 0.25},
    "routings": {
        "swapped": {"E1_1": "E1_0", "E1_0": "E1_1"},
        "parent_below": {"E1_0": "E0_0"},
        "patched": {"E1_1": "merged", "E1_0": "mixed"},
    },
}


def with_groups(raw):
    raw["stages"]["base"] |= GROUPS
    raw["stages"]["base"]["experts"]["E1_0"]["images"] = 256


def made(tmp_path, change=lambda raw: None):
    return plan.make(spec(change), Store.at(str(tmp_path)), {}).verdicts


def test_each_group_is_evaluated_on_the_same_draws(tmp_path):
    found = made(tmp_path, with_groups)
    groups = {
        i.rpartition("/")[2]: v.node for i, v in found.items() if i.startswith("evaluate/base/")
    }
    assert set(groups) == {
        *("ensemble", "root", "single", "longer", "mixed", "merged"),
        *("swapped", "parent_below", "patched"),
    }
    assert all(n.settings["losses"] == groups["root"].settings["losses"] for n in groups.values())
    weights = {
        name: {role: node for role, node in groups[name].inputs.items() if role.startswith("base/")}
        for name in ("merged", "swapped", "parent_below", "patched")
    }
    assert weights == {
        "merged": {"base/merged": "merge/base"},
        "swapped": {"base/E1_0": "train/base/E1_0", "base/E1_1": "train/base/E1_1"},
        "parent_below": {"base/E0_0": "train/base/E0_0", "base/E1_1": "train/base/E1_1"},
        "patched": {"base/merged": "merge/base", "base/mixed": "train/base/mixed"},
    }
    [stage] = groups["parent_below"].settings["stages"]
    assert stage["routing"] == {"E1_1": "E1_1", "E1_0": "E0_0"}
    assert stage["experts"] == groups["ensemble"].settings["stages"][0]["experts"]


def test_a_routing_is_part_of_the_fingerprint(tmp_path):
    def other(raw):
        with_groups(raw)
        raw["stages"]["base"]["routings"] = {"swapped": {"E1_0": "E1_1"}}

    before, after = made(tmp_path, with_groups), made(tmp_path, other)
    name = "evaluate/base/swapped"
    assert before[name].fingerprint != after[name].fingerprint
    same = [i for i in after if i != name]
    assert all(before[i].fingerprint == after[i].fingerprint for i in same)


def test_groups_leave_all_other_fingerprints_as_they_were(tmp_path):
    def gradients(raw):
        with_groups(raw)
        raw["evaluate"] |= {"gradients": 4}

    def longer_expert(raw):
        raw["stages"]["base"]["experts"]["E1_0"]["images"] = 256

    plain, more = made(tmp_path, longer_expert), made(tmp_path, gradients)
    assert all(more[i].fingerprint == v.fingerprint for i, v in plain.items())
    assert {i for i in more if i not in plain} >= {"merge/base", "gradients/base/root"}


def test_a_baseline_continues_the_root(tmp_path):
    found = made(tmp_path, with_groups)
    longer, mixed, single = (
        found[f"train/base/{name}"].node for name in ("longer", "mixed", "single")
    )
    for node in (longer, mixed):
        assert node.inputs == single.inputs
        assert (node.settings["start"], node.settings["interval"]) == ("continue", [0.0, 1.0])
    assert longer.settings["training"]["learning_rate"] == 1e-4
    assert "density" not in longer.settings | single.settings
    assert mixed.settings["density"] == [[0.0, 0.5, 2 / 3], [0.5, 1.0, 1 / 3]]


@pytest.mark.parametrize(
    ("images", "ensemble", "density"),
    [
        ({"E1_1": 128, "E1_0": 128}, ["E1_1", "E1_0"], [[0.0, 1.0, 1.0]]),
        (
            {"E1_1": 256, "E2_3": 256, "E1_0": 512, "M_C": 1024},
            ["E2_3", "M_C", "E1_0"],
            # Half of E1_1's images are above 0.75, as are all of E2_3's.
            [[0.0, 0.5, 1 / 4], [0.5, 0.75, 9 / 16], [0.75, 1.0, 3 / 16]],
        ),
        ({"E1_1": 128}, ["E1_1"], [[0.5, 1.0, 1.0]]),
    ],
)
def test_experts_density_counts_each_by_its_images(images, ensemble, density):
    def change(raw):
        base = raw["stages"]["base"]
        base["experts"] = {"E0_0": {"images": 256}} | {
            name: {"images": n} for name, n in images.items()
        }
        base["ensemble"] = ["E1_1", "E1_0"] if len(images) > 1 else ["E0_0"]
        if "M_C" in images:
            base["ensemble"] = ensemble

    stage = spec(change).stages["base"]
    assert combined_density(stage) == density


def test_a_density_that_is_uniform_is_left_out(tmp_path):
    def change(raw):
        raw["stages"]["base"]["baselines"] = {"mixed": {"images": 512, "density": "experts"}}

    assert "density" not in made(tmp_path, change)["train/base/mixed"].node.settings


def test_strata_measure_all_trees_on_the_same_draws(tmp_path):
    def strata(raw):
        raw["evaluate"]["losses"] = {"strata": 8, "draws": 8192}

    def whole(raw):
        strata(raw)
        base = raw["stages"]["base"]
        base |= {"experts": {"E0_0": {"images": 256}}, "ensemble": ["E0_0"]}

    found = [made(tmp_path, change)["evaluate/base/ensemble"].node for change in (strata, whole)]
    losses = [node.settings["losses"] for node in found]
    assert losses[0] == losses[1]
    assert losses[0]["draws"] == 1024
    assert list(losses[0]["experts"].items())[::7] == [("1/8", [0.0, 0.125]), ("8/8", [0.875, 1.0])]


def test_pipelines_with_one_data_seed_share_data_encoders_and_metrics(tmp_path):
    def seeds(seed, data_seed):
        return lambda raw: raw.update({"seed": seed, "data_seed": data_seed})

    first, second, own = (
        {i: v.fingerprint for i, v in made(tmp_path, seeds(*given)).items()}
        for given in ((1, 5), (2, 5), (5, None))
    )
    shared = {i for i in first if first[i] == second[i]}
    assert shared == {
        *("data/train", "data/validation", "encoders/tiny"),
        *("embed/train", "embed/validation", "metric/emoji-scenes"),
    }
    assert all(first[i] == own[i] for i in shared)
