"""A stored ensemble whose files were exchanged or altered is refused when it is loaded."""

import json
import shutil

import ensemble_kit
import pytest
import tampering_kit

from ediffi_core.checkpoint import read, to_bytes
from pipelines.lineage.lookup import find_model
from pipelines.models.manifest import read_manifest
from pipelines.models.text_to_image import TextToImage

FILE = f"{ensemble_kit.FOLDER}/ensemble.json"
EXPERT = "nodes/train/base/E1_0.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "store"
    ensemble_kit.make(root)
    return root


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "store")


def change(root, how):
    path = root / FILE
    manifest = json.loads(path.read_text())
    how(manifest)
    path.write_text(json.dumps(manifest))
    book = root / "registry/tiny.json"  # as of an earlier release: it has no hash of the file
    book.write_text(
        json.dumps({k: v for k, v in json.loads(book.read_text()).items() if k != "seals"})
    )
    return path


def test_an_ensemble_with_other_settings_is_refused(root):
    """A sound file that says something else, and no manifest of a node that knows better."""
    book = root / "registry/tiny.json"
    before = book.read_text()
    file = change(root, lambda manifest: manifest["stages"][0]["sampling"].update(steps=2))
    assert TextToImage.load(file).stages[0].steps == 2
    book.write_text(before)
    with pytest.raises(ValueError, match=r"ensemble\.json is not what was registered"):
        TextToImage.load(file)


@pytest.mark.parametrize("residency", ["all", "current", "disk"])
def test_weights_that_were_exchanged_are_refused(root, residency):
    """A sound file of the same expert, network and interval, with other weights."""
    weights, card = read(root / EXPERT)
    other = {name: value + 0.01 for name, value in weights.items()}
    (root / EXPERT).unlink()
    (root / EXPERT).write_bytes(to_bytes(other, card)[0])
    with pytest.raises(ValueError, match=r"E1_0\.safetensors holds weights .* was replaced"):
        TextToImage.load(root / FILE, residency)


def test_weights_that_are_exchanged_after_loading_are_refused_when_they_are_read(root):
    model = TextToImage.load(root / FILE, "disk")
    weights, card = read(root / EXPERT)
    other = to_bytes({name: value + 0.01 for name, value in weights.items()}, card)[0]
    (root / EXPERT).unlink()
    (root / EXPERT).write_bytes(other)
    with pytest.raises(ValueError, match="was replaced"):
        model.sample(["a frog"])


def test_manifests_without_hashes_are_loaded(root):
    def forget(manifest):
        for weights in manifest["weights"].values():
            del weights["sha256"]

    assert TextToImage.load(change(root, forget)).stages


@pytest.mark.parametrize(
    "path",
    [
        "../outside.safetensors",
        "nodes/../../outside.safetensors",
        "/etc/passwd",
        "executions/x.json",
        "nodes//x",
        "nodes/train/./x",
        "",
    ],
)
@pytest.mark.parametrize("which", ["weights", "encoders", "data"])
def test_paths_that_leave_the_nodes_are_refused(root, path, which):
    def lead_out(manifest):
        if which == "weights":
            manifest["weights"]["base/E1_0"]["path"] = path
        elif which == "encoders":
            manifest["encoders_folder"] = path
        else:
            manifest["data"] = {"train": {"folder": path, "fingerprint": "0"}}

    with pytest.raises(ValueError, match="outside the store's nodes"):
        read_manifest(change(root, lead_out))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with the manifests that nodes write when they are done."""
    store = ensemble_kit.make(tmp_path_factory.mktemp("finished") / "store")
    for folder in (ensemble_kit.FOLDER, "nodes/encoders/tiny"):
        store.commit(folder, list(store.files(folder)), {"settings": {}})
    return store


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_refused_by_name_or_changes_no_picture(finished):
    def draw():
        model = TextToImage.load(find_model("tiny@1", finished.root), storage=finished.root)
        return model.sample(["a frog", "a rocket"], negative="a pink background")

    names = list(finished.files(""))
    refused = tampering_kit.flip_all(finished, names, draw, bits=8, seed=0)
    read = {n for n in names if n.startswith("nodes/") and not n.endswith("/manifest.json")}
    assert refused >= read
