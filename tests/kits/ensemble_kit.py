"""A store with a tiny ensemble to draw with: random weights, and encoders in the real formats."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from cards import card
from PIL import Image

from ediffi_core.checkpoint import to_bytes
from ediffi_core.conditioning import EmbeddingSpec
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.demo.encoders import T5_WIDTH, WIDTH, train_clip, write_t5
from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.store.artifacts import Store

NAME, FINGERPRINT = "tiny", "0123456789abcdef"
FOLDER = f"nodes/promote/{NAME}-{FINGERPRINT}"
CAPTIONS = ["a frog", "a rocket", "a frog and a rocket, on a pink background"]
EXPERTS = {
    "base": {"E1_0": Interval(0.0, 0.5), "E1_1": Interval(0.5, 1.0)},
    "sr16": {"E0_0": Interval(0.0, 1.0)},
}
SIDES = {"base": 8, "sr16": 16}
EMBEDDINGS = (
    EmbeddingSpec(name="clip_text", dim=WIDTH, kind="sequence"),
    EmbeddingSpec(name="t5", dim=T5_WIDTH, kind="sequence"),
    EmbeddingSpec(name="clip_text_pooled", dim=WIDTH, kind="pooled", source="clip_text"),
    EmbeddingSpec(name="clip_image", dim=WIDTH, kind="pooled", attended=True),
)


def make(root: Path) -> Store:
    """A store with version 1 of ``tiny``, which draws 8×8 pictures and enlarges them to 16×16."""
    torch.manual_seed(0)
    store = Store.at(str(root))
    encoders = root / "nodes/encoders/tiny"
    for name in ("t5", "clip"):
        (encoders / name).mkdir(parents=True)
    write_t5(encoders / "t5", CAPTIONS, seed=0)
    pictures = [Image.new("RGB", (32, 32), color) for color in ("green", "red", "pink")]
    quiet = {"batch": 3, "seed": 0, "progress": lambda *_: None}
    train_clip(encoders / "clip", pictures, CAPTIONS, images=6, **quiet)
    weights = {}
    for stage, experts in EXPERTS.items():
        for name, interval in experts.items():
            path = f"nodes/train/{stage}/{name}.safetensors"
            data, sha = weights_of(stage, name, interval)
            store.write(path, data)
            weights[f"{stage}/{name}"] = {"path": path, "expert": name, "sha256": sha}
    manifest = {
        "model": NAME,
        "store": store.root,
        "stages": [
            {
                "name": stage,
                "resolution": SIDES[stage],
                "experts": {name: [i.q_lo, i.q_hi] for name, i in experts.items()},
                "sampling": {"steps": 4, "solver": "deis3", "guidance": 2.0 * (stage == "base")},
            }
            for stage, experts in EXPERTS.items()
        ],
        "weights": weights,
        "encoders_folder": "nodes/encoders/tiny",
        "encoders": {},
        "trained_with": {},
    }
    store.write(f"{FOLDER}/ensemble.json", json.dumps(manifest).encode())
    entry = Entry(fingerprint=FINGERPRINT, folder=FOLDER, why="finished", by="run tiny-1")
    champions.add_candidate(store, NAME, entry)
    return store


def weights_of(stage: str, name: str, interval: Interval) -> tuple[bytes, str]:
    """An expert's random weights, which torch's seed decides, and their sha256."""
    config = UNetConfig(
        resolution=SIDES[stage],
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        layout="efficient" if stage != "base" else "adm",
        cross_attention=(4,),
        head_channels=8,
        token_dim=12,
        embeddings=EMBEDDINGS,
        low_res=stage != "base",
    )
    net = UNet(config)
    for p in net.parameters():
        p.data.copy_(0.3 * torch.randn(p.shape))
    return to_bytes(Denoiser(net).state_dict(), card(name, interval, config))
