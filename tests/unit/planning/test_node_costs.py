"""The cost of a plan, compared with figures worked out by hand."""

from dataclasses import replace

import pytest
from planning_kit import edited, planned, raw

from ediffi_core.unet import SIZES
from pipelines.dag import plan, sources
from pipelines.executor.commit import commit
from pipelines.planning import embedding
from pipelines.planning.cost import CPU_FLOPS, Cost
from pipelines.planning.forecast import assumptions, make_forecast
from pipelines.planning.network_size import size_of
from pipelines.planning.node_costs import costs_of
from pipelines.planning.stage_networks import config_of
from pipelines.planning.training_cost import START_S
from pipelines.reports import plan as plan_view
from pipelines.runs.context import Result
from pipelines.spec.cluster import Cluster
from pipelines.store.artifacts import Store

BASE = {
    "resolution": 64,
    "network": {"preset": "base64"},
    "training": {"batch": 256, "precision": "bfloat16"},
    "workers": {"count": 4, "gpus": 2},
    "cadence": {"checkpoint_images": 2560, "milestone_images": 10240, "keep_latest": 3},
    "experts": {"E0_0": {"images": 25600}},
    "ensemble": ["E0_0"],
}
GROUPS = {"fast": {"gpu": "A100", "count": 8, "price": 2.5, "utilisation": 0.4}}
OWN = {
    "data": {s: {"path": f"s3://nowhere/{s}", "pairs": 10**6} for s in ("train", "validation")},
    "encoders": {"t5_dtype": "bfloat16"},
    "stages": {"base": BASE},
    "cpus": 4,
    "gpus": 8,
    "cluster": {"groups": GROUPS},
}


def own(**changes):
    return edited(**{**OWN, **changes})


def costs(spec):
    made = planned(spec)
    found = make_forecast(made, embedding.estimate(made, Store.at("/dev/null"), _assumed(spec)))
    return found.costs


def _assumed(spec):
    return sources.identify_all(spec, assume=True)


def test_training_is_three_passes_an_image_over_what_the_gang_does():
    cost = costs(own())["train/base/E0_0"]
    flops = 25600 * 3 * SIZES["base64"].gflops * 1e9
    assert cost.flops == pytest.approx(flops, rel=1e-3)
    seconds = START_S + flops / (8 * 312e12 * 0.4)
    assert cost.seconds == pytest.approx(seconds, rel=1e-3)
    assert (cost.group, cost.gang) == ("fast", 8)
    assert cost.gpu_hours == pytest.approx(8 * seconds / 3600, rel=1e-3)
    assert cost.money == pytest.approx(2.5 * cost.gpu_hours)
    assert cost.how.startswith("8 A100 × 312 TFLOP/s (bfloat16) × 40 % (assumed)")


def test_a_checkpoint_is_four_times_the_weights_and_averages_come_on_top():
    weights = 4 * SIZES["base64"].parameters
    cost = costs(own())["train/base/E0_0"]
    # Raw and EMA, the last state, two milestones of 25,600 images; nine checkpoints in all.
    assert cost.kept_bytes == weights * (2 + 4 + 2 * 4)
    assert cost.scratch_bytes == 4 * weights * (3 + 1)
    assert cost.written_bytes == cost.kept_bytes + (9 - 2) * 4 * weights
    spec = own(stages__base__training__snapshot_images=5120)
    more = costs(spec)["train/base/E0_0"]
    # Two lengths more a checkpoint, and two averages at each of five snapshots.
    assert more.kept_bytes == weights * (2 + 3 * 6 + 5 * 2)


def test_float32_is_counted_at_its_own_peak():
    half = costs(own())["train/base/E0_0"].seconds - START_S
    whole = costs(own(stages__base__training__precision="float32"))["train/base/E0_0"].seconds
    assert (whole - START_S) / half == pytest.approx(312 / 19.5)


def test_the_slower_encoder_sets_embedding_s_time():
    spec = own(embedding={"t5": {"actors": 1, "gpus": 1}, "clip": {"actors": 3, "gpus": 1}})
    cost = costs(spec)["embed/train"]
    clip = 1e6 * 165.47e9  # see tests/unit/planning/test_encoder_cost.py
    assert cost.seconds == pytest.approx(clip / (3 * 19.5e12 * 0.4), rel=1e-3)
    assert (cost.gang, cost.group) == (4, "fast")
    alone = own(embedding={"t5": {"actors": 1, "gpus": 0.1}, "clip": {"actors": 7, "gpus": 1}})
    t5 = 2.225e20 / 1e9 * 1e6
    assert costs(alone)["embed/train"].seconds == pytest.approx(t5 / (0.1 * 312e12 * 0.4), rel=1e-2)


def test_without_a_gpu_the_cpus_do_it():
    found = costs(edited(cluster={}))
    root = found["train/base/E0_0"]
    assert (root.group, root.gang, root.gpu_hours, root.money) == ("CPU", 1, 0, 0)
    assert root.seconds == pytest.approx(START_S + root.flops / CPU_FLOPS)
    assert found["data/train"] == found["promote/smoke"] == Cost()


