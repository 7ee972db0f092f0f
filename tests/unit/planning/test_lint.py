"""Each check finds its mistake, and nothing in a sound spec."""

import json

import pytest
from planning_kit import SPECS, edited, planned
from typer.testing import CliRunner

from pipelines.cli.verbs import app
from pipelines.dag import plan
from pipelines.executor.commit import commit
from pipelines.planning import lint, lint_stage
from pipelines.runs.context import Result
from pipelines.store.artifacts import Store
from pipelines.training.build import FINAL_DRAWS

GPUS = {"a": {"gpu": "A100", "count": 8}}
BASE, SR = "stages__base__", "stages__sr32__"
COSINE = {f"{BASE}training__schedule": "cosine"}
GROWING = {"budget": 512, "images": 128}
NO_TREE = {f"{BASE}experts": {"E0_0": {"images": 256}}, f"{BASE}ensemble": []}

MISTAKES = {
    "no checkpoint": ({f"{BASE}cadence__checkpoint_images": 512}, "base", "cadence.checkpoint", 32),
    "warm-up": ({f"{BASE}training__warmup_images": 200}, "base", "training.warmup_images", 64),
    "warm-up of one": (
        {f"{BASE}experts__E1_0": {"images": 128, "warmup_images": 144}},
        "base",
        "stages.base.experts.E1_0.warmup_images",
        "E1_0 would end before the warm-up does",
    ),
    "warm-up of what a single model adds": (
        {**COSINE, f"{BASE}single": {"images": 512, "warmup_images": 300}},
        "base",
        "stages.base.single.warmup_images",
        "single would end",
    ),
    "warm-up of what grows": (
        {f"{BASE}adaptive": GROWING | {"warmup_images": 144}} | NO_TREE,
        "base",
        "stages.base.adaptive.warmup_images",
        64,
    ),
    "warm-up without effect": (
        {f"{BASE}single": {"images": 512, "warmup_images": 64}},
        "base",
        "stages.base.single.warmup_images",
        "continues from the root",
    ),
    "warm-up to the end": (
        {f"{SR}training__schedule": "linear", f"{SR}training__warmup_images": 128},
        "sr32",
        "training.warmup_images",
        "E0_0 would end before the learning rate falls",
    ),
    "late decay": (
        {f"{SR}training__schedule": "inverse_sqrt", f"{SR}training__decay_images": 128},
        "sr32",
        "training.decay_images",
        "write at most 64",
    ),
    "decay without effect": (
        {**COSINE, f"{BASE}training__decay_images": 64},
        "base",
        "training.decay_images",
        "has no effect without `stages.base.training.schedule: inverse_sqrt`",
    ),
    "decay of one without effect": (
        {f"{BASE}experts__E1_0": {"images": 128, "decay_images": 64}},
        "base",
        "stages.base.experts.E1_0.decay_images",
        "stages.base.experts.E1_0.schedule: inverse_sqrt",
    ),
    "late decay of some": (
        {f"{BASE}training__schedule": "inverse_sqrt", f"{BASE}training__decay_images": 128},
        "base",
        "training.decay_images",
        "E1_1, E1_0 would end",
    ),
    "average": ({f"{SR}training__ema_halflife_images": 200}, "sr32", "ema_halflife_images", 32),
    "snapshot": ({f"{BASE}training__snapshot_images": 200}, "base", "snapshot_images", 16),
    "rough average": (
        {f"{BASE}training__snapshot_images": 64, f"{BASE}sampling__ema_length": 0.2},
        "base",
        "stages.base.sampling.ema_length",
        "with an error of 45%; write `stages.base.training.snapshot_images: 16`",
    ),
    "average that no snapshots make up": (
        {f"{BASE}training__snapshot_images": 16, f"{BASE}sampling__ema_length": 0.01},
        "base",
        "stages.base.sampling.ema_length",
        "write 0.01 into `stages.base.training.snapshot_lengths`",
    ),
    "uneven workers": (
        {f"{BASE}workers__count": 3, f"{BASE}workers__keep_warm": False, "cpus": 3},
        "base",
        "workers.count",
        "divides",
    ),
    "uneven micro-batch": ({f"{BASE}workers__micro_batch": 3}, "base", "micro_batch", "divides"),
    "idle": (
        {f"{BASE}experts__E2_0": {"images": 128}},
        "train/base/E2_0",
        "experts",
        "remove",
    ),
    "residual": ({f"{SR}network__residual": True}, "sr32", "sigma_data", "sigma_data: 0.15"),
    "clean": ({f"{SR}degrade__probability": 0.0}, "sr32", "degrade", "probability: 0.5"),
    "clean in all": (
        {
            f"{SR}degrade": {
                "blur_sigma": 0,
                "downscale": 1,
                "gaussian_noise": 0,
                "poisson_noise": 0,
            }
        },
        "sr32",
        "degrade",
        "probability: 0.5",
    ),
    "one step": ({f"{BASE}sampling__steps": 1}, "base", "sampling.steps", "steps: 10"),
    "many steps": ({f"{BASE}sampling__steps": 300}, "base", "sampling.steps", "steps: 50"),
    "few draws": ({f"{BASE}cadence__validate_draws": 16}, "base", "validate_draws", "256"),
    "many epochs": ({f"{BASE}single__images": 6416}, "base", "experts", "100 times"),
    "unused token_dim": (
        {f"{BASE}network": {"preset": "smoke", "cross_attention": [], "token_dim": 8}},
        "base",
        "network.token_dim",
        "network.cross_attention",
    ),
    "long evaluation": (
        {"cluster": {}, "evaluate__captions": 10**8},
        "evaluate/base/root",
        "evaluate.captions",
        "lower",
    ),
    "long evaluation without a GPU": (
        {"evaluate__captions": 10**8, "data__validation__rows": 10**8},
        "evaluate/base/root",
        "evaluate.captions",
        "1 CPU about",
    ),
    "long losses": (
        {"cluster": {}, "evaluate__losses": {"draws": 10**9}},
        "evaluate/base/root",
        "evaluate.losses.draws",
        "`gpus: 1` and `evaluate.gpus: 1` on a machine with a GPU, or lower",
    ),
    "long training": (
        {f"{SR}experts__E0_0__images": 10**9, "data__train__rows": 10**9},
        "sr32",
        "stages.sr32.workers.gpus",
        "days on 2 CPUs",
    ),
    "captions without pairs": (
        {"evaluate__captions": 1000, "data__validation__rows": 12},
        "evaluate",
        "evaluate.captions",
        "evaluate.captions: 12",
    ),
    "a folder": (
        {"cluster__groups": {"a": {"gpu": "A100", "count": 16}}},
        "storage",
        "storage",
        "2 machines",
    ),
    "too few CPUs": (
        {
            "cluster__groups": {**GPUS, "b": GPUS["a"]},
            "cluster__stages": {"base": "a", "sr32": "b"},
            f"{BASE}workers": {"count": 2, "gpus": 1},
            f"{SR}workers": {"count": 2, "gpus": 1},
            "storage": "s3://nowhere/at-all",
            "gpus": 8,
        },
        "cluster",
        "cpus",
        "cpus: 4",
    ),
    "too few GPUs": (
        {
            "cluster__groups": {**GPUS, "b": GPUS["a"]},
            "cluster__stages": {"base": "a", "sr32": "b"},
            f"{BASE}workers": {"gpus": 2},
            f"{SR}workers": {"gpus": 3},
            "storage": "s3://nowhere/at-all",
            "gpus": 3,
        },
        "cluster",
        "gpus",
        "gpus: 5",
    ),
}

