"""Small trained experts in a store, with the snapshots that a training writes."""

import json

import tiny_shards
import torch
from cards import card

from ediffi_core.checkpoint import to_bytes
from ediffi_core.ema import PowerEMA
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.store.artifacts import sha256
from pipelines.store.dataset import Version
from pipelines.store.shards import write

CONFIG = UNetConfig(
    resolution=8,
    channels=8,
    channel_mult=(1, 2),
    blocks=1,
    cross_attention=(4,),
    head_channels=8,
    token_dim=12,
    embeddings=tiny_shards.SPECS,
)
"""A network for the pictures and embeddings of ``tiny_shards``."""

HALVES = {"E1_0": Interval(0.0, 0.5), "E1_1": Interval(0.5, 1.0)}
BATCH, IMAGES = 8, 96
NOISE = {"P_mean": -1.2, "P_std": 1.2}


def write_expert(
    store, config, name, *, stage="base", every=32, lengths=(0.05, 0.1), scale=0.3, drift=0.1
):
    """A training node whose weights wander; returns its entry in an ensemble's manifest.

    Args:
        every: Images between snapshots; None for no snapshots.
        scale: Standard deviation of the initial weights.
        drift: Standard deviation of the steps.
    """
    interval, fingerprint = HALVES.get(name, Interval(0.0, 1.0)), "0123456789abcdef"
    folder = f"nodes/train/{stage}/{name}-{fingerprint}"
    generator = torch.Generator().manual_seed(sum(name.encode()))

    def noise(p):
        return torch.randn(p.shape, generator=generator)

    model = Denoiser(UNet(config)).requires_grad_(False)
    for p in model.parameters():
        p.copy_(scale * noise(p))
    powers, files = PowerEMA(model, lengths), []

    def write_weights(file, weights, images, averaged=True):
        store.write(
            f"{folder}/{file}.safetensors",
            to_bytes(weights, card(name, interval, config, images=images, averaged=averaged))[0],
        )
        files.append(f"{file}.safetensors")

    for images in range(BATCH, IMAGES + 1, BATCH):
        for p in model.parameters():
            p.add_(drift * noise(p))
        powers.update(model, images, BATCH)
        for length in lengths if every and images % every == 0 else ():
            write_weights(f"snapshots/{images:012d}-{length:g}", powers.weights[length], images)
    write_weights("ema", model.state_dict(), IMAGES)
    settings = {
        "expert": name,
        "interval": [interval.q_lo, interval.q_hi],
        "images": IMAGES,
        "resolution": config.resolution,
        "training": {"snapshot_images": every, "snapshot_lengths": list(lengths)},
        "noise": NOISE,
        "sigma_data": 0.5,
        "seed": 0,
    }
    manifest = {"kind": "train", "name": f"{stage}/{name}", "fingerprint": fingerprint}
    store.commit(folder, files, manifest | {"settings": settings, "metrics": {}, "info": {}})
    return {"path": f"{folder}/ema.safetensors", "expert": name, "fingerprint": fingerprint}


def write_ensemble(store, config, *, sampling=None, validation=None, **how):
    """An ensemble of two experts; returns the path of its ``ensemble.json``.

    Args:
        validation: Folder of the data that it is measured on.
        how: As for :func:`write_expert`.
    """
    stage = {
        "name": "base",
        "resolution": config.resolution,
        "sampling": {"steps": 4, "solver": "deis3", "guidance": 0.0, **(sampling or {})},
        "experts": {name: [i.q_lo, i.q_hi] for name, i in HALVES.items()},
    }
    manifest = {
        "model": "tiny",
        "store": store.root,
        "stages": [stage],
        "weights": {f"base/{name}": write_expert(store, config, name, **how) for name in HALVES},
        "encoders_folder": None,
        "encoders": {},
        "data": {"validation": {"folder": validation, "fingerprint": "v"}} if validation else {},
    }
    store.write_json("ensemble.json", manifest)
    return store.local("ensemble.json")


def read_json(path):
    return json.loads(path.read_text())


def write_validation(store, count=12):
    """A small data set of pictures of 8; returns its folder."""
    written = write(tiny_shards.made_rows(count), tiny_shards.header())
    path, folder = "embeddings/tiny/0000.parquet", "nodes/embed/validation-v"
    store.write(path, written.data)
    shard = {
        "name": "0000",
        "path": path,
        "bytes": len(written.data),
        "sha256": sha256(written.data),
        **written.record,
    }
    Version.write(store, folder, [shard], tiny_shards.header())
    return folder
