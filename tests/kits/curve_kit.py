"""A store with a finished pipeline of the smallest size: an ensemble, a single model, and data."""

import json
from importlib.metadata import EntryPoint

import numpy as np
import tiny_shards
import torch
from cards import card
from PIL import Image

from ediffi_core.checkpoint import to_bytes
from ediffi_core.noise import EVERYTHING, Interval
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines import metrics
from pipelines.metrics import Metric
from pipelines.store.artifacts import Store, sha256
from pipelines.store.dataset import Version
from pipelines.store.shards import write

HALVES = {"E1_0": Interval(0.0, 0.5), "E1_1": Interval(0.5, 1.0)}
DATA = "nodes/embed/validation-d"
ROWS = 12


class Redness(Metric):
    """How red a picture is; no caption asks for more. Its features are mean colours."""

    def score(self, pictures, captions):
        return {"redness": pictures[..., 0].mean(axis=(1, 2)) / 255}

    def features(self, pictures):
        return pictures.mean(axis=(1, 2)).astype(np.float32) / 255


def install_redness(monkeypatch):
    """Register the metric as a package would."""
    point = EntryPoint("redness", "curve_kit:Redness", metrics.GROUP)
    monkeypatch.setattr(metrics, "installed", lambda: {"redness": point})


def finished(root, *, embeddings=tiny_shards.SPECS, encoders_folder=None, trained_with=None):
    """A store in which the pipeline ``tiny`` has run; its models draw noise of their own.

    Args:
        embeddings: Those that the models are conditioned on.
        encoders_folder: Folder of the encoders that make them, for prompts.
        trained_with: Identity of the encoders; by default that of the shards.
    """
    trained_with = tiny_shards.ENCODERS if trained_with is None else trained_with
    store = Store.open(str(root))
    data(store)
    weights = {}
    for number, (name, interval) in enumerate({**HALVES, "single": EVERYTHING}.items()):
        weights[name] = expert(store, name, interval, embeddings, seed=number)
    stage = {
        "name": "base",
        "resolution": 8,
        "experts": {name: [i.q_lo, i.q_hi] for name, i in HALVES.items()},
        "sampling": {"steps": 2, "solver": "euler", "guidance": 0.0},
    }
    manifest = {
        "model": "tiny",
        "store": store.root,
        "stages": [stage],
        "weights": {f"base/{name}": weights[name] for name in HALVES},
        "encoders_folder": encoders_folder,
        "encoders": {},
        "trained_with": trained_with,
        "data": {"validation": {"folder": DATA, "fingerprint": "d"}},
    }
    store.write_json("nodes/promote/tiny-p/ensemble.json", manifest)
    done = {"promote/tiny": "nodes/promote/tiny-p"}
    store.write("nodes/metric/redness-m/nothing", b"")
    for group, experts in {"ensemble": HALVES, "single": {"single": EVERYTHING}}.items():
        folder = f"nodes/evaluate/base/{group}-e"
        of = {f"base/{name}": input_of(f"train/base/{name}", "t") for name in experts}
        intervals = {name: [i.q_lo, i.q_hi] for name, i in experts.items()}
        evaluation = {
            "settings": {
                "stages": [{**stage, "experts": intervals}],
                "metrics": {"redness": {"options": {}, "version": 1}},
            },
            "inputs": {
                **of,
                "validation": input_of("embed/validation", "d"),
                "metric/redness": input_of("metric/redness", "m"),
            },
            "info": {"encoders": trained_with},
        }
        store.write_json(f"{folder}/manifest.json", evaluation)
        done[f"evaluate/base/{group}"] = folder
    nodes = {node: {"state": "done", "folder": folder} for node, folder in done.items()}
    record = {"id": "tiny-1", "pipeline": "tiny", "fingerprint": "f", "attempt": 1, "nodes": nodes}
    store.write_json("executions/tiny-1.json", record)
    store.write_json("executions/tiny.latest.json", {"id": "tiny-1"})
    return store


def input_of(node, fingerprint):
    return {"node": node, "fingerprint": fingerprint}


def data(store):
    """The embedded validation data."""
    header = tiny_shards.header()
    written = write(tiny_shards.made_rows(ROWS), header)
    store.write("embeddings/tiny/0000.parquet", written.data)
    shard = {
        "name": "0000",
        "path": "embeddings/tiny/0000.parquet",
        "bytes": len(written.data),
        "sha256": sha256(written.data),
        "rows": ROWS,
        "usable": written.usable,
    }
    Version.write(store, DATA, [shard], header)


def expert(store, name, interval, embeddings, *, seed):
    """Write an expert with random weights; → its entry in a manifest."""
    config = UNetConfig(
        resolution=8,
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        layout="efficient",
        cross_attention=(4,),
        head_channels=8,
        token_dim=12,
        embeddings=embeddings,
    )
    torch.manual_seed(seed)
    denoiser = Denoiser(UNet(config))
    for parameter in denoiser.parameters():  # else the last layer is zero, and guidance idle
        torch.nn.init.normal_(parameter, std=0.2)
    file, sha = to_bytes(denoiser.state_dict(), card(name, interval, config))
    folder = f"nodes/train/base/{name}-t"
    store.write(f"{folder}/ema.safetensors", file)
    manifest = {"fingerprint": "t", "settings": {"expert": name}, "info": {"weights_sha256": sha}}
    store.write_json(f"{folder}/manifest.json", manifest)
    return {
        "path": f"{folder}/ema.safetensors",
        "sha256": sha,
        "fingerprint": "t",
        "expert": name,
    }


def coco(folder, count=12, *, size=(40, 24), captions=3, pictures=True):
    """Write annotations and pictures as COCO 2014 has them; → path of the annotations."""
    images = [{"id": 7 * n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in range(count)]
    notes = [
        {"id": 100 * n + i, "image_id": 7 * n, "caption": f"picture {n},  told {i}\n"}
        for n in range(count)
        for i in range(captions)
    ]
    (folder / "annotations").mkdir()
    (folder / "val2014").mkdir()
    for n, image in enumerate(images if pictures else ()):
        pixels = np.full((size[1], size[0], 3), 10 * n, np.uint8)
        Image.fromarray(pixels).save(folder / "val2014" / image["file_name"], quality=95)
    file = folder / "annotations" / "captions_val2014.json"
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    return file


def points_of(folder):
    """The contents of a report's ``points.json``."""
    return json.loads((folder / "points.json").read_text())
