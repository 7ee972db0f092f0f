"""A small ensemble with two text encoders, and captions of several lengths, to probe."""

import numpy as np
import torch

from ediffi_core import draws
from ediffi_core.cascade import CascadeStage
from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.evaluation.job import Source, as_bytes, text_only
from pipelines.evaluation.probes.model import Model
from pipelines.evaluation.scoring import Scorer, Scoring
from pipelines.spec.sampling import Sampling

SIDE, T5, CLIP = 8, 8, 6
COLOURS = ("red", "green", "blue")
SPECS = (
    EmbeddingSpec(name="clip_text", dim=CLIP, kind="sequence"),
    EmbeddingSpec(name="t5", dim=T5, kind="sequence"),
    EmbeddingSpec(name="clip_text_pooled", dim=CLIP, kind="pooled", source="clip_text"),
    EmbeddingSpec(name="clip_image", dim=CLIP, kind="pooled", attended=True),
)


def config(*, cross_attention=(4,)):
    return UNetConfig(
        resolution=SIDE,
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        cross_attention=cross_attention,
        head_channels=8,
        token_dim=12,
        embeddings=SPECS,
    )


def denoiser(seed=0, **of):
    """A denoiser whose weights are all random, none zero."""
    net, random = UNet(config(**of)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=random))
    return Denoiser(net).eval().requires_grad_(False)


def ensemble(low, high):
    return Ensemble(
        [Expert("E1_0", Interval(0.0, 0.5), low), Expert("E1_1", Interval(0.5, 1.0), high)],
        NoiseDistribution(),
    )


class Described(Source):
    """Captions that name a colour in 1 to 3 words, and real pictures with more of it."""

    def __init__(self, count, tokens=3):
        self.count, self.tokens = count, tokens

    def __len__(self):
        return self.count

    def captions(self, rows):
        return [" ".join([COLOURS[row % 3]] * (1 + row % 3)) for row in rows]

    def read(self, rows):
        index = torch.tensor(rows)
        lengths = 1 + index % 3
        mask = torch.arange(self.tokens) < lengths[:, None]
        tokens = {"t5": T5, "clip_text": CLIP}
        cond = Conditioning(
            {
                n: draws.normal(0, n, index, (self.tokens, dim)) * mask[..., None]
                for n, dim in tokens.items()
            },
            dict.fromkeys(tokens, mask),
            {n: draws.normal(0, n, index, (CLIP,)) for n in ("clip_text_pooled", "clip_image")},
        )
        x = 0.3 * draws.normal(0, "real", index, (3, SIDE, SIDE))
        x[torch.arange(len(index)), index % 3] += 0.5
        return text_only(cond), as_bytes(x.clamp(-1, 1))


class ByColour:
    """A CLIP of three features: a picture's mean colour, and the colour that a caption names."""

    def __init__(self, device):
        pass

    def image(self, pictures):
        return torch.from_numpy(
            np.stack([np.asarray(p).mean((0, 1), dtype=np.float32) for p in pictures])
        )

    def text(self, captions):
        return [], torch.eye(3)[[COLOURS.index(caption.split()[0]) for caption in captions]]


def model(of=None, *, count=12, batch=4, tokens=3, **sampling):
    """A model to probe, with 4 steps unless they are given."""
    of = of or ensemble(denoiser(0), denoiser(1))
    settings = Sampling(**{"steps": 4, "solver": "euler", **sampling})
    return Model(
        source=Described(count, tokens),
        stage=CascadeStage(
            name="base",
            denoiser=of,
            resolution=SIDE,
            steps=settings.steps,
            solver=settings.solver,
            guidance=settings.guidance.scale,
        ),
        sampling=settings,
        scorer=Scorer(Scoring(clip=ByColour), None, "cpu"),
        seed=0,
        batch=batch,
        device="cpu",
        progress=lambda done, of: None,
    )