def test_evaluation_draws_with_every_stage_below():
    few, more = (costs(edited(cluster={}, evaluate__captions=n)) for n in (16, 32))
    spec = edited()
    steps = spec.stages["base"].sampling.steps
    one = size_of(config_of(spec, "base"), 16).flops
    extra = more["evaluate/base/root"].flops - few["evaluate/base/root"].flops
    assert extra == pytest.approx(16 * steps * 2 * one)  # guidance evaluates twice
    more, few = more["evaluate/sr32/ensemble"].flops, few["evaluate/sr32/ensemble"].flops
    enlarged = size_of(config_of(spec, "sr32"), 32).flops * spec.stages["sr32"].sampling.steps
    pictures = 16 + 16  # and those of an untrained network: 32 at most
    assert more - few == pytest.approx(pictures * (steps * 2 * one + enlarged))


def test_evaluation_takes_a_gpu_if_it_is_given_one():
    slow = costs(own())["evaluate/base/root"]
    assert (slow.group, slow.gang) == ("CPU", 1)
    fast = costs(own(evaluate__gpus=0.5))["evaluate/base/root"]
    assert fast.flops == slow.flops
    assert fast.seconds == pytest.approx(slow.flops / (0.5 * 19.5e12 * 0.4))
    assert (fast.group, fast.gang) == ("fast", 0.5)
    assert fast.money == pytest.approx(2.5 * 0.5 * fast.seconds / 3600)


def test_workers_divide_the_time_of_an_evaluation_by_whole_chunks():
    one, four, five = (
        costs(own(evaluate__gpus=1, evaluate__captions=512, evaluate__workers=n, evaluate__cpus=c))[
            "evaluate/base/root"
        ]
        for n, c in ((1, 1), (4, 1), (3, 1))
    )
    assert one.flops == four.flops == five.flops and (one.gang, four.gang) == (1, 4)
    assert four.seconds == pytest.approx(one.seconds / 4)  # 8 chunks of 64
    assert one.seconds / 3 < five.seconds < one.seconds / 2  # two of three have 3 chunks
    assert four.money == pytest.approx(one.money)


def test_the_arithmetic_of_30000_pictures_at_1024_is_in_the_plan():
    spec = edited(
        "ediffi-d",
        evaluate__captions=30_000,
        evaluate__workers=32,
        evaluate__cpus=1,
        evaluate__gpus=1,
        evaluate__features={"inception": {"kind": "inception", "weights": "/none.pth"}},
        gpus=512,
    )
    made = planned(spec)
    work = embedding.estimate(made, Store.at("/dev/null"), _assumed(spec))
    found = make_forecast(made, work)
    how = found.costs["evaluate/sr1024/ensemble"].how
    assert how.startswith(
        "30,000 pictures in 469 chunks of 64, 15 for each of 32 workers; 32 A100 × "
    )
    assert how.endswith(
        "pictures held by a worker: 64 × (64² + 256² + 1,024²) × 15 B = 1.1 GB; "
        "all at once would be 503.2 GB; features kept: 245.8 MB"
    )
    real = found.costs["features/sr1024/inception-validation"]
    assert real.flops == pytest.approx(30_000 * 11.42e9) and real.kept_bytes == 30_000 * 2048 * 4
    assert how in [row[1] for row in assumptions(made, found)]


def test_an_unknown_kind_costs_nothing_and_is_shown():
    spec = edited(cluster={})
    made = planned(spec)
    node = plan.Node(kind="gate", name="base", settings={}, inputs={"x": "train/base/E0_0"})
    verdict = plan.Verdict(node=node, fingerprint="0" * 16, manifest=None, why="never done here")
    made = replace(made, verdicts={**made.verdicts, node.id: verdict})
    found = make_forecast(made, {})
    assert found.costs["gate/base"] == Cost()
    [line] = [x for x in plan_view.text(made, {}, found).splitlines() if "gate/base" in x]
    assert line.split() == ["run", "gate/base", "never", "done", "here"]


def test_a_tree_that_grows_may_cost_what_is_left_of_its_budget():
    base = {
        "experts": {"E0_0": {"images": 256}},
        "adaptive": {"budget": 1024, "images": 128},
        "single": None,
    }
    listed = {k: v for k, v in raw()["stages"]["base"].items() if k not in ("ensemble", *base)}
    spec = edited(cluster={}, stages={"base": {**listed, **base}})
    found = make_forecast(planned(spec), {})
    one = found.costs["train/base/E1_1"].flops
    assert found.growth["base"].flops == pytest.approx((1024 - 2 * 128) / 128 * one)
    text = plan_view.text(planned(spec), {}, found)
    assert "images to train, and up to 768 more as base grows" in text
    assert "growth of base: at most" in text