ERRORS = {
    "no group": (
        {"cluster": {}, f"{BASE}workers__gpus": 1, "gpus": 1},
        "train/base/E0_0",
        "cluster.stages.base",
        "no group is named for base",
    ),
    "no group is big enough": (
        {"cluster__groups": GPUS, f"{BASE}workers__gpus": 9, "gpus": 9},
        "train/base/E0_0",
        "stages.base.workers.count",
        "group a has 8",
    ),
    "average without snapshots": (
        {f"{BASE}sampling__ema_length": 0.1},
        "base",
        "stages.base.sampling.ema_length",
        "write `stages.base.training.snapshot_images: 16`, or remove it",
    ),
    "many draws": ({f"{BASE}cadence__validate_draws": 513}, "base", "validate_draws", 512),
    "attention": ({f"{SR}crop": 8}, "sr32", "sr32.crop", "smoke-sr is made for 16"),
    "attention of one's own": (
        {f"{BASE}network__cross_attention": [4]},
        "base",
        "stages.base.network.cross_attention",
        "[16, 8]",
    ),
    "attention of levels of one's own": (
        {f"{BASE}network__channel_mult": [1]},
        "base",
        "stages.base.network.self_attention",
        "[16]",
    ),
    "levels": ({f"{BASE}network__channel_mult": [1] * 6}, "base", "base.resolution", "32 divides"),
    "blocks": ({f"{BASE}network__blocks": [1, 2, 3]}, "base", "network.blocks", "each of 2"),
    "group norm": ({f"{BASE}network__channels": 18}, "base", "network.channels", "write 20"),
    "heads": ({f"{BASE}network__head_channels": 3}, "base", "network.head_channels", "write 2"),
    "recompute": (
        {f"{BASE}workers__activation_checkpointing": [2]},
        "base",
        "workers.activation_checkpointing",
        "0, 1",
    ),
    "pictures smaller than a stage": (
        {
            "data__train": {"make": "fashion-mnist", "rows": 64, "shards": 4},
            f"{SR}resolution": 64,
        },
        "sr32",
        "stages.sr32.resolution",
        "fashion-mnist are 32×32",
    ),
}


