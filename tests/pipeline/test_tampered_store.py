"""Every bit of a finished run's store that drawing depends on is refused, by the file's name."""

import json
import shutil
from fnmatch import fnmatch

import numpy as np
import pytest
import tampering_kit

from pipelines.lineage.lookup import find_model
from pipelines.models.text_to_image import TextToImage
from pipelines.store.artifacts import Store

UNREAD = {
    "*/.*": "locks",
    "*.latest.json": "which node of a name is the latest, for plans",
    "executions/*": "records of runs, for people",
    "leases/*": "who drives a pipeline",
    "mlflow*": "the record in MLflow",
    "embeddings/*": "training data",
    "nodes/data/*": "training data",
    "nodes/embed/*": "training data",
    "nodes/metric/*": "networks that score pictures",
    "nodes/evaluate/*": "measurements",
    "nodes/compare/*": "measurements",
    "nodes/adopt/*": "measurements",
    "nodes/features/*": "measurements",
    "nodes/probe/*": "measurements",
    "nodes/train/*/raw.safetensors": "where the next expert of the tree starts",
    "nodes/train/*.json*": "the record of a training, and what branches read",
    "nodes/train/*/checkpoints/*": "where an interrupted training goes on",
    "nodes/train/*/snapshots/*": "for averages of another length, which are compared themselves",
    "nodes/train/*.png": "curves, for people",
}
"""Files that drawing does not read, as patterns, by reason."""


@pytest.mark.slow
def test_a_flipped_bit_is_refused_by_name_or_changes_no_picture(smoke, tmp_path):
    store = Store.at(str(shutil.copytree(smoke.store, tmp_path / "store")))
    names = sorted(store.files(""))
    unread = [n for n in names if any(fnmatch(n, pattern) for pattern in UNREAD)]
    read = [n for n in names if n not in unread]

    def draw():
        model = TextToImage.load(find_model("smoke@1", store.root), storage=store.root)
        return model.sample(["a frog", "a rocket"], up_to="base")

    expected = draw()
    refused = tampering_kit.flip_all(store, read, draw, bits=3, seed=0)
    ensemble = find_model("smoke@1", store.root)
    in_ensemble = {w["path"] for w in json.loads(ensemble.read_text())["weights"].values()}
    assert refused >= in_ensemble
    for name in unread:
        if data := store.read(name):
            store.write(name, tampering_kit.flipped(data, len(data) * 4))
    assert np.array_equal(draw(), expected)
