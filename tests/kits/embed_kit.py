"""Run an embed node alone: random encoders, pictures of noise, and a spec that reads them.

As a program, it runs the node ``embed/train`` of a spec on Ray, for tests that kill it::

    python embed_kit.py SPEC --storage STORE
"""

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from paths import SMOKE
from PIL import Image

NODE = "embed/train"
PROGRAM = (sys.executable, __file__)
SIDE = 16
CLIP_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
WORDS = ["red", "green", "blue", "seven", "two", "cat", "dog", "night", "above", "beside"]


def write_encoders(folder, seed=0):
    """Write a T5 and a CLIP with random weights; returns their paths."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    from pipelines.demo.encoders import write_t5

    for name in ("t5", "clip"):
        (folder / name).mkdir(parents=True)
    write_t5(folder / "t5", [" ".join(WORDS)], seed=seed)
    torch.manual_seed(seed)
    save_file(
        open_clip.CLIP(**CLIP_CONFIG).state_dict(), folder / "clip" / "open_clip_model.safetensors"
    )
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": PREPROCESS}
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    return {"t5": str(folder / "t5"), "clip": str(folder / "clip")}


def picture(rng, side=None):
    side = side or int(rng.integers(SIDE, 3 * SIDE))
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side + 5, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_source(path, seed, rows=3, **changes):
    """Write a Parquet file of image–caption pairs, the same for the same seed.

    Args:
        changes: ``column=function(value)``, applied to the last row.
    """
    rng = np.random.default_rng(seed)
    table = {
        "key": [f"{path.stem}-{i}" for i in range(rows)],
        "image": [picture(rng) for _ in range(rows)],
        "caption": [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(rows)],
    }
    for column, change in changes.items():
        table[column][-1] = change(table[column][-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def write_spec(to, source, encoders, embedding=None, cpus=2, **reading):
    """Write a spec whose ``embed/train`` reads a folder with the given encoders."""
    raw = yaml.safe_load(SMOKE.read_text())
    raw |= {"name": "own", "cpus": cpus, "encoders": encoders, "embedding": embedding or {}}
    raw["data"] = {split: {"path": str(source), **reading} for split in ("train", "validation")}
    del raw["stages"]["sr32"]
    to.write_text(yaml.safe_dump(raw))
    return to


def plan_of(spec, root):
    from pipelines.dag import plan, sources
    from pipelines.spec.loading import load
    from pipelines.store.artifacts import Store

    loaded = load(spec)
    return plan.make(loaded, Store.open(str(root)), sources.identify_all(loaded))


def embed(spec, root, start=None):
    """Run the node unless it is cached; returns the verdict and the manifest.

    Args:
        start: Called with the number of CPUs before any work.
    """
    from lone_kit import LoneRunner

    from pipelines.store.artifacts import Store

    plan = plan_of(spec, root)
    verdict = plan.verdicts[NODE]
    if verdict.cached:
        return verdict, verdict.manifest
    if start is not None:
        start(plan.spec.cpus)
    return verdict, LoneRunner(plan, Store.open(str(root))).run_node(verdict)


def run_here(job, todo, embedding, cpus):
    """What ``embed.run`` does, in this process without Ray."""
    from pipelines.steps.embed_stages import AllStages

    whole = todo and AllStages(job)
    for shard in todo:
        work = passed(shard, [whole])
        if work.error:
            raise ValueError(work.error)
        yield job.store.read_json(job.path(shard, "json"))


def passed(shard, stages):
    """Pass a shard through stages, pickled in between as in the job; returns its work."""
    from pipelines.steps.embed_work import Work

    batch = pa.table({"work": pa.array([pickle.dumps(Work(shard))], pa.large_binary())})
    for stage in stages:
        batch = stage(batch)
    return pickle.loads(batch["work"][0].as_py())


class Pool:
    """The files in the pools of a store."""

    def __init__(self, root):
        self.root = Path(root)
        self.folder = self.root / "embeddings"

    def files(self, ending):
        return {p.name: p for p in self.folder.rglob(f"*.{ending}") if p.name[0] != "."}

    def done(self):
        """Shard → time and inode of its shard file and record, if both exist."""
        shards, rows = self.files("parquet"), self.files("json")
        return {
            name: [
                (p.stat().st_mtime_ns, p.stat().st_ino)
                for p in (shards[f"{name}.parquet"], rows[f"{name}.json"])
            ]
            for name in (r.removesuffix(".json") for r in rows)
            if f"{name}.parquet" in shards
        }

    def bytes(self):
        return {name: path.read_bytes() for name, path in self.files("parquet").items()}

    def records(self):
        """Source shard → its record, without timings."""
        read = [json.loads(path.read_text()) for path in self.files("json").values()]
        return {f["name"]: {k: v for k, v in f.items() if k != "seconds"} for f in read}

    def keys(self):
        tables = [pq.read_table(path, columns=["key"]) for path in self.files("parquet").values()]
        return sorted(key for table in tables for key in table["key"].to_pylist())

    def strays(self):
        """Files that are neither shards, keys, sidecars or records, nor temporary."""
        known = {p for of in ("parquet", "keys", "rows", "json") for p in self.files(of).values()}
        return [
            p
            for p in self.folder.rglob("*")
            if p.is_file() and p not in known and not p.name.endswith(".tmp")
        ]


if __name__ == "__main__":
    from pipelines.executor.ray_cluster import start_ray

    found, manifest = embed(Path(sys.argv[1]), sys.argv[3], start_ray)
    print(found.why, manifest["metrics"]["encoded_now"])
