"""What may be written under `network:`, and that it is the network that is then trained."""

from dataclasses import asdict, fields

import pytest
import yaml
from plan_kit import SMOKE
from pydantic import ValidationError

from ediffi_core.unet import PRESETS, FieldError, UNet, UNetConfig
from pipelines.dag.nodes import nodes_of
from pipelines.planning.stage_networks import config_of
from pipelines.spec.loading import explain
from pipelines.spec.network import FOLLOWING, Network
from pipelines.spec.pipeline import Spec

WHOLE = {"channels": 12, "channel_mult": [1, 2], "blocks": [1, 2]}
OTHER = {
    "channels": 24,
    "channel_mult": [1, 3],
    "blocks": [1, 2],
    "layout": "efficient",
    "self_attention": [16],
    "cross_attention": [4],
    "head_channels": 8,
    "token_dim": 12,
    "norm": "pixel",
}


def spec(network, stage="base"):
    raw = yaml.safe_load(SMOKE.read_text())
    raw["stages"][stage]["network"] = network
    return Spec.model_validate(raw)


def trained(spec, node="train/base/E0_0"):
    [settings] = [n.settings for n in nodes_of(spec, {}) if n.id == node]
    return settings["network"]


def complaint(network, stage="base"):
    with pytest.raises(ValidationError) as found:
        spec(network, stage)
    return explain(found.value)


def test_every_field_of_a_network_can_be_chosen_or_follows():
    known = {f.name for f in fields(UNetConfig)}
    assert known == {*Network.model_fields, *FOLLOWING} - {"preset"}
    assert not FOLLOWING.keys() & Network.model_fields.keys()


@pytest.mark.parametrize(
    ("stage", "preset", "side", "more"),
    [
        ("base", "smoke", 16, {}),
        ("base", "demo", 16, {"channels": 48}),
        ("base", "base64", 16, {"channels": None}),
        ("sr32", "smoke-sr", 16, {}),
        ("sr32", "sr256", 16, {"channels": 64}),
    ],
)
def test_a_preset_makes_the_settings_it_always_made(stage, preset, side, more):
    """So that what was trained with them is found."""
    expected = PRESETS[preset].to_dict() | {"resolution": side}
    expected |= {k: v for k, v in more.items() if v}
    del expected["embeddings"]
    found = trained(spec({"preset": preset, **more}, stage), f"train/{stage}/E0_0")
    assert found == expected


@pytest.mark.parametrize("network", [{}, {"channels": 48}])
def test_where_no_preset_is_written_it_is_the_demos(network):
    assert trained(spec(network)) == trained(spec({"preset": "demo", **network}))
    assert trained(spec({}))["channels"] == 32


@pytest.mark.parametrize("key", OTHER)
def test_a_preset_is_changed_in_what_is_written_and_nothing_else(key):
    begin = trained(spec({"preset": "smoke"}))
    value = OTHER[key]
    expected = {**begin, key: tuple(value) if isinstance(value, list) else value}
    assert trained(spec({"preset": "smoke", key: value})) == expected != begin


def test_a_network_is_written_wholly():
    made = spec(WHOLE | {"cross_attention": [8], "head_channels": 4})
    expected = UNetConfig(
        resolution=16, channels=12, channel_mult=(1, 2), blocks=(1, 2), cross_attention=(8,),
        head_channels=4,
    )  # fmt: skip
    built = {**trained(made), "embeddings": []}
    assert UNetConfig.from_dict(built) == expected
    config = config_of(made, "base")
    assert asdict(config) == {**asdict(expected), "embeddings": asdict(config)["embeddings"]}
    UNet(config)


def test_a_network_that_enlarges_is_written_wholly_too():
    made = spec(WHOLE | {"norm": "pixel"}, "sr32")
    assert trained(made, "train/sr32/E0_0")["low_res"] is True
    assert trained(made)["low_res"] is False
    config = config_of(made, "sr32")
    assert config.resolution == 16  # the crop's
    UNet(config)


def test_a_network_that_predicts_the_difference_says_so_and_others_do_not():
    made = spec(WHOLE | {"norm": "pixel", "residual": True}, "sr32")
    assert trained(made, "train/sr32/E0_0")["residual"] is True
    assert config_of(made, "sr32").residual
    assert "residual" not in trained(spec(WHOLE | {"norm": "pixel", "residual": False}, "sr32"))
    with pytest.raises(FieldError, match="a small picture, which the first stage does not read"):
        config_of(spec(WHOLE | {"residual": True}), "base")


def test_a_spec_that_is_written_down_again_has_the_same_networks():
    for network in ({}, {"channels": 48}, WHOLE, {"preset": "smoke", "self_attention": []}):
        made = spec(network)
        for dumped in (made.model_dump(), made.model_dump(exclude_unset=True)):
            assert Spec.model_validate(dumped).network_of("base") == made.network_of("base")


@pytest.mark.parametrize("key", WHOLE)
def test_a_part_of_a_network_is_refused_by_what_it_lacks(key):
    said = complaint({k: v for k, v in WHOLE.items() if k != key} | {"norm": "pixel"})
    assert f"`stages.base.network.{key}`: is missing" in said
    assert "channels, channel_mult, blocks" in said and "base64" in said


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("resolution", 64, "`crop:`"),
        ("low_res", True, "place in `stages:`"),
        ("embeddings", [], "`encoders:`"),
        ("image_channels", 1, "are 3"),
    ],
)
def test_what_follows_from_elsewhere_is_refused_with_where(key, value, where):
    said = complaint({"preset": "smoke", key: value})
    assert said.startswith(f"`stages.base.network.{key}`: {key}") and where in said


@pytest.mark.parametrize(
    ("network", "key", "words"),
    [
        ({"preset": "huge"}, "preset", "'huge' is unknown; there are base64"),
        ({"preset": None}, "channels", "is missing"),
        (WHOLE | {"channel_mult": []}, "channel_mult", "at least 1 item"),
        (WHOLE | {"channel_mult": [1, 0]}, "channel_mult.1", "greater than or equal to 1, got 0"),
        (WHOLE | {"channel_mult": [1, 1.5]}, "channel_mult.1", "integer, got 1.5"),
        (WHOLE | {"blocks": 0}, "blocks", "a whole number from 1, or a list of one for each"),
        (WHOLE | {"blocks": [1, True]}, "blocks", "got [1, True]"),
        (WHOLE | {"blocks": []}, "blocks", "got []"),
        (WHOLE | {"norm": "layer"}, "norm", "'group' or 'pixel', got 'layer'"),
        (WHOLE | {"layout": "vit"}, "layout", "'adm' or 'efficient'"),
        (WHOLE | {"self_attention": 8}, "self_attention", "list, got 8"),
        (WHOLE | {"head_channels": 0}, "head_channels", "got 0"),
    ],
)
def test_a_field_that_cannot_be_is_named(network, key, words):
    said = complaint(network)
    assert said.startswith(f"`stages.base.network.{key}`: ") and words in said


def test_an_unknown_field_is_told_with_the_known_ones():
    said = complaint(WHOLE | {"channel_mults": [1]})
    assert said == "unknown key `stages.base.network.channel_mults`; did you mean `channel_mult`?"