def test_a_finished_expert_says_how_fast_its_stage_is(tmp_path):
    store, spec = Store.at(str(tmp_path)), edited(cluster={})
    manifests = {}
    for verdict in plan.make(spec, store, {}).verdicts.values():
        info = {"trained_now": 128} if verdict.node.id == "train/base/E1_0" else {}
        result = Result(files=[], info=info)
        manifests[verdict.node.id] = commit(store, verdict, result, manifests, 64.0)
    changed = edited(cluster={}, stages__base__experts__E1_1__images=1280)
    found = make_forecast(plan.make(changed, store, {}), {})
    assert found.costs.keys() == {
        "train/base/E1_1",
        "adopt/base",
        "evaluate/base/ensemble",
        "compare/base",
        "evaluate/sr32/ensemble",
        "promote/smoke",
    }
    cost = found.costs["train/base/E1_1"]
    assert cost.seconds == START_S + 1280 / (128 / 64.0)
    assert cost.how == "measured on train/base/E1_0: 2.0 images/s"
    assert found.schedule.starts["train/base/E1_1"] == 0  # what is done is not waited for


def test_gpus_of_no_group_are_an_error_that_names_the_stage():
    two = {**GROUPS, "slow": {"gpu": "L4", "count": 8}}
    spec = own(cluster__groups=two)
    with pytest.raises(ValueError, match=r"E0_0 needs GPUs.*no group for base"):
        costs_of(planned(spec), spec.cluster, {})


def test_a_plan_without_a_cluster_has_no_forecast():
    assert make_forecast(planned(edited()), {}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": {"groups": {"a": {"gpu": "A1000", "count": 1}}}}, "'A1000' is unknown"),
        ({"cluster": {"stages": {"base": "b"}}}, "names group 'b'; there are none"),
        ({"cluster": {"groups": GROUPS, "stages": {"bas": "fast"}}}, "did you mean `base`"),
        ({"evaluate__cpus": 3}, "`evaluate.cpus: 3` is more than"),
    ],
)
def test_an_impossible_cluster_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        edited(**changes)


def test_a_single_group_serves_all_stages():
    one = Cluster.model_validate({"groups": GROUPS})
    assert one.group_of("base") == one.group_of("embedding") == "fast"
    two = Cluster.model_validate({"groups": {**GROUPS, "b": GROUPS["fast"]}})
    assert two.group_of("base") is None


def test_every_figure_says_what_it_is_based_on():
    spec = edited("ediffi-d")
    made = planned(spec)
    work = embedding.estimate(made, Store.at("/dev/null"), _assumed(spec))
    rows = dict(assumptions(made, make_forecast(made, work)))
    assert list(rows) == ["embedding", "base", "sr256", "sr1024", "evaluate"]
    assert rows["base"] == (
        "993,416,515 parameters, 2,072 GFLOPs an image; 256 A100 × 312 TFLOP/s (bfloat16) × 35 % "
        "(assumed): 13,490 images/s"
    )


def test_further_text_encoders_take_their_time_on_the_gpus_of_t5():
    """They run one after another while CLIP runs; the slower of the two stages counts."""
    spec = own(cluster__groups={"fast": {"gpu": "H100", "count": 8}})
    embedding = {"t5": {"actors": 2, "gpus": 1}, "clip": {"actors": 2, "gpus": 1}}
    spec = spec.model_copy(
        update={"embedding": spec.embedding.model_validate({**embedding, "utilisation": 0.5})}
    )
    made = planned(spec)
    peak = 66.9e12 * 0.5 * 2

    def seconds(**flops):
        ahead = {"embed/train": {"flops": flops, "t5_dtype": "float32", "bytes": 0}}
        return costs_of(made, spec.cluster, ahead)["embed/train"].seconds

    assert seconds(t5=peak, clip=2 * peak) == pytest.approx(2)
    assert seconds(t5=peak, clip=2 * peak, words=3 * peak, far=None) == pytest.approx(4)


def test_a_probe_costs_its_evaluations_of_the_network():
    probes = {
        "text_effect": {"levels": 10, "pictures": 6},
        "prompt_switch": {"captions": 5, "fractions": [0.0, 0.01, 0.5, 1.0]},
        "encoders": {"captions": 7},
        "guidance": {"captions": 3, "scales": [0.0, 2.0]},
        "seconds": {"pictures": 2, "repeats": 4},
    }
    spec = edited(evaluate__probes=probes)  # 4 steps with guidance; 2 text encoders, 2 experts
    found = costs_of(planned(spec), Cluster(), {})
    one = size_of(config_of(spec, "base")).flops
    calls = {
        "text_effect": 10 * 6 * 2,
        "prompt_switch": 5 * 3 * 8,
        "encoders": 7 * 4 * 8,
        "guidance": 3 * (4 + 8),
        "seconds": 2 * 5 * (2 + 8),
    }
    for name, count in calls.items():
        cost = found[f"probe/base/ensemble/{name}"]
        assert cost.flops == pytest.approx(count * one)
        assert cost.seconds == pytest.approx(count * one / CPU_FLOPS)
