"""An exported folder loads with torch and safetensors alone, and is the ensemble of the store."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ensemble_kit
import pytest
import snapshot_kit
import torch
from fake_gpu import FakeGPU

from ediffi_core.cascade import sample
from ediffi_core.checkpoint import read
from ediffi_core.conditioning import Conditioning
from ediffi_core.pretrained import load_cascade
from pipelines.interchange import export as exporting
from pipelines.interchange.export import Options, export
from pipelines.models import averages
from pipelines.models.manifest import read_manifest
from pipelines.models.stages import load_stages
from pipelines.store.artifacts import Store

EXPERTS = ("base/E1_0", "base/E1_1", "sr16/E0_0")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def conditioning(rows=2):
    generator = torch.Generator().manual_seed(1)
    tokens = {n: torch.randn(rows, 3, d, generator=generator) for n, d in (("t5", 64),)}
    tokens["clip_text"] = torch.randn(rows, 4, 128, generator=generator)
    vectors = {n: torch.randn(rows, 128, generator=generator) for n in ("clip_text_pooled",)}
    masks = {n: torch.ones(t.shape[:2], dtype=torch.bool) for n, t in tokens.items()}
    return Conditioning(tokens, masks, vectors | {"clip_image": torch.zeros(rows, 128)})


def drawn(stages):
    return dict(sample(stages, conditioning(), seed=3))


@pytest.fixture(scope="module")
def expected(store, manifest):
    d = read_manifest(manifest)
    return drawn(load_stages(store, d["stages"], d["weights"]))


def test_the_folder_is_complete(exported):
    files = {str(f.relative_to(exported)) for f in exported.rglob("*") if f.is_file()}
    assert {"model_index.json", "pipeline.py", "README.md", "cascade/config.json"} <= files
    assert {f"cascade/{e}/{f}" for e in EXPERTS for f in ("config.json", WEIGHTS)} <= files
    assert {"encoders/t5/tokenizer.json", "encoders/clip/open_clip_config.json"} <= files
    assert {"ediffi_core/pretrained.py", "ediffi_core/LICENSE"} <= files
    assert not [f for f in files if "__pycache__" in f or f.endswith((".tmp", ".bin", ".pkl"))]


def test_no_file_names_the_store(exported, store):
    names = [store.root.encode(), str(Path.home()).encode()]
    texts = {f: f.read_bytes() for f in exported.rglob("*") if f.suffix in (".json", ".md", ".py")}
    assert len(texts) > 10
    assert [str(f) for f, text in texts.items() if any(name in text for name in names)] == []


def test_nothing_is_left_beside_the_folder(exported):
    assert [p.name for p in exported.parent.iterdir()] == [exported.name]


def test_float32_weights_are_copied_byte_for_byte_and_not_linked(exported, store):
    for expert in EXPERTS:
        copy = exported / f"cascade/{expert}" / WEIGHTS
        original = Path(store.full(f"nodes/train/{expert}.safetensors"))
        assert copy.read_bytes() == original.read_bytes()
        assert not copy.samefile(original)


@pytest.mark.parametrize("residency", [None, "all", "current", "disk"])
def test_it_draws_the_same_bits_as_the_store_s_ensemble(exported, expected, residency):
    found = drawn(load_cascade(exported, residency=residency))
    assert found.keys() == expected.keys() == {"base", "sr16"}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(x.std() > 0.1 for x in found.values())


def test_the_residency_of_the_export_is_the_default(manifest, exported, tmp_path):
    export(manifest, tmp_path / "model", Options(residency="disk"))
    [base, _] = load_cascade(tmp_path / "model")
    [held, _] = load_cascade(exported)
    assert type(base.denoiser).__name__ == "SwappedEnsemble"
    assert type(held.denoiser).__name__ == "Ensemble"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_types_halve_the_weights_and_keep_the_cards(
    manifest, exported, expected, dtype, tmp_path
):
    export(manifest, tmp_path / "model", Options(dtype=dtype))
    for expert in EXPERTS:
        small, card = read(tmp_path / f"model/cascade/{expert}" / WEIGHTS)
        full, was = read(exported / f"cascade/{expert}" / WEIGHTS)
        assert {t.dtype for t in small.values()} == {getattr(torch, dtype)}
        assert card.weights_sha256 != was.weights_sha256
        assert (card.expert, card.interval, card.network) == (was.expert, was.interval, was.network)
        assert all(torch.equal(small[k], full[k].to(small[k].dtype)) for k in full)
    found = drawn(load_cascade(tmp_path / "model"))
    assert 0 < (found["base"] - expected["base"]).abs().mean() < 0.1


@pytest.mark.parametrize("residency", ["all", "current", "disk"])
def test_networks_may_compute_in_a_smaller_type(exported, expected, residency):
    stages = load_cascade(exported, dtype=torch.bfloat16, residency=residency)
    parameters = {p.dtype for s in stages for p in s.denoiser.parameters()}
    buffers = {b.dtype for s in stages for b in s.denoiser.buffers()}
    assert (parameters, buffers) == ({torch.bfloat16}, {torch.float32})
    assert {s.precision for s in stages} == {"bfloat16"}
    found = drawn(stages)
    assert found["sr16"].dtype == torch.float32
    assert 0 < (found["base"] - expected["base"]).abs().mean() < 0.2


def test_a_slot_that_an_ancestor_serves_shares_its_weights(store, manifest, tmp_path):
    d = read_manifest(manifest)
    root = {"path": "nodes/train/sr16/E0_0.safetensors", "expert": "E0_0"}
    d["stages"] = [{**d["stages"][1], "experts": {"E1_0": [0.0, 0.5], "E1_1": [0.5, 1.0]}}]
    d["weights"] = {"sr16/E1_0": root, "sr16/E1_1": root}
    (tmp_path / "ensemble.json").write_text(json.dumps(d))
    export(tmp_path / "ensemble.json", tmp_path / "model")
    assert len(list((tmp_path / "model").rglob(WEIGHTS))) == 1
    [stage] = load_cascade(tmp_path / "model")
    low, high = stage.denoiser.experts
    assert low.name == "E1_0" and low.denoiser is high.denoiser
    assert "**E0_0**, serves E1_0 and E1_1" in (tmp_path / "model/README.md").read_text()


def test_an_average_of_another_length_is_what_is_exported(store, tmp_path):
    own = Store.at(str(tmp_path / "store"))
    snapshot_kit.write_ensemble(own, snapshot_kit.CONFIG)
    d = read_manifest(own.local("ensemble.json"))
    shutil.copytree(store.local("nodes/encoders"), own.local("nodes/encoders"))
    d |= {"model": "wandering", "encoders_folder": "nodes/encoders/tiny", "encoders": {}}
    d["stages"][0]["sampling"]["ema_length"] = 0.07
    (tmp_path / "ensemble.json").write_text(json.dumps(d))
    export(tmp_path / "ensemble.json", tmp_path / "model")
    for name in ("E1_0", "E1_1"):
        found, _ = read(tmp_path / f"model/cascade/base/{name}" / WEIGHTS)
        path = d["weights"][f"base/{name}"]["path"]
        expected, _ = read(averages.file_of(own, path, 0.07))
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert "ema_length" not in (tmp_path / "model/cascade/config.json").read_text()
    assert "of length σ_rel = 0.07" in (tmp_path / "model/README.md").read_text()
    assert len(load_cascade(tmp_path / "model")) == 1


ALONE = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import torch, ediffi_core
from ediffi_core.pretrained import load_cascade
from ediffi_core.cascade import sample
from ediffi_core.conditioning import Conditioning
tokens, masks, vectors = torch.load("cond.pt", weights_only=True)
pictures = dict(sample(load_cascade("model"), Conditioning(tokens, masks, vectors), seed=3))
torch.save(pictures, "pictures.pt")
print(ediffi_core.__file__)
"""
BLOCKED = ("pipelines", "transformers", "diffusers", "open_clip", "huggingface_hub", "pydantic")


