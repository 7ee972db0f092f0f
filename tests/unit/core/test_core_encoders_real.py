"""The published encoders: full size on the meta device, and files as published."""

import json
import shutil

import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ediffi_core.encoders import CLIP, MAX_TOKENS, T5, embedding_specs
from ediffi_core.unet import PRESETS

CAPTIONS = ["a red three", "a large blue seven above a small green two", "two " * 400, "nine"]
XXL = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
"""``config.json`` of google/t5-v1_1-xxl, without fields that do not affect the computation."""


def count(model):
    return sum(p.numel() for p in model.parameters())


def without_values(encoder):
    """Lets an encoder on the meta device run, with shapes and dtypes only."""
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), {}
    for module in encoder.model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None:
                    shared = made.setdefault(id(value), FakeTensor(mode, value.data, "cpu"))
                    held[name] = shared
    encoder.device = "cpu"
    return encoder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_t5_xxl_is_read_from_its_config(dtype, t5_folder, tmp_path, monkeypatch):
    """The full-size encoder runs without values of its weights."""
    from transformers import AutoConfig, AutoModelForTextEncoding

    folder = shutil.copytree(t5_folder, tmp_path / "xxl")
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(XXL))

    def without_weights(source, dtype, revision=None):
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(source)
            return AutoModelForTextEncoding.from_config(config, dtype=dtype)

    monkeypatch.setattr(AutoModelForTextEncoding, "from_pretrained", without_weights)
    t5 = T5(str(folder), device="meta", dtype=dtype)
    assert type(t5.model).__name__ == "T5EncoderModel"  # the decoder is not loaded
    # 32128 · 4096 of the table; a layer has 4 · 4096² of attention, 3 · 4096 · 10240 of
    # feed-forward and two norms; then 32 · 64 of positions, and the last norm
    layer = 4 * 4096**2 + 3 * 4096 * 10240 + 2 * 4096
    assert count(t5.model) == 32128 * 4096 + 24 * layer + 32 * 64 + 4096 == 4_762_310_656
    assert t5.model.dtype == dtype
    assert t5.dim == width("t5") == 4096
    tokens = without_values(t5).text(CAPTIONS)
    assert all(isinstance(t, FakeTensor) for t in tokens)
    lengths = [len(i) for i in t5.tokenizer(CAPTIONS).input_ids]
    assert lengths[2] > MAX_TOKENS
    assert [tuple(t.shape) for t in tokens] == [(min(n, MAX_TOKENS), 4096) for n in lengths]
    assert {t.dtype for t in tokens} == {torch.float32}
    assert [tuple(v.shape) for v in t5.pooled(CAPTIONS)] == [(4096,)] * 4


def test_clip_l14_is_read_by_its_name():
    with torch.device("meta"):
        clip = CLIP("ViT-L-14", pretrained=None, device="meta")
    assert count(clip.model) == 427_616_513  # as OpenAI's
    assert (clip.text_dim, clip.dim) == (width("clip_text"), width("clip_image")) == (768, 768)
    tokens, pooled = without_values(clip).text(CAPTIONS)
    ends = clip.tokenizer(CAPTIONS).argmax(dim=1).tolist()
    assert ends[2] == 76
    assert [tuple(t.shape) for t in tokens] == [(end + 1, 768) for end in ends]
    assert pooled.shape == (4, 768)
    seen = clip.image([Image.new("RGB", (300, 200)), Image.new("L", (64, 64))])
    assert seen.shape == (2, 768)
    assert isinstance(seen, FakeTensor)


def width(name):
    """The EmbeddingSpec of the paper's network."""
    specs = {e.name: e.dim for e in PRESETS["base64"].embeddings}
    assert specs == {e.name: e.dim for e in embedding_specs(4096, 768, 768)}
    return specs[name]


@pytest.fixture(scope="module")
def published(t5_folder, tmp_path_factory):
    """A T5 as published, encoder and decoder in several files, and its weights."""
    from transformers import AutoConfig, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("published") / "t5"
    shutil.copytree(t5_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(t5_folder)
    config.is_encoder_decoder, config.num_decoder_layers = True, 2
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config).eval()
    model.save_pretrained(folder, max_shard_size="8KB")
    return folder, model


def test_t5_is_read_from_several_files(published):
    """Only the encoder is loaded, with the saved values."""
    from transformers import AutoTokenizer, T5EncoderModel

    folder, saved = published
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file for name, file in index.items() if not name.startswith("decoder")}
    assert len(files) > 2
    t5 = T5(str(folder))
    for name, weight in saved.encoder.state_dict().items():
        assert torch.equal(t5.model.encoder.state_dict()[name], weight), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = T5EncoderModel.from_pretrained(folder).eval()
    for caption, found in zip(CAPTIONS, t5.text(CAPTIONS), strict=True):
        ids = tokenizer(caption, truncation=True, max_length=256, return_tensors="pt").input_ids
        with torch.no_grad():
            for model in (plain, saved.encoder):
                expected = model(input_ids=ids).last_hidden_state[0]
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_how_the_files_are_cut_does_not_change_what_an_encoder_is(published, tmp_path):
    folder, saved = published
    other = shutil.copytree(folder, tmp_path / "one")
    for file in other.glob("model*"):
        file.unlink()
    saved.save_pretrained(other)
    assert [f.name for f in other.glob("model*")] == ["model.safetensors"]
    assert T5(str(other)).sha256 == T5(str(folder)).sha256


@pytest.mark.parametrize("lack", ["file", "index"])
def test_files_that_are_not_all_there_are_an_error(published, tmp_path, lack):
    """Missing weights must not be replaced by random ones."""
    folder, _ = published
    broken = shutil.copytree(folder, tmp_path / "broken")
    if lack == "index":
        (broken / "model.safetensors.index.json").unlink()
    else:
        min(broken.glob("model-*.safetensors")).unlink()
    with pytest.raises(OSError, match="model"):
        T5(str(broken))
