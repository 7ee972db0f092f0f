"""Encoders in an exported folder: published ones are saved in their formats, or named."""

import json
import re

import pytest
from paths import ROOT

from ediffi_core.encoders import CLIP, T5, TextEncoder
from pipelines.demo.encoders import CLIP_CONFIG
from pipelines.interchange import encoders
from pipelines.interchange.export import Options, export

pytestmark = pytest.mark.slow  # they load OpenCLIP


def test_a_published_text_encoder_is_saved_with_its_tokenizer(exported, tmp_path):
    published = T5(str(exported / "encoders/t5"))
    assert encoders.save(published, "google/tiny", tmp_path / "t5") == published.recipe
    saved = TextEncoder(str(tmp_path / "t5"))
    assert saved.identity == published.identity
    assert saved.text(["a frog"])[0].equal(published.text(["a frog"])[0])
    assert list((tmp_path / "t5").glob("*.safetensors"))


@pytest.fixture
def registered(tmp_path):
    """A tiny CLIP that OpenCLIP knows by a name."""
    from open_clip import factory

    (tmp_path / "tiny-b-32.json").write_text(json.dumps(CLIP_CONFIG))
    before = list(factory._MODEL_CONFIG_PATHS)
    factory.add_model_config(tmp_path / "tiny-b-32.json")
    yield "tiny-b-32"
    factory._MODEL_CONFIG_PATHS[:] = before
    factory._rescan_model_configs()


@pytest.mark.parametrize("follows_tag", [False, True])
def test_a_published_clip_is_saved_with_its_activation(registered, follows_tag, tmp_path):
    import open_clip

    published = CLIP(registered, pretrained=None)
    if follows_tag:  # as a tag would: no weights with a tag are here
        published.model = open_clip.create_model(registered, force_quick_gelu=True).eval()
        published.follows_tag = True
    recipe = encoders.save(published, registered, tmp_path / "clip")
    saved = CLIP(str(tmp_path / "clip"))
    assert recipe == saved.recipe == re.sub(r"\((0[^)]*)\)", r"[\1]", published.recipe)
    assert ("QuickGELU" in saved.recipe) == follows_tag
    assert saved.sha256 == published.sha256
    assert saved.text(["a frog"])[1].equal(published.text(["a frog"])[1])


def test_a_published_encoder_that_has_changed_is_refused(manifest, exported, monkeypatch, tmp_path):
    """Its recipe is compared with that of the training before it is saved."""
    d = json.loads(manifest.read_text())
    folder = str(exported / "encoders/t5")
    d |= {"encoders_folder": None, "encoders": {"t5": "google/tiny", "clip": "ViT-B-32"}}
    d["trained_with"] = {"t5": {"how": "up to 3 tokens"}}
    (tmp_path / "ensemble.json").write_text(json.dumps(d))
    monkeypatch.setattr(encoders, "load_t5", lambda sources: T5(folder))
    with pytest.raises(ValueError, match=r"encoder t5 differs from .* not up to 3 tokens"):
        export(tmp_path / "ensemble.json", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_copies_for_other_frameworks_stay_out(exported, tmp_path):
    source = tmp_path / "t5"
    (source / "onnx").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", ".git"):
        (source / name).touch()
    encoders.copy_folder(source, tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_published_encoders_may_be_named_and_paths_are_not_told(manifest, exported, tmp_path):
    d = json.loads(manifest.read_text())
    more = {"model": str(exported / "encoders/t5"), "dim": 64, "kind": "pooled"}
    d |= {"encoders_folder": None, "encoders": {"t5": "google/t5-v1_1-small", "clip": "ViT-B-32"}}
    d["encoders"] |= {"clip_pretrained": "openai", "t5_dtype": "bfloat16", "more": {"own": more}}
    d["trained_with"] = {"own": {"name": more["model"], "how": "up to 256 tokens"}}
    (tmp_path / "ensemble.json").write_text(json.dumps(d))
    export(tmp_path / "ensemble.json", tmp_path / "model", Options(reference_encoders=True))
    config = json.loads((tmp_path / "model/encoders/config.json").read_text())
    assert config["t5"] == {"name": "google/t5-v1_1-small", "dtype": "bfloat16"}
    assert config["clip"]["name"] == "ViT-B-32" and config["clip"]["pretrained"] == "openai"
    assert config["more"] == {"own": {"folder": "own", "kind": "pooled", "dim": 64}}
    assert config["trained_with"] == {"own": {"how": "up to 256 tokens"}}
    assert not (tmp_path / "model/encoders/t5").exists()
    card = (tmp_path / "model/README.md").read_text()
    assert "`t5` (`google/t5-v1_1-small`)" in card and "`own` (the folder `t5`)" in card
    assert str(exported) not in card and str(ROOT) not in card
