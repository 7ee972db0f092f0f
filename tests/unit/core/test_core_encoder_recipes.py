"""Encoders use the activation and pooling of their weights or are refused; identities tell."""

import json
import shutil

import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from ediffi_core.encoders import (
    CLIP,
    MAX_TOKENS,
    TextEncoder,
    _follows_tag,
    clip_side,
)
from ediffi_core.published import tag_changes_activation
from pipelines.models.encoders import check_trained_with, load_clip

TEXTS = ["", "a cat", "two dogs on a red sofa, by the window"]
PAIRS = [(model, tag) for model, tags in _PRETRAINED.items() for tag in tags]


def config_of(folder):
    return json.loads((folder / "open_clip_config.json").read_text())


def changed(folder, to, seed=0, **text):
    """A CLIP of another configuration, with random weights."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = config_of(to)
    config["model_cfg"] |= text.pop("model", {})
    config["model_cfg"]["text_cfg"] |= text
    (to / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    given = json.loads(json.dumps(config["model_cfg"]))
    save_file(open_clip.CLIP(**given).state_dict(), to / "open_clip_model.safetensors")
    return to


@pytest.fixture
def named(clip_folder, tmp_path, monkeypatch):
    """A model known to OpenCLIP by name, with local weights for its tags."""

    def make(own, **tags):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config_of(clip_folder)["model_cfg"])
        with torch.no_grad():
            for p in model.parameters():  # so that the activation matters
                p.mul_(3)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        config = {**config_of(clip_folder)["model_cfg"], "quick_gelu": own}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
        file = str(tmp_path / "weights.pt")
        pairs = {t: open_clip.pretrained._pcfg(file=file, quick_gelu=q) for t, q in tags.items()}
        monkeypatch.setitem(_PRETRAINED, "tiny", pairs)
        return model.state_dict()

    return make


@pytest.mark.parametrize("quick", [True, False])
def test_the_activation_is_the_one_of_the_weights_tag(named, clip_folder, quick):
    """Embeddings equal those of a model built with the activation; identities differ."""
    weights = named(False, openai=quick)
    clip = CLIP("tiny", pretrained="openai")
    config = {**config_of(clip_folder)["model_cfg"], "quick_gelu": quick}
    reference = open_clip.CLIP(**config).eval()
    reference.load_state_dict(weights)
    assert any(isinstance(m, QuickGELU) for m in clip.model.modules()) == quick
    with torch.no_grad():
        expected = reference.encode_text(clip.tokenizer(TEXTS), normalize=True)
        x = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(clip.model.encode_image(x), reference.encode_image(x))
    torch.testing.assert_close(clip.text(TEXTS)[1], expected, rtol=0, atol=1e-5)
    assert ("QuickGELU" in clip.recipe) == quick == ("activation" in clip.identity)


def test_equal_weights_with_another_activation_are_another_encoder(named):
    named(False, plain=False, quick=True)
    plain, quick = (CLIP("tiny", pretrained=tag) for tag in ("plain", "quick"))
    assert plain.sha256 == quick.sha256
    assert plain.identity != quick.identity
    assert float((plain.text(TEXTS)[1] - quick.text(TEXTS)[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("trained_with", [{}, {"name": "tiny", "sha256": "ab", "dtype": "float32"}])
def test_a_model_that_was_trained_before_tags_were_followed_draws_as_it_did(named, trained_with):
    """Older shards lack the key ``how``; current ones have it."""
    named(False, openai=True)
    places = {"clip": "tiny", "clip_pretrained": "openai"}
    old, new = load_clip(places, trained_with=trained_with), load_clip(places)
    assert (old.recipe.split(",")[0], new.recipe.split(",")[0]) == ("GELU", "QuickGELU")
    again = load_clip(places, trained_with={**trained_with, **new.identity})
    assert again.identity == new.identity
    check_trained_with({"clip": old}, {"clip": trained_with})
    check_trained_with({"clip": new}, {"clip": new.identity})
    with pytest.raises(ValueError, match=r"encoder clip differs from.*GELU, argmax.*train again"):
        check_trained_with({"clip": old}, {"clip": new.identity})


def test_a_model_of_quickgelu_takes_no_weights_of_gelu(named):
    named(True, plain=False)
    with pytest.raises(ValueError, match=r"were trained with GELU.*without -quickgelu"):
        CLIP("tiny", pretrained="plain")


@pytest.mark.parametrize("pair", PAIRS, ids=":".join)
def test_the_plan_knows_what_open_clip_s_tables_say(pair):
    """All published models, except two with foreign text towers."""
    if pair == ("roberta-ViT-B-32", "laion2b_s12b_b32k"):
        with pytest.raises(ValueError, match="trained with GELU"):
            _follows_tag(*pair)
        assert not tag_changes_activation(*pair)
        return
    assert tag_changes_activation(*pair) == _follows_tag(*pair)


@pytest.mark.parametrize(
    ("model", "tag", "changes"),
    [
        ("ViT-L-14", "openai", True),
        ("ViT-L/14", "OpenAI", True),  # as OpenCLIP reads names
        ("ViT-L-14-quickgelu", "openai", False),
        ("ViT-L-14", "laion2b_s32b_b82k", False),
        ("ViT-L-14", "/a/file.pt", False),
        ("package:some_clip/folder", "openai", False),
        ("/a/folder/elsewhere", "openai", False),
        ("hf-hub:org/name", "openai", False),
    ],
)
def test_what_a_spec_may_name(model, tag, changes):
    assert tag_changes_activation(model, tag) is changes


def test_a_name_with_a_slash_has_a_side():
    assert clip_side("ViT-L/14") == 224


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"pool_type": "first"}, "pool_type 'first'"),
        ({"pool_type": "last"}, "pool_type 'last'"),
        ({"pool_type": "eos", "eos_id": 0}, "pool_type 'eos'"),
        ({"no_causal_mask": True}, "sees the whole text at once"),
        ({"proj_bias": True}, "cannot be read"),
        ({"proj_type": "none"}, "cannot be read"),
    ],
)
def test_a_text_tower_that_is_read_in_another_way_is_refused(clip_folder, tmp_path, text, says):
    extra = {"model": {"embed_dim": 32}} if text.get("proj_type") else {}
    folder = changed(clip_folder, tmp_path / "clip", **text, **extra)
    with pytest.raises(ValueError, match=says) as refused:
        CLIP(str(folder))
    assert "such as ViT-L-14" in str(refused.value)


def test_an_end_token_that_is_named_and_highest_is_read(clip_folder, tmp_path):
    """The output decides, not the wording of the configuration."""
    folder = changed(clip_folder, tmp_path / "clip", pool_type="eos", eos_id=49407)
    clip = CLIP(str(folder))
    with torch.no_grad():
        expected = clip.model.encode_text(clip.tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(clip.text(TEXTS)[1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"model_cfg": {"quick_gelu": True}},
        {"preprocess_cfg": {"mean": [0.1, 0.1, 0.1]}},
        {"preprocess_cfg": {"interpolation": "bilinear"}},
        {"preprocess_cfg": {"resize_mode": "squash"}},
    ],
)
def test_what_changes_an_embedding_changes_the_identity(clip, clip_folder, tmp_path, change):
    """Same weights, another configuration."""
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    config = config_of(folder)
    for part, values in change.items():
        config[part] |= values
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    other = CLIP(str(folder))
    assert other.sha256 == clip.sha256
    assert other.identity != clip.identity
    assert "activation" not in other.identity  # a folder's is its own


# Text encoders of few positions.


@pytest.fixture
def encoder(t5_folder, tmp_path):
    """``encoder("bert", 20)`` → folder of a text encoder with this many positions."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    def make(kind, positions, tokenizer_limit=None):
        folder = shutil.copytree(t5_folder, tmp_path / f"{kind}-{positions}")
        for file in ("model.safetensors", "config.json"):
            (folder / file).unlink()
        if tokenizer_limit:
            said = json.loads((folder / "tokenizer_config.json").read_text())
            said["model_max_length"] = tokenizer_limit
            (folder / "tokenizer_config.json").write_text(json.dumps(said))
        config, model = {
            "bert": (BertConfig, BertModel),
            "roberta": (RobertaConfig, RobertaModel),
        }[kind]
        torch.manual_seed(0)
        model(
            config(
                vocab_size=200,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=positions,
                pad_token_id=1,
            )
        ).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize(
    ("kind", "positions", "tokenizer", "reads"),
    [
        ("bert", 77, None, 77),
        ("bert", 600, None, MAX_TOKENS),
        ("bert", 77, 33, 33),
        ("roberta", 79, None, 77),  # two of its positions are no text's
        ("roberta", 79, 78, 77),
    ],
)
def test_a_long_caption_is_cut_to_what_an_encoder_reads(encoder, kind, positions, tokenizer, reads):
    text = TextEncoder(str(encoder(kind, positions, tokenizer)))
    (rows,) = text.text(["seven " * 500])
    assert len(rows) == text.max_tokens == reads
    (spans,) = text.spans(["seven " * 500])
    assert len(spans.spans) == reads
    assert text.identity["how"] == f"up to {reads} tokens"


def test_a_t5_has_no_positions_to_run_out_of(t5):
    assert t5.max_tokens == MAX_TOKENS