@pytest.mark.slow
def test_the_folder_brings_the_code_that_loads_it(exported, expected, tmp_path):
    """In a process that has torch, numpy, safetensors and the folder, and nothing else of ours."""
    shutil.copytree(exported, tmp_path / "model")
    cond = conditioning()
    torch.save((cond.sequences, cond.masks, cond.pooled), tmp_path / "cond.pt")
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(blocked=BLOCKED)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "model"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "model/ediffi_core/__init__.py")
    found = torch.load(tmp_path / "pictures.pt", weights_only=True)
    assert all(torch.allclose(found[name], x, atol=1e-4) for name, x in expected.items())


# -- mistakes ------------------------------------------------------------------------------------


@pytest.fixture
def copy(exported, tmp_path):
    shutil.copytree(exported / "cascade", tmp_path / "model/cascade")
    return tmp_path / "model"


def test_damaged_weights_are_refused(copy):
    file = copy / "cascade/base/E1_0" / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: its weights hash to"):
        load_cascade(copy)


def test_exchanged_weights_are_refused(copy):
    low, high = (copy / f"cascade/base/{e}" for e in ("E1_0", "E1_1"))
    low.rename(copy / "other")
    high.rename(low)
    (copy / "other").rename(high)
    with pytest.raises(ValueError, match="holds expert E1_1, but E1_0 was asked for"):
        load_cascade(copy)


