"""The cost of embedding, compared with figures worked out by hand."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pipelines.formatting import byte_size
from pipelines.planning import encoder_cost as cost
from pipelines.planning.encoder_cost import T5_SIZES, Transformer
from pipelines.spec.gpus import ASSUMED

XXL = T5_SIZES["xxl"]
VIT_L = cost.clip_size("ViT-L-14")


def test_the_encoders_have_their_published_sizes():
    # 24 × (4 × 4096² + 3 × 4096 × 10240), and the table of 32,128 tokens: T5-XXL's 4.76 B
    assert XXL.parameters == 4_630_511_616
    assert XXL.parameters + 32_128 * XXL.width == 4_762_107_904
    assert T5_SIZES["small"].parameters + 32_128 * 512 == 35_323_904
    # OpenCLIP's own profile has 162.03 GFLOPs for ViT-L/14's pictures, 13.30 for its texts
    assert VIT_L.image_tokens == 16 * 16 + 1
    assert VIT_L.vision.flops(257) == pytest.approx(162.03e9, rel=0.005)
    assert VIT_L.text.flops(77) == pytest.approx(13.30e9, rel=0.005)


def test_flops_are_two_a_parameter_and_four_a_pair_of_tokens():
    tiny = Transformer(layers=2, width=3, attention=5, feed_forward=7, matrices=3)
    assert tiny.parameters == 2 * 3 * (4 * 5 + 3 * 7) == 246
    assert tiny.flops(10) == 2 * 246 * 10 + 4 * 100 * 5 * 2


def test_a_billion_pairs_with_t5_xxl():
    flops = cost.t5_flops(XXL, 1e9, 24)
    assert flops == pytest.approx(2.2226e20 + 2.265e17, rel=1e-3)  # products, attention
    # 2.225e20 / (989.4e12 × 0.4) / 3600, and in float32 14.8 times as much
    assert cost.gpu_hours(flops, "bfloat16") == pytest.approx(156.2, rel=1e-3)
    assert cost.gpu_hours(flops, "float32") == pytest.approx(2309.6, rel=1e-3)
    a100 = replace(ASSUMED, gpu="A100", utilisation=0.5)
    assert cost.gpu_hours(flops, "bfloat16", a100) == pytest.approx(396.2, rel=1e-3)


def test_clip_reads_caption_and_picture():
    # 161.716 + 2 × 84.93e6 × 22 + attention 4 × 22² × 768 × 12 GFLOPs a pair
    flops = cost.clip_flops(VIT_L, 1e6, 22)
    assert flops == pytest.approx(1e6 * (161.7157e9 + 3.7371e9 + 0.0178e9), rel=1e-4)


def test_bytes_are_tokens_times_width_times_two():
    tokens = {"t5": 24.0, "clip_text": 22.0}
    fp16 = cost.caption_bytes(4096, VIT_L, tokens, "fp16")
    assert fp16 == {"t5": 196_608, "clip_text": 33_792, "pooled": 3_072}
    int8 = cost.caption_bytes(4096, VIT_L, tokens, "int8")
    assert int8["t5"] == 24 * (4096 + 4)
    assert byte_size(1e9 * sum(fp16.values())) == "233.5 TB"


def test_pictures_of_all_stages():
    assert cost.picture_bytes([64], [], "raw") == 64 * 64 * 3
    assert cost.picture_bytes([64, 256], [256], "jpeg") == pytest.approx(
        0.6 * (64 * 64 + 256 * 256 * 4 / 3)
    )


def test_sizes_come_from_a_folder_too(tmp_path):
    t5 = {"num_layers": 2, "d_model": 64, "num_heads": 4, "d_kv": 16, "d_ff": 128}
    (tmp_path / "config.json").write_text(json.dumps(t5 | {"feed_forward_proj": "gated-gelu"}))
    assert cost.t5_size(str(tmp_path)) == Transformer(
        layers=2, width=64, attention=64, feed_forward=128, matrices=3
    )
    (tmp_path / "config.json").write_text(json.dumps(t5))
    assert cost.t5_size(str(tmp_path)).matrices == 2


@pytest.mark.parametrize(
    "kind",
    ["T5", "MT5", "UMT5", "Bert", "Roberta", "DistilBert", "Albert", "Electra", "CLIPText", "XLM"],
)
def test_any_text_encoder_is_costed_from_its_configuration(kind, tmp_path):
    """Compared with PyTorch's count for the network that transformers builds."""
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    sizes = {
        "T5": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 4, "num_layers": 3},
        "XLM": {"emb_dim": 32, "n_heads": 4, "n_layers": 3},
        "DistilBert": {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 3},
    }
    sizes |= {"MT5": sizes["T5"], "UMT5": sizes["T5"]}
    usual = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    given = sizes.get(kind, usual | {"num_hidden_layers": 3})
    if kind in ("Albert", "Electra"):
        given["embedding_size"] = 32
    config = getattr(transformers, f"{kind}Config")(vocab_size=100, pad_token_id=0, **given)
    config.save_pretrained(tmp_path)
    model = transformers.AutoModelForTextEncoding.from_config(config, attn_implementation="eager")
    ids = torch.ones(1, 24, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    size = cost.t5_size(str(tmp_path))
    assert size.width == model.config.hidden_size
    # What is left out is BERT's pooler, of one token, and ALBERT's way in from its embeddings.
    assert size.flops(24) == pytest.approx(counter.get_total_flops(), rel=0.04)


def test_without_a_full_configuration_the_weights_are_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "hidden_size": 8}))
    assert cost.t5_size(str(tmp_path)) is None
    weights = {
        "encoder.a.weight": torch.zeros(8, 8),
        "encoder.a.bias": torch.zeros(8),
        "embeddings.word_embeddings.weight": torch.zeros(1000, 8),
    }
    save_file(weights, tmp_path / "model-1.safetensors")
    save_file({"encoder.b.weight": torch.zeros(8, 24)}, tmp_path / "model-2.safetensors")
    size = cost.t5_size(str(tmp_path))
    assert (size.width, size.parameters) == (8, 8 * 8 + 8 * 24)
    assert size.flops(10) == 2 * (8 * 8 + 8 * 24) * 10
    (tmp_path / "config.json").write_text("{}")
    assert cost.t5_size(str(tmp_path)) is None
    assert cost.t5_size(str(tmp_path), width=8) == size


@pytest.mark.parametrize("text", ["", "[]", "null", '{"num_layers": "two"}', '{"num_layers": 2}'])
def test_a_configuration_that_cannot_be_read_is_of_unknown_size(tmp_path, text):
    for file in ("config.json", "open_clip_config.json"):
        (tmp_path / file).write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert cost.t5_size(str(tmp_path)) is None
    assert cost.clip_size(str(tmp_path)) is None


def test_unknown_sizes_are_not_guessed():
    assert cost.t5_size("package:not_installed/t5") is None
    assert cost.t5_size("no such name/at all!") is None
    assert cost.t5_size("somebody/their-encoder") is None
    assert cost.t5_size("google/byt5-xxl") is None
    assert cost.clip_size("RN50") is None  # a ResNet's vision is no transformer
    assert cost.clip_size("no-such-clip") is None
