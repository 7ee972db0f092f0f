"""Averages of any length are made from a node's snapshots, kept, and loaded like other weights."""

import shutil

import pytest
import torch
from snapshot_kit import CONFIG, HALVES, IMAGES, read_json, write_ensemble, write_expert

from ediffi_core.checkpoint import read, to_bytes
from ediffi_core.conditioning import Conditioning
from ediffi_core.ema import reconstruct
from pipelines.models import averages, text_to_image
from pipelines.models.averages import Trained
from pipelines.models.stages import StageLoader, draw, load_stages
from pipelines.models.text_to_image import TextToImage
from pipelines.spec.sampling import Sampling
from pipelines.store.artifacts import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with an ensemble of two experts."""
    root = tmp_path_factory.mktemp("made")
    write_ensemble(Store.at(str(root)), CONFIG)
    return root


@pytest.fixture
def store(made, tmp_path):
    """A copy of it."""
    shutil.copytree(made, tmp_path / "store")
    return Store.at(str(tmp_path / "store"))


@pytest.fixture
def path(store):
    """Of an expert's stored weights."""
    return manifest_of(store)["weights"]["base/E1_0"]["path"]


def manifest_of(store, **sampling):
    manifest = read_json(store.local("ensemble.json"))
    manifest["stages"][0]["sampling"] |= sampling
    return manifest


def snapshots(store, path):
    found = Trained.of(store, path).snapshots
    return [(s.images, s.length, read(store.local(s.path))[0]) for s in found]


def test_the_snapshots_are_those_of_the_node(store, path):
    trained = Trained.of(store, path)
    expected = [(at, length) for at in (32, 64, 96) for length in (0.05, 0.1)]
    assert [(s.images, s.length) for s in trained.snapshots] == expected
    assert (trained.name, trained.images, trained.last) == ("base/E1_0", IMAGES, IMAGES)
    assert all(s.bytes == store.size(s.path) for s in trained.snapshots)


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_a_stored_length_at_the_last_snapshot_is_that_snapshot(store, path, length):
    found, card = averages.mixed(store, Trained.of(store, path), length)
    (stored,) = (w for at, of, w in snapshots(store, path) if (at, of) == (IMAGES, length))
    assert (card.images, card.averaged, card.expert) == (IMAGES, True, "E1_0")
    for name, value in stored.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_reading_one_file_after_another_gives_what_all_at_once_give(store, path):
    found, _ = averages.mixed(store, Trained.of(store, path), 0.15)
    expected = reconstruct(snapshots(store, path), IMAGES, 0.15)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_a_length_keeps_the_digits_that_file_names_lack(store):
    path = write_expert(store, CONFIG, "E1_0", lengths=(0.123456789,))["path"]
    assert {s.length for s in Trained.of(store, path).snapshots} == {0.123456789}


def test_an_average_is_computed_once_and_kept_beside_the_node(store, path):
    first = averages.file_of(store, path, 0.07)
    data, made = first.read_bytes(), first.stat().st_mtime_ns
    weights, _ = read(first)
    expected, _ = averages.mixed(store, Trained.of(store, path), 0.07)
    assert all(torch.equal(weights[k], expected[k]) for k in expected)
    again = averages.file_of(store, path, 0.07)
    assert (again, again.stat().st_mtime_ns) == (first, made)
    assert first.parent.parent == store.local(path).parent
    assert averages.file_of(store, path, 0.08) != first
    first.unlink()
    assert averages.file_of(store, path, 0.07).read_bytes() == data
    assert store.manifest(Trained.of(store, path).folder)  # the node is still whole


def test_other_snapshots_make_another_average(store, path):
    first = averages.file_of(store, path, 0.07)
    again = write_expert(store, CONFIG, "E1_0", drift=0.2)["path"]
    assert again == path and averages.file_of(store, path, 0.07) != first


def test_averages_of_a_store_that_cannot_be_written_go_to_the_users_home(
    store, path, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    node = store.local(path).parent
    (node / "averages").write_bytes(b"a file in the place of the folder")
    found = averages.file_of(store, path, 0.07)
    assert found.is_relative_to(tmp_path / "home" / averages.CACHE)
    assert read(found)[1].expert == "E1_0"
    assert averages.file_of(store, path, 0.07) == found


def test_a_node_without_snapshots_says_what_to_set(store):
    path = write_expert(store, CONFIG, "E1_0", every=None)["path"]
    with pytest.raises(ValueError, match=r"base/E1_0 .*`stages\.base\.training\.snapshot_images`"):
        averages.file_of(store, path, 0.07)
    with pytest.raises(ValueError, match="has no manifest"):
        averages.file_of(store, "nodes/train/base/gone-1/ema.safetensors", 0.07)


@pytest.mark.parametrize("length", [0.0, 0.3])
def test_a_length_that_no_power_has_is_refused(store, path, length):
    with pytest.raises(ValueError, match=r"must lie in \(0, 0.288\)"):
        averages.file_of(store, path, length)


def cut(file):
    file.write_bytes(file.read_bytes()[:-8])


def flip(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def swap(file):
    shutil.copy(file.with_name(f"{32:012d}-0.1.safetensors"), file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "-0.05.safetensors is missing, a snapshot of base/E1_0"),
        (cut, "is not a readable checkpoint"),
        (flip, "is damaged"),
        (swap, "holds E1_0 after 32 images, and its name says E1_0 after 64"),
    ],
)
def test_a_snapshot_that_is_missing_or_damaged_is_named(store, path, damage, message):
    file = store.local(path).parent / f"snapshots/{64:012d}-0.05.safetensors"
    damage(file)
    with pytest.raises(ValueError, match=message) as refused:
        averages.file_of(store, path, 0.07)
    assert file.name in str(refused.value) and "\n" not in str(refused.value)
    assert not (file.parent.parent / averages.AVERAGES).exists()


