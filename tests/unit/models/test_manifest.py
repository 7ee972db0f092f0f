"""An ensemble's manifest, and the store that its weights are in."""

import json
import shutil

import pytest

from pipelines.models.manifest import read_manifest
from pipelines.store.artifacts import Store

FOLDER, WEIGHTS = "nodes/promote/tiny-p", "nodes/train/base/E0_0-t/ema.safetensors"


@pytest.fixture
def store(tmp_path):
    made = Store.at(str(tmp_path / "store"))
    made.write(WEIGHTS, b"weights")
    manifest = {
        "model": "tiny",
        "store": made.root,
        "stages": [{"name": "base", "experts": {"E0_0": [0.0, 1.0]}}],
        "weights": {"base/E0_0": {"path": WEIGHTS}},
        "encoders_folder": None,
        "encoders": {},
    }
    made.write_json(f"{FOLDER}/ensemble.json", manifest)
    return made


def test_a_copied_or_moved_store_has_its_own_weights(store, tmp_path):
    for name, change in {"copy": shutil.copytree, "moved": shutil.move}.items():
        place = tmp_path / name
        change(store.root, place)
        assert read_manifest(place / FOLDER / "ensemble.json")["store"] == str(place)


def test_a_manifest_elsewhere_takes_the_store_that_has_the_weights(store, tmp_path):
    file, moved = tmp_path / "best.json", str(tmp_path / "moved")
    shutil.copy(f"{store.root}/{FOLDER}/ensemble.json", file)
    empty = str(tmp_path / "empty")
    assert read_manifest(file)["store"] == read_manifest(file, empty)["store"] == store.root
    shutil.move(store.root, moved)
    assert read_manifest(file, moved)["store"] == moved
    for other in (None, empty):
        with pytest.raises(ValueError, match=r"best.json, is gone; .* moved to with --storage"):
            read_manifest(file, other)


@pytest.mark.parametrize("key", ["model", "store", "stages", "weights", "encoders_folder"])
def test_what_is_no_manifest_is_refused(store, tmp_path, key):
    whole = json.loads(store.local(f"{FOLDER}/ensemble.json").read_text())
    file = tmp_path / "other.json"
    others = [{k: v for k, v in whole.items() if k != key}]
    others += [whole | {key: 1}] if key in ("store", "stages", "weights") else []
    for other in others:
        file.write_text(json.dumps(other))
        with pytest.raises(ValueError, match=r"other.json is not an ensemble manifest"):
            read_manifest(file)
