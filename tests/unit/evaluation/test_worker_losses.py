"""An evaluation's losses are conditioned on the prompt only, and use one degradation."""

import torch
from torch import nn

from ediffi_core import draws
from ediffi_core.cascade import CascadeStage
from ediffi_core.conditioning import Conditioning
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.noise import EVERYTHING, NoiseDistribution
from pipelines.evaluation.job import Embedded, Job
from pipelines.evaluation.losses import merged, mismatch
from pipelines.evaluation.scoring import Scoring
from pipelines.evaluation.worker import Worker

COUNT = 10


class Shards:
    """Ten pictures of 16 × 16 with a caption's vector and the picture's own."""

    resolution = 16

    def __len__(self):
        return COUNT

    def rows(self, index):
        x = draws.normal(0, "x", index, (3, 16, 16)).clamp(-1, 1)
        vectors = draws.normal(0, "clip", index, (6,))
        return x, Conditioning(pooled={"clip_text_pooled": vectors, "clip_image": vectors + 1})


class Watching(nn.Module):
    def __init__(self, sigma_data):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.sigma_data, self.seen = sigma_data, []

    def forward(self, x, sigma, cond):
        self.seen.append(cond)
        return self.weight * x


def measured(sigma_data=0.5, batch=20, **losses):
    watching = Watching(sigma_data)
    of = Ensemble([Expert("E0_0", EVERYTHING, watching)], NoiseDistribution())
    how = {
        "seed": 0,
        "draws": 40,
        "experts": {"E0_0": [0.0, 1.0]},
        "cut": {"P_mean": -1.2, "P_std": 1.2},
        "noise": {"P_mean": -1.2, "P_std": 1.2},
        "sigma_data": 0.5,
        "validation": "v",
        **losses,
    }
    source = Embedded.__new__(Embedded)
    source.reader = Shards()
    job = Job(
        store=None,
        folder="e",
        source=lambda: source,
        scoring=Scoring(),
        count=COUNT,
        batch=batch,
        losses=how,
    )
    worker = Worker(job)
    worker.source = source
    worker.stages = [CascadeStage(name="base", denoiser=of, resolution=16)]
    chunks = job.loss_chunks(COUNT)
    return merged([worker._losses(chunk) for chunk in chunks]), watching.seen, len(chunks)


def test_the_picture_s_own_embedding_is_not_passed():
    found, seen, _ = measured()
    assert len(found.loss) == 40 and found.how["validation"] == "v"
    for cond in seen:
        assert not cond.pooled["clip_image"].any() and cond.pooled["clip_text_pooled"].all()


def test_small_pictures_are_degraded_as_the_measure_says():
    how = {"factor": 4, "crop": None}
    plain, strong = (
        {"super_resolution": {**how, "degrade": {"probability": p, "gaussian_noise": 0.5}}}
        for p in (0.0, 1.0)
    )
    once, again, other = (measured(**given) for given in (strong, strong, plain))
    for a, b in zip(once[1], again[1], strict=True):
        assert torch.equal(a.low_res, b.low_res) and a.low_res.shape[2:] == (4, 4)
    assert not torch.equal(once[1][0].low_res, other[1][0].low_res)
    assert mismatch(once[0], again[0]) == ""
    assert "super_resolution.degrade.probability: 0.0 → 1.0" in mismatch(once[0], other[0])


def test_the_weight_is_the_measure_s():
    losses = [measured(sigma_data)[0].loss for sigma_data in (0.5, 0.6)]
    assert torch.equal(*losses)


def test_chunks_of_losses_equal_the_whole(monkeypatch):
    whole, _, one = measured(batch=4)
    monkeypatch.setattr("pipelines.evaluation.job.LOSS_DRAWS", 12)
    parts, _, many = measured(batch=4)
    assert (one, many) == (1, 4)
    for name in ("picture", "sigma", "loss"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    assert parts.experts == whole.experts and mismatch(parts, whole) == ""