def test_weights_of_another_training_are_refused(copy, manifest, tmp_path):
    export(manifest, tmp_path / "small", Options(dtype="bfloat16"))
    place = f"cascade/base/E1_0/{WEIGHTS}"
    shutil.copyfile(tmp_path / "small" / place, copy / place)
    with pytest.raises(ValueError, match=r"is not the file that .*config\.json describes"):
        load_cascade(copy)


def test_a_disk_that_changes_under_a_loaded_ensemble_is_noticed(copy):
    stages = load_cascade(copy, residency="disk")
    (copy / "cascade/base/E1_1" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        drawn(stages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1; update ediffi"),
        ({"residency": "nowhere"}, "residency 'nowhere' is unknown; choose one of all, current"),
        ({"format": None}, "has format None"),
    ],
)
def test_a_folder_of_another_version_is_refused(copy, change, message):
    file = copy / "cascade/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_cascade(copy)


def test_a_setting_of_a_later_version_is_refused(copy):
    file = copy / "cascade/config.json"
    config = json.loads(file.read_text())
    config["stages"][0]["sampling"]["sparkle"] = 1
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="there is no sampling setting 'sparkle'"):
        load_cascade(copy)


def test_any_other_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not of an exported model.*`ediffi export` writes"):
        load_cascade(tmp_path)


def test_a_folder_with_something_in_it_is_left_alone(manifest, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; name another folder, or add --force"):
        export(manifest, tmp_path)
    with pytest.raises(ValueError, match="holds something else than an exported model"):
        export(manifest, tmp_path, force=True)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        export(manifest, tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_earlier_export_is_replaced_when_asked(exported, manifest, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model/old").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export(manifest, tmp_path / "model")
    export(manifest, tmp_path / "model", force=True)
    assert not (tmp_path / "model/old").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_noticed_before_and_while_writing(manifest, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"the model needs .* MB, and .* has 1\.0 kB free"):
        export(manifest, tmp_path / "model")
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.shutil, "copyfile", full)
    with pytest.raises(ValueError, match=r"model cannot be written .*No space left on device"):
        export(manifest, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["weights"]["base/E1_0"].update(path="nodes/gone"),
            "which is expert E1_0; run",
        ),
        (lambda d: d.update(encoders_folder="nodes/gone"), "encoder t5 .* cannot be loaded"),
        (lambda d: d.pop("weights"), "is not an ensemble manifest"),
        (lambda d: d["weights"]["base/E1_0"].update(expert="E1_1"), "holds expert E1_0, but E1_1"),
    ],
)
def test_what_is_missing_is_named(manifest, change, message, tmp_path):
    d = json.loads(manifest.read_text())
    change(d)
    (tmp_path / "ensemble.json").write_text(json.dumps(d))
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "ensemble.json", tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["ensemble.json"]


def test_there_must_be_an_ensemble(tmp_path):
    with pytest.raises(ValueError, match=r"there is no ensemble at .*; give the path of its"):
        export(tmp_path / "ensemble.json", tmp_path / "model")


def test_the_verb_exports(store, tmp_path, capsys, monkeypatch):
    from kit import call

    where = ("--storage", store.root, "--diffusers", tmp_path / "model")
    assert call("export", f"{ensemble_kit.NAME}@candidate", *where, "--license", "mit") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "  base/E1_0" and said[-1].startswith(f"{tmp_path / 'model'}: ")
    assert "license: mit\n" in (tmp_path / "model/README.md").read_text()
    assert call("export", f"{ensemble_kit.NAME}@candidate", *where) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"ediffi: {tmp_path / 'model'} is not empty; name another folder, or")
    assert call("export", "unknown", *where) == 2
    assert "'unknown' is neither an ensemble.json" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("residency", ["all", "current", "disk"])
def test_it_draws_on_a_gpu(exported, residency):
    with FakeGPU():
        stages = load_cascade(exported, "cuda", residency=residency)
        pictures = dict(sample(stages, conditioning().to("cuda"), seed=3))
        assert {p.device.type for s in stages for p in s.denoiser.parameters()} == {"cuda"}
        assert [tuple(x.shape) for x in pictures.values()] == [(2, 3, 8, 8), (2, 3, 16, 16)]
