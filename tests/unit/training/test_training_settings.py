"""What cannot be trained is said before anything runs."""

import pytest
import yaml
from pydantic import ValidationError

from pipelines.spec import Spec

SPEC = """
name: mine
data: {train: {path: a}, validation: {path: b}}
stages:
  base:
    training: {batch: 16}
    experts: {E0_0: {images: 64}, E1_1: {images: 64}, E1_0: {images: 64}}
    ensemble: [E1_1, E1_0]
"""


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
        ({"training": {"batch": 16, "snapshot_lengths": [0.4]}}, "length lies in"),
        ({"training": {"batch": 16, "bad_loss": {"leap": 0.5}}}, "greater than 1"),
        (
            {"experts": {"E1_1": {"images": 64, "optimizer": "carried"}}},
            "E1_1: `optimizer: carried` .* set `start: raw` on a child",
        ),
    ],
)
def test_a_mistake_is_named(settings, told):
    with pytest.raises(ValidationError, match=told):
        spec(**settings)


def test_how_it_is_done_is_no_part_of_what_comes_of_it():
    """Workers and cadence may change between two attempts of a node."""
    from pipelines.nodes import nodes_of

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
