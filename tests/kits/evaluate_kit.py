"""A cascade of tiny untrained networks, and captions with real pictures, to evaluate without data
or encoders."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ediffi_core import draws, tree
from ediffi_core.checkpoint import Card, to_bytes
from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.noise import NoiseDistribution
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.evaluation.job import Job, Source, as_bytes
from pipelines.evaluation.scoring import Scoring
from pipelines.features.extractor import Extractor

WIDTH = 6
COLOURS = ("red", "green", "blue")


class Captions(Source):
    """Any number of captions that name a colour, and real pictures with more of it."""

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def captions(self, rows):
        return [COLOURS[row % 3] for row in rows]

    def read(self, rows):
        index = torch.tensor(rows)
        vectors = draws.normal(0, "caption", index, (WIDTH,))
        x = 0.3 * draws.normal(0, "real", index, (3, self.side, self.side))
        x[torch.arange(len(index)), index % 3] += 0.5
        return Conditioning(pooled={"clip_text_pooled": vectors}), as_bytes(x.clamp(-1, 1))


class ByColour:
    """A CLIP of three features: a picture's mean colour, and the colour that a caption names."""

    def __init__(self, device: str) -> None:
        pass

    def image(self, pictures):
        return torch.from_numpy(
            np.stack([np.asarray(p).mean((0, 1), dtype=np.float32) for p in pictures])
        )

    def text(self, captions):
        return [], torch.eye(3)[[COLOURS.index(caption) for caption in captions]]


class Blocks(Extractor):
    """Features of 12 numbers: the mean colour of each quarter of a picture."""

    def __init__(self, name: str, device: str) -> None:
        super().__init__(name, device=device)
        self.network = torch.nn.AdaptiveAvgPool2d(2)

    def _batch(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.network(pictures.permute(0, 3, 1, 2).float()).flatten(1)
        return found


def config(side, *, low_res):
    return UNetConfig(
        resolution=side,
        channels=8,
        channel_mult=(1,),
        blocks=1,
        self_attention=(),
        cross_attention=(),
        head_channels=8,
        token_dim=8,
        embeddings=(EmbeddingSpec(name="clip_text_pooled", dim=WIDTH, kind="pooled"),),
        low_res=low_res,
    )


def write_stages(store, *, sides=(8, 16), steps=2):
    """Write a cascade's weights; returns its stages' settings and the weights, as a job has them.

    The first stage has two experts. All weights are random, but none is zero.
    """
    stages, weights = [], {}
    for at, side in enumerate(sides):
        names = ["E1_1", "E1_0"] if not at else ["E0_0"]
        intervals = tree.intervals_of(names)
        for name in names:
            torch.manual_seed(at)
            net = config(side, low_res=at > 0)
            state = Denoiser(UNet(net)).state_dict()
            state = {k: v + 0.05 * torch.randn_like(v) for k, v in state.items()}
            interval = intervals[name]
            card = Card(
                expert=name,
                interval=interval,
                images=1,
                noise=NoiseDistribution(),
                sigma_data=0.5,
                network=net,
                averaged=True,
                parent=None,
            )
            path = f"weights/{side}/{name}.safetensors"
            store.write(path, to_bytes(state, card)[0])
            weights[f"stage{side}/{name}"] = {"path": path, "expert": name}
        stages.append(
            {
                "name": f"stage{side}",
                "resolution": side,
                "sampling": {"steps": steps},
                "experts": {n: [i.q_lo, i.q_hi] for n, i in intervals.items()},
            }
        )
    return stages, weights


def job(store, folder="e", *, count=20, batch=4, sides=(8, 16), steps=2, **more):
    """A job that draws with such a cascade, and scores by :class:`ByColour` and
    :class:`Blocks`."""
    stages, weights = write_stages(store, sides=sides, steps=steps)
    given = {
        "source": partial(Captions, count, sides[-1]),
        "scoring": Scoring(clip=ByColour, features={"blocks": partial(Blocks, "blocks")}),
        "stages": stages,
        "weights": weights,
        "controls": True,
        "shown": 6,
    }
    return Job(store=store, folder=folder, count=count, batch=batch, **{**given, **more})
