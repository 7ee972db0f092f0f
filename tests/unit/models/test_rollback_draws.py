"""A rollback rehearsed: promote, roll back, draw; the pictures are those of before, bit by bit."""

import json

import ensemble_kit
import numpy as np
import pytest
import torch
from ensemble_kit import EXPERTS, FINGERPRINT, FOLDER, NAME

from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.models.text_to_image import TextToImage
from pipelines.runs.collect import collect
from pipelines.runs.needed import Policy

NEXT = "fedcba9876543210"
FINISHED = {"inputs": {}, "metrics": {}, "info": {}}


def drawn(store):
    """Pictures of the champion. [N, H, W, 3]"""
    entry = champions.read(store, NAME).champion
    model = TextToImage.load(store.full(f"{entry.folder}/ensemble.json"))
    return model.sample(ensemble_kit.CAPTIONS[:2], seed=7)


def add_next(store):
    """Version 2, an ensemble with other weights."""
    torch.manual_seed(1)
    manifest = json.loads(store.read(f"{FOLDER}/ensemble.json"))
    for stage, experts in EXPERTS.items():
        for name, interval in experts.items():
            node = f"nodes/train/{stage}/{name}-{NEXT}"
            data, sha = ensemble_kit.weights_of(stage, name, interval)
            store.write(f"{node}/ema.safetensors", data)
            store.commit(node, ["ema.safetensors"], FINISHED)
            weights = {"path": f"{node}/ema.safetensors", "expert": name, "sha256": sha}
            manifest["weights"][f"{stage}/{name}"] = weights
    folder = f"nodes/promote/{NAME}-{NEXT}"
    store.write_json(f"{folder}/ensemble.json", manifest)
    store.commit(folder, ["ensemble.json"], FINISHED)
    entry = Entry(fingerprint=NEXT, folder=folder, why="finished", by="run tiny-2")
    champions.add_candidate(store, NAME, entry)


@pytest.mark.slow
def test_a_rollback_draws_what_was_drawn_before(tmp_path):
    torch.set_num_threads(1)
    store = ensemble_kit.make(tmp_path / "store")
    champions.promote(store, NAME, FINGERPRINT, "first")
    before = drawn(store)

    add_next(store)
    champions.promote(store, NAME, NEXT, "better")
    with_next = drawn(store)
    assert (before != with_next).any()

    collect(store, Policy(champions=1))
    champions.roll_back(store, NAME, "its frogs are cacti")
    np.testing.assert_array_equal(drawn(store), before)

    champions.promote(store, NAME, NEXT, "its frogs are fine after all")
    np.testing.assert_array_equal(drawn(store), with_next)