# -- in a cascade ----------------------------------------------------------------------------------

COND = Conditioning(
    sequences={"t5": torch.ones(1, 3, 8)},
    masks={"t5": torch.ones(1, 3, dtype=torch.bool)},
    pooled={"clip_image": torch.arange(6.0)[None]},
)


def loader(store, residency="all"):
    manifest = manifest_of(store)
    return StageLoader(store, manifest["stages"], manifest["weights"], residency)


def weights(stage):
    """Expert → its weights as they are used."""
    return {
        e.name: {k: v.clone() for k, v in stage.denoiser.resident_denoiser(e).state_dict().items()}
        for e in reversed(stage.denoiser.experts)
    }


def same(a, b):
    return all(torch.equal(a[n][k], b[n][k]) for n in a for k in a[n])


@pytest.mark.parametrize("residency", ["all", "current", "disk"])
def test_the_length_of_a_cascade_can_change_and_change_back(store, residency):
    own = loader(store, residency)
    [stage] = own.load()
    before = draw([stage], COND, seed=1)["base"]
    stored = weights(stage)
    paths = {name: slot.path for name, slot in own.slots["base"].items()}
    own.set_length(stage, 0.07)
    expected = {n: read(averages.file_of(store, p, 0.07))[0] for n, p in paths.items()}
    assert same(weights(stage), expected)
    assert not torch.equal(draw([stage], COND, seed=1)["base"], before)
    own.set_length(stage, None)
    assert same(weights(stage), stored)
    assert torch.equal(draw([stage], COND, seed=1)["base"], before)


@pytest.mark.parametrize("residency", ["all", "current", "disk"])
def test_an_ensemble_with_a_length_of_its_own_loads_averages(store, residency):
    manifest = manifest_of(store, ema_length=0.07)
    [stage] = load_stages(store, manifest["stages"], manifest["weights"], residency)
    path = manifest["weights"]["base/E1_1"]["path"]
    expected, _ = averages.mixed(store, Trained.of(store, path), 0.07)
    assert same({"E1_1": weights(stage)["E1_1"]}, {"E1_1": expected})


def test_a_length_that_one_expert_cannot_have_changes_no_other(store):
    own = loader(store)
    write_expert(store, CONFIG, "E1_1", every=None)
    [stage] = own.load()
    before = weights(stage)
    with pytest.raises(ValueError, match="base/E1_1 was trained without snapshots"):
        own.set_length(stage, 0.07)
    assert same(weights(stage), before) and own.lengths == {"base": None}


def test_after_an_error_amid_loading_the_next_call_loads_anew(store):
    own = loader(store)
    [stage] = own.load()
    before = weights(stage)
    broken = averages.file_of(store, own.slots["base"]["E1_1"].path, 0.07)
    sound = broken.read_bytes()
    flip(broken)
    with pytest.raises(ValueError, match="is damaged"):
        own.set_length(stage, 0.07)
    own.set_length(stage, None)
    assert same(weights(stage), before)
    broken.write_bytes(sound)
    own.set_length(stage, 0.07)
    assert not same(weights(stage), before)


def test_experts_are_checked_as_without_a_length(store):
    manifest = manifest_of(store, ema_length=0.07)
    given = {k: dict(v) for k, v in manifest["weights"].items()}
    given["base/E1_0"]["expert"] = "E1_1"
    with pytest.raises(ValueError, match="holds expert E1_0, but E1_1 was asked for"):
        load_stages(store, manifest["stages"], given)
    wider = [{**manifest["stages"][0], "experts": {"E1_0": [0.0, 0.6], "E1_1": [0.6, 1.0]}}]
    with pytest.raises(ValueError, match=r"was trained on .*, but should serve"):
        load_stages(store, wider, manifest["weights"])


def test_a_call_may_ask_for_another_length_and_the_next_has_the_ensembles_own(store, monkeypatch):
    own = loader(store)
    monkeypatch.setattr(text_to_image, "encode_prompts", lambda *given: COND)  # no T5 nor CLIP here
    model = TextToImage(
        own.load(), None, None, torch.device("cpu"), {"base": Sampling(steps=4)}, loader=own
    )
    first = model.sample(["a frog"])
    longer = model.sample(["a frog"], sampling={"ema_length": 0.07})
    assert not (longer == first).all()
    assert (model.sample(["a frog"]) == first).all()
    assert (model.sample(["a frog"], sampling={"base.ema_length": 0.07}) == longer).all()
    with pytest.raises(ValueError, match="`ema_length` is"):
        model.sample(["a frog"], sampling={"ema_length": 0.4})


def test_a_node_of_a_store_is_named_by_length_and_content(store, path):
    file = averages.file_of(store, path, 0.07)
    assert file.name.startswith("0.07-") and len(file.stem) == len("0.07-") + 16
    card = read(file)[1]
    assert to_bytes(read(file)[0], card)[0] == file.read_bytes()
    assert HALVES[card.expert] == card.interval
