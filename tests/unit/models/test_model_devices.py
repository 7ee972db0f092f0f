"""A registered cascade generates on a GPU and waits for it once per batch and stage."""

import pytest
import torch
from cards import card
from fake_gpu import FakeGPU

from ediffi_core.cascade import CascadeStage
from ediffi_core.checkpoint import to_bytes
from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.models.stages import Slot, draw, load_ensemble
from pipelines.store.artifacts import Store

SPECS = (EmbeddingSpec(name="clip_image", dim=6, kind="pooled", attended=True),)
CONFIG = UNetConfig(
    resolution=8,
    channels=8,
    channel_mult=(1, 2),
    blocks=1,
    cross_attention=(4,),
    head_channels=8,
    token_dim=12,
    embeddings=SPECS,
)
HALVES = {"E1_0": Interval(0.0, 0.5), "E1_1": Interval(0.5, 1.0)}


@pytest.fixture
def slots(tmp_path):
    """Two experts' weights in a store."""
    store = Store.at(str(tmp_path))
    for name, interval in HALVES.items():
        data, _ = to_bytes(Denoiser(UNet(CONFIG)).state_dict(), card(name, interval, CONFIG))
        store.write(f"{name}.safetensors", data)
    return store, {n: Slot(f"{n}.safetensors", n, i) for n, i in HALVES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("residency", ["all", "current", "disk"])
def test_experts_from_a_store_draw_on_a_gpu(slots, residency):
    with FakeGPU() as gpu:
        ensemble = load_ensemble(*slots, residency, "cuda")
        stage = CascadeStage(name="base", denoiser=ensemble, resolution=8, steps=4, guidance=1.0)
        cond = Conditioning(pooled={"clip_image": torch.ones(3, 6)}).to("cuda")
        gpu.syncs.clear()
        found = draw([stage], cond, seed=[1, 2, 3], batch=2)["base"]
        assert (tuple(found.shape), found.dtype) == ((3, 8, 8, 3), torch.uint8)
        # For each of two batches: initial noise, two finiteness checks and the images.
        assert gpu.syncs == {"copied there": 2, "number read": 4, "copied back": 2}
