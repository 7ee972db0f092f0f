"""Tiny encoders in the real formats: a random T5, and a CLIP trained on the scenes for a minute."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WIDTH = 128
"""Width of CLIP's towers and embeddings."""

T5_WIDTH = 64
"""Width of T5's token vectors."""

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": WIDTH,
        "patch_size": 8,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": WIDTH,
        "heads": 4,
        "layers": 2,
    },
}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}


def write_t5(folder: Path, captions: Sequence[str], *, seed: int) -> None:
    """Write a 2-layer T5 encoder with random weights and a tokenizer trained on the captions."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        sorted(set(captions)),
        BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=2 * T5_WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    T5EncoderModel(config).save_pretrained(folder)


def train_clip(
    folder: Path,
    pictures: Sequence[Any],
    captions: Sequence[str],
    *,
    images: int,
    batch: int,
    seed: int,
    progress: Callable[[int, float], None],
) -> float:
    """Train a small OpenCLIP model contrastively and save it in OpenCLIP's format.

    Args:
        pictures: PIL images, one per caption.
        images: images to train on, in batches of ``batch``.
        progress: called with the images seen and the loss of the last batch.

    Returns:
        The loss of the last batch.
    """
    import numpy as np
    import open_clip
    import torch
    from open_clip.factory import add_model_config
    from safetensors.torch import save_file
    from torch import nn
    from torchvision.transforms.functional import pil_to_tensor, resize

    scratch = folder / "tiny-clip.json"
    scratch.write_text(json.dumps(CLIP_CONFIG))
    add_model_config(scratch)
    torch.manual_seed(seed)
    model: Any = open_clip.create_model("tiny-clip", pretrained=None)
    scratch.unlink()

    side = CLIP_CONFIG["vision_cfg"]["image_size"]
    x = torch.stack([pil_to_tensor(p.convert("RGB")) for p in pictures])
    x = resize(x, [side, side], antialias=True).float() / 127.5 - 1
    tokens = open_clip.get_tokenizer("ViT-B-32")(list(captions))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    steps = images // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(x)) for _ in range(images // len(x) + 1)])
    loss = torch.tensor(float("nan"))
    model.train()
    for step in range(steps):
        rows = torch.from_numpy(order[step * batch : (step + 1) * batch])
        # Truncate the batch: causal attention never looks past the end token.
        length = int((tokens[rows] != 0).sum(dim=1).max())
        image, text = (
            model.encode_image(x[rows], normalize=True),
            _encode(model, tokens[rows, :length]),
        )
        logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(batch)
        loss = (
            nn.functional.cross_entropy(logits, target)
            + nn.functional.cross_entropy(logits.T, target)
        ) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        progress((step + 1) * batch, float(loss.detach()))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    return float(loss.detach())


def _encode(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """OpenCLIP's ``encode_text`` for sequences shorter than the context."""
    import torch

    n = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:n]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:n, :n]))
    pooled = x[torch.arange(len(x)), tokens.argmax(dim=1)] @ model.text_projection
    return torch.nn.functional.normalize(pooled, dim=1)