def check(spec):
    return lint.check(spec, planned(spec))


def test_the_specs_that_come_with_it_have_no_error():
    for name in ("smoke", "demo", "adaptive", "ediffi-d"):
        assert [f for f in check(edited(name)) if f.is_error] == [], name


def test_none_of_them_is_said_to_train_too_long():
    for name in ("smoke", "demo", "adaptive", "ediffi-d"):
        assert [f for f in check(edited(name)) if "training takes" in f.text] == [], name


def test_the_smallest_pipeline_is_sound():
    assert check(edited()) == []


@pytest.mark.parametrize(("changes", "node", "key", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_warning_names_node_key_and_remedy(changes, node, key, words):
    [found] = [f for f in check(edited(**changes)) if f.node == node and key in f.key]
    assert found.level == "warning"
    assert str(words) in found.text
    assert found.key.rpartition(".")[2] in found.text
    assert "\n" not in str(found)


@pytest.mark.parametrize(("changes", "node", "key", "words"), ERRORS.values(), ids=ERRORS)
def test_a_spec_that_cannot_run_is_refused(changes, node, key, words):
    found = check(edited(**changes))
    [error] = [f for f in found if f.is_error]
    assert (error.node, key in error.key, str(words) in error.text) == (node, True, True)
    assert found[0] == error  # errors come first
    with pytest.raises(ValueError, match=node):
        lint.raise_errors(found)


def test_short_experts_beside_one_that_saves_need_no_checkpoint():
    spec = edited(**{f"{BASE}cadence__checkpoint_images": 256})  # single saves one, at half
    assert not [f for f in check(spec) if "checkpoint" in f.key]


def test_warnings_refuse_nothing():
    found = check(edited(**{f"{BASE}sampling__steps": 1}))
    assert found and lint.raise_errors(found) is None


def test_finished_nodes_are_not_checked(tmp_path):
    store, spec = Store.at(str(tmp_path)), edited(**{f"{BASE}cadence__checkpoint_images": 512})
    manifests = {}
    for verdict in plan.make(spec, store, {}).verdicts.values():
        manifests[verdict.node.id] = commit(store, verdict, Result(files=[]), manifests, 1.0)
    assert check(spec) and lint.check(spec, plan.make(spec, store, {})) == []


def test_the_limit_of_draws_is_the_workers():
    assert lint_stage.FINAL_DRAWS == FINAL_DRAWS


def test_the_command_prints_the_plan_and_refuses(tmp_path):
    spec = edited(**{f"{BASE}cadence__validate_draws": 513, f"{BASE}sampling__steps": 1})
    (tmp_path / "bad.yaml").write_text(json.dumps(spec.model_dump(exclude_unset=True)))
    found = CliRunner().invoke(app, ["plan", str(tmp_path / "bad.yaml"), "--assume"])
    assert isinstance(found.exception, ValueError) and "`stages.base.cadence" in str(
        found.exception
    )
    assert (
        "nodes" in found.output and "warning: base: one sampling step gives a blur" in found.output
    )
    assert "error" not in found.output  # it is the command's last line, on stderr


def test_a_sound_plan_ends_with_its_sum():
    found = CliRunner().invoke(app, ["plan", str(SPECS / "smoke.yaml"), "--assume"])
    assert found.output.endswith("0 reused; 896 images to train\n")
