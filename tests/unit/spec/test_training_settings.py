"""What cannot be trained is said before anything runs."""

import pytest
import yaml
from pydantic import ValidationError
from spec_kit import SPEC

from pipelines.spec.loading import explain
from pipelines.spec.pipeline import Spec
from pipelines.spec.training import Overrides, Training


def spec(cpus=2, experts=None, **base):
    raw = yaml.safe_load(SPEC) | {"cpus": cpus}
    raw["stages"]["base"] |= base
    raw["stages"]["base"]["experts"] |= experts or {}
    return Spec.model_validate(raw)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"workers": {"count": 3}}, "3 workers need 3 CPUs at once, `cpus:` allows 2"),
        ({"workers": {"count": 32}, "cpus": 64}, "32 workers cannot share a batch of 16"),
        ({"workers": {"parallel": "fsdp"}}, "splits over workers; set `count:` > 1"),
        ({"workers": {"micro_batch": 0}}, "`micro_batch:` must be at least 1 or auto"),
        (
            {"workers": {"count": 2, "parallel": "fsdp", "micro_batch": "auto"}},
            "`micro_batch: auto` is for `parallel: ddp`",
        ),
        ({"training": {"batch": 16, "snapshot_lengths": [0.4]}}, "length must lie in"),
        ({"training": {"batch": 16, "bad_loss": {"spike_factor": 0.5}}}, "greater than 1"),
        (
            {"experts": {"E1_1": {"images": 64, "optimizer": "carried"}}},
            "E1_1: `optimizer: carried` .* set `start: raw` on a child",
        ),
        ({"training": {"batch": 16, "schedule": "step"}}, "'cosine', 'linear' or 'inverse_sqrt'"),
        (
            {"training": {"batch": 16, "schedule": "inverse_sqrt"}},
            "is missing: E0_0 is trained with `schedule: inverse_sqrt`.* such as 16",
        ),
        (
            {"experts": {"E1_1": {"images": 64, "schedule": "inverse_sqrt"}}},
            "is missing: E1_1 is trained with",
        ),
        ({"experts": {"E1_1": {"images": 64, "learning_rate": 0}}}, "greater than 0"),
    ],
)
def test_a_mistake_is_named(settings, told):
    with pytest.raises(ValidationError, match=told):
        spec(**settings)


def test_how_it_is_done_is_no_part_of_what_comes_of_it():
    """Workers and cadence may change between two attempts of a node."""
    from pipelines.dag.nodes import nodes_of

    sources = {
        "encoders": {"t5": {}, "clip": {}},
        **{split: {"shards": 1, "bytes": 1, "identity": "x"} for split in ("train", "validation")},
    }
    how = {"workers": {"count": 2, "compile": True}, "cadence": {"checkpoint_images": 16}}
    one, two = (
        {n.id: n.settings for n in nodes_of(made, sources)} for made in (spec(), spec(**how))
    )
    assert one == two
    other = {n.id: n.settings for n in nodes_of(spec(training={"batch": 32}), sources)}
    assert other["train/base/E0_0"] != one["train/base/E0_0"]


def test_a_missing_key_of_a_schedule_is_named():
    with pytest.raises(ValidationError) as found:
        spec(training={"batch": 16, "schedule": "inverse_sqrt"})
    assert explain(found.value).startswith("`stages.base.training.decay_images`: is missing: E0_0")


def test_a_later_field_is_a_setting_only_where_it_is_not_the_default():
    """And what was left out is read as what it was."""
    assert Training().settings().keys() == Training.model_fields.keys() - {
        "schedule",
        "decay_images",
        "loss_weight",
        "optimizer",
    }
    chosen = Training(schedule="cosine", dropout={"t5": 0.5})
    assert chosen.settings()["schedule"] == "cosine"
    for training in (Training(), chosen, Training(schedule="inverse_sqrt", decay_images=9)):
        assert Training.from_settings(training.settings()) == training


def test_an_expert_is_trained_as_its_stage_says_but_for_what_it_says_itself():
    training = Training(learning_rate=1e-3, warmup_images=9, schedule="cosine", clip_norm=2.0)
    assert Overrides().over(training) == training
    own = Overrides(learning_rate=1e-4, warmup_images=0).over(training)
    assert own == training.model_copy(update={"learning_rate": 1e-4, "warmup_images": 0})
    assert Overrides(schedule="constant").over(training).rate(0, 64).at(63, 1) == 1e-3


def test_what_a_schedule_does_not_use_determines_nothing():
    training = Training(schedule="inverse_sqrt", decay_images=9)
    assert Overrides().over(training).settings()["decay_images"] == 9
    assert "decay_images" not in Overrides(schedule="cosine").over(training).settings()
    assert "decay_images" not in Overrides(decay_images=9).over(Training()).settings()
    own = Overrides(schedule="inverse_sqrt", decay_images=5).over(Training())
    assert own.rate(0, 64).at(20, 1) == 1e-4 / 2
