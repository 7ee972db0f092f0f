"""Small networks without zeroed branches, conditioning for them, and tiny encoders."""

import json

import pytest
import torch

from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.unet import UNet, UNetConfig

torch.set_num_threads(1)

SPECS = (
    EmbeddingSpec(name="clip_text", dim=6, kind="sequence"),
    EmbeddingSpec(name="t5", dim=8, kind="sequence"),
    EmbeddingSpec(name="clip_text_pooled", dim=6, kind="pooled", source="clip_text"),
    EmbeddingSpec(name="clip_image", dim=6, kind="pooled", attended=True),
)


@pytest.fixture
def config():
    return UNetConfig(
        resolution=8,
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        self_attention=(4,),
        cross_attention=(4,),
        head_channels=8,
        token_dim=12,
        embeddings=SPECS,
    )


@pytest.fixture
def efficient():
    """Super-resolution with a finite receptive field: two levels, 8 and 4 of 16 pixels."""
    return UNetConfig(
        resolution=16,
        channels=8,
        channel_mult=(1, 2),
        blocks=(1, 2),
        layout="efficient",
        cross_attention=(4,),
        head_channels=8,
        token_dim=12,
        norm="pixel",
        embeddings=SPECS,
        low_res=True,
    )


@pytest.fixture(params=["adm", "efficient"])
def either(request, config, efficient):
    """Both layouts."""
    return {"adm": config, "efficient": efficient}[request.param]


@pytest.fixture
def make_net(config):
    """``make_net(seed)`` → a network whose weights are all random, none zero."""

    def make(seed=0, config=config):
        net = UNet(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
        return net.eval().requires_grad_(False)

    return make


@pytest.fixture
def make_cond():
    """``make_cond(rows)`` → all embeddings, with sequences of unequal length.

    ``low_res`` adds low-resolution images of that side.
    """

    def make(rows=3, seed=0, low_res=None):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(*shape, generator=generator)

        lengths = {"clip_text": 1 + torch.arange(rows) % 4, "t5": 5 - torch.arange(rows) % 3}
        masks = {k: torch.arange(5) < n[:, None] for k, n in lengths.items()}
        sequences = {
            "clip_text": randn(rows, 5, 6) * masks["clip_text"][..., None],
            "t5": randn(rows, 5, 8) * masks["t5"][..., None],
        }
        pooled = {"clip_text_pooled": randn(rows, 6), "clip_image": randn(rows, 6)}
        small = None if low_res is None else randn(rows, 3, low_res, low_res).clamp(-1, 1)
        return Conditioning(sequences, masks, pooled, low_res=small)

    return make


TEXTS = [
    "a red three",
    "a large blue seven above a small green two on white paper",
    "nine",
    "two yellow fives, side by side",
]

CLIP_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "interpolation": "bicubic"}


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory):
    """A tiny T5 with a tokenizer trained on TEXTS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    T5EncoderModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with OpenCLIP's own tokenizer."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP_CONFIG)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def t5(t5_folder):
    from ediffi_core.encoders import T5

    return T5(str(t5_folder))


@pytest.fixture(scope="session")
def clip(clip_folder):
    from ediffi_core.encoders import CLIP

    return CLIP(str(clip_folder))
