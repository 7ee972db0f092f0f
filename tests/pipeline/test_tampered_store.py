"""Every bit of a finished run's store that drawing depends on is refused, by the file's name."""

import hashlib
import json
import shutil
from fnmatch import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest
import tampering_kit

from ediffi_core.noise import Interval
from pipelines.dag.champion import Champion
from pipelines.executor.commit import external_manifests
from pipelines.lineage.lookup import find_model, find_subject
from pipelines.models.encoders import encoders_of
from pipelines.models.text_to_image import TextToImage
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version
from pipelines.training.branch import Parent

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


def taken_over(store):
    """A digest of what a retraining and an evaluation take over of the champion, as they do."""
    champion, found = Champion.current(store, "smoke"), hashlib.sha256()
    for stage in champion.stages:
        for slot, external in champion.slots(stage).items():
            interval = Interval(*stage["experts"][slot])
            reads = SimpleNamespace(external={"parent": external})
            manifest = external_manifests(store, reads)["parent"]
            parent = Parent(store, external.folder, manifest, interval)
            for name, tensor in parent.weights("ema").items():
                found.update(name.encode() + tensor.numpy().tobytes())
    subject = find_subject("smoke@1", store.root)
    versions = [Version.open(store, champion.data("train").folder)]
    versions.append(Version.open(subject.store, subject.data["validation"]))
    encoders = encoders_of(subject.store, subject.manifest)
    said = [champion.settings, champion.trained_with, subject.stages, subject.weights]
    said += [version.table.to_pylist() for version in versions]
    said += [sorted(encoders), subject.trained_with]
    found.update(json.dumps(said, sort_keys=True).encode())
    return np.frombuffer(found.digest(), np.uint8)


READ_AGAIN = ("registry/*.json", "nodes/promote/*.json", "nodes/embed/*/dataset.parquet")
READ_AGAIN += ("nodes/embed/*/manifest.json", "nodes/encoders/*", "nodes/train/*/manifest.json")
READ_AGAIN += ("nodes/train/*/ema.safetensors",)
"""Files that a retraining and an evaluation read of a champion, but for the rows of shards."""


@pytest.mark.slow
def test_a_flipped_bit_reaches_no_retraining_and_no_evaluation(smoke, tmp_path):
    store = Store.at(str(shutil.copytree(smoke.store, tmp_path / "store")))
    ensemble = json.loads(find_model("smoke@1", store.root).read_text())
    folders = {w["path"].rpartition("/")[0] for w in ensemble["weights"].values()}
    names = [
        name
        for name in sorted(store.files(""))
        if any(fnmatch(name, pattern) for pattern in READ_AGAIN)
        if not name.endswith(".latest.json")
        if not name.startswith("nodes/train/") or name.rpartition("/")[0] in folders
    ]
    refused = tampering_kit.flip_all(store, names, lambda: taken_over(store), bits=2, seed=1)
    told = ("registry/", "/manifest.json")  # which also say things that nobody compares
    assert refused >= {n for n in names if not n.startswith(told) and not n.endswith(told)}
    assert len([n for n in refused if n.endswith("dataset.parquet")]) == 2
    # Consistent changes, as by somebody who knows what is compared: the root of all is elsewhere.
    for kind, change in CHANGES.items():
        name = next(n for n in names if n.startswith(kind) and n.endswith("/manifest.json"))
        before = store.read(name)
        manifest = json.loads(before)
        change(manifest)
        store.write_json(name, manifest)
        with pytest.raises(ValueError, match=r"is not what|names other weights"):
            taken_over(store)
        if kind != "nodes/promote/":  # whose hash the registry has itself
            store.remove(name)
            with pytest.raises(ValueError, match="missing"):
                taken_over(store)
        store.write(name, before)


CHANGES = {
    "nodes/train/": lambda m: m["settings"].update(images=8 * m["settings"]["images"]),
    "nodes/embed/": lambda m: m["files"]["dataset.parquet"].update(sha256="0" * 64),
    "nodes/encoders/": lambda m: m["files"].pop(sorted(m["files"])[0]),
    "nodes/promote/": lambda m: m["files"]["ensemble.json"].update(sha256="0" * 64),
}
"""Start of a path → a change of the manifest there."""
