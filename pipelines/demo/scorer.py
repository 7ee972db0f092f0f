"""The metric of EmojiScenes: does an image show what its caption asks for?

A small convolutional network recognises the thing at each place and the artist. It is trained on
its own renderings of the five artists' drawings, not on the generators' training images. The ground
is read from the colour of the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.demo import scenes
from pipelines.demo.captions import Ask, parse
from pipelines.demo.classifier_metric import BATCH, ClassifierMetric
from pipelines.demo.drawings import ARTISTS, CONCEPTS, HELD_OUT_ARTIST
from pipelines.demo.scenes import GROUNDS, PLACES, Scene
from pipelines.metrics import Pictures, Progress, Values

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipelines.demo.scorer_network import Network

NOTHING = len(CONCEPTS)
"""Class of an empty place."""

RENDERINGS = 8000
"""Number of different training images."""

CHECKED = 512
"""Number of images to measure its own accuracy on."""

EMPTY = 12
"""Images without things in each batch."""

_BLOCKS = 4  # per side
_GROUND_TOLERANCE = 44.0  # RGB distance; more than half of that between the two closest grounds


@dataclass(frozen=True)
class Reading:
    """What images show."""

    concepts: NDArray[np.int64]
    """[N, 3] index of the concept at each place, or `NOTHING`."""

    artists: NDArray[np.int64]
    """[N] index of the artist."""

    grounds: NDArray[np.int64]
    """[N] index of the ground, −1 if no named colour is close."""


class EmojiScenes(ClassifierMetric["Network"]):
    """Concepts, places, grounds and styles of EmojiScenes; see :meth:`score`."""

    version = 2

    weights_file = "judge.safetensors"

    def __init__(self, images: int = 30_000) -> None:
        """
        Args:
            images: training images seen, in batches of 64.
        """
        super().__init__(images)

    def new_network(self) -> Network:
        """The classifier, not trained yet."""
        from pipelines.demo.scorer_network import Network

        return Network()

    def fit(
        self, folder: Path, *, resolutions: list[int], seed: int, progress: Progress
    ) -> dict[str, float]:
        """Train the classifier for images of these resolutions.

        Returns:
            Accuracies at each resolution, on real scenes of the validation split and, with the
            prefix ``unseen_artist_``, on the same scenes by an artist outside the training data.

        Raises:
            ValueError: A resolution does not divide 64.
        """
        import torch

        from pipelines.demo.classifiers import SIDE, as_input

        if wrong := [r for r in resolutions if SIDE % r]:
            raise ValueError(f"resolutions must divide 64, not {wrong[0]}")
        count = min(RENDERINGS, self.images)
        drawn = [scenes.draw(seed, "scorer", index) for index in range(count)]
        pictures = as_input(np.stack([p for _, p in drawn]))
        targets = _targets([s for s, _ in drawn])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self.new_network()
            self._train(pictures, targets, resolutions, seed, progress)
        self.save(folder)
        found = self._accuracy("", resolutions, seed, None)
        return found | self._accuracy("unseen_artist_", resolutions, seed, HELD_OUT_ARTIST[1])

    def _train(
        self,
        pictures: Tensor,
        targets: tuple[Tensor, Tensor],
        resolutions: list[int],
        seed: int,
        progress: Progress,
    ) -> None:
        import torch
        from torch.nn import functional as F

        from pipelines.demo.classifiers import SIDE, coarse_and_grainy, train

        random = torch.Generator().manual_seed(seed)

        def loss_of(step: int) -> Tensor:
            rows = torch.randint(len(pictures), (BATCH,), generator=random)
            by = torch.randint(-2, 3, (2,), generator=random).tolist()
            x = torch.roll(pictures[rows], by, (2, 3))
            x = coarse_and_grainy(x, resolutions[step % len(resolutions)], SIDE, random)
            things = targets[0][rows]
            x[:EMPTY] = without_things(x[:EMPTY], random)
            things[:EMPTY] = NOTHING
            concepts, artists, _ = self.network(x)
            loss = 2 * F.cross_entropy(concepts.flatten(0, 1), things.flatten())
            return loss + F.cross_entropy(artists[EMPTY:], targets[1][rows][EMPTY:])

        steps = max(2, self.images // BATCH)
        train(self.network, loss_of, steps=steps, batch=BATCH, progress=progress)

    def _accuracy(
        self, prefix: str, resolutions: list[int], seed: int, package: str | None
    ) -> dict[str, float]:
        """Shares of scenes that are recognised correctly."""
        import torch
        from torch.nn import functional as F

        from pipelines.demo.classifiers import SIDE, as_input, as_pictures

        shown = [scenes.compose(seed, "validation", i) for i in range(CHECKED)]
        pictures = as_input(
            np.stack(
                [
                    scenes.paint(s, package or ARTISTS[s.artist], np.random.default_rng([seed, i]))
                    for i, s in enumerate(shown)
                ]
            )
        )
        concepts, artists = _targets(shown)
        alone = torch.tensor([len(s.items) == 1 for s in shown])
        present = concepts != NOTHING
        found = {}
        for side in resolutions:
            reading = self.read(as_pictures(F.avg_pool2d(pictures, SIDE // side)))
            read = torch.from_numpy(reading.concepts)
            is_right = read == concepts
            for name, rows in (("concepts", alone), ("pairs", ~alone)):
                found[f"{prefix}{name}_{side}"] = float(
                    is_right[rows][present[rows]].float().mean()
                )
            placed = ((read != NOTHING) == present).all(dim=1)
            found[f"{prefix}places_{side}"] = float(placed.float().mean())
            if package is None:
                ok = torch.from_numpy(reading.artists) == artists
                found[f"styles_{side}"] = float(ok.float().mean())
        return found

    def read(self, pictures: Pictures) -> Reading:
        """What images, uint8 [N, R, R, 3], show."""
        concepts, artists, _ = self.outputs(pictures)
        return Reading(
            concepts.argmax(dim=2).numpy(), artists.argmax(dim=1).numpy(), grounds(pictures)
        )

    def features(self, pictures: Pictures) -> NDArray[np.float32]:
        """[N, 128]: the network's last features, averaged over the image."""
        out: NDArray[np.float32] = self.outputs(pictures)[2].numpy()
        return out

    def score(self, pictures: Pictures, captions: list[str]) -> dict[str, Values]:
        """Score images against their captions.

        * ``concepts``: for captions of one thing, whether it is anywhere in the image.
        * ``pairs``: for captions of two things, the share that is in the image.
        * ``unseen words``: as ``concepts``, for captions with a word that training never had.
        * ``places``: for captions that name all places, the share of things that stand at theirs.
          Before version 2 it told whether anything stood there.
        * ``grounds``, ``styles``: whether the named ground or artist is right.

        Raises:
            ValueError: A caption cannot be parsed.
        """
        reading = self.read(pictures)
        rows = [_scored(parse(c), reading, n) for n, c in enumerate(captions)]
        names = ("concepts", "pairs", "unseen words", "places", "grounds", "styles")
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def without_things(x: Tensor, random: torch.Generator) -> Tensor:
    """Training images without things, so that the network does not rely on colour alone.

    Half of them have their blocks shuffled, which keeps colours and destroys shapes. A quarter are
    a bare ground, a quarter noise.
    """
    import torch
    from torch.nn import functional as F

    from pipelines.demo.classifiers import SIDE

    count, half = len(x), len(x) // 2
    side = SIDE // _BLOCKS
    blocks = x[:half].unflatten(2, (_BLOCKS, side)).unflatten(4, (_BLOCKS, side))
    blocks = blocks.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [n, blocks², 3, side, side]
    order = torch.rand(half, _BLOCKS**2, generator=random).argsort(dim=1)
    blocks = blocks[torch.arange(half)[:, None], order].unflatten(1, (_BLOCKS, _BLOCKS))
    shuffled = blocks.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    bare = x[half : half + (count - half) // 2, :, :1, :1].expand(-1, -1, SIDE, SIDE)
    left = count - half - len(bare)
    noise = torch.rand(left, 3, SIDE // 4, SIDE // 4, generator=random) * 2 - 1
    return torch.cat([shuffled, bare, F.interpolate(noise, scale_factor=4.0)])


def _scored(ask: Ask, reading: Reading, n: int) -> dict[str, float]:
    there = set(reading.concepts[n].tolist())
    share = sum(item.concept in there for item in ask.items) / len(ask.items)
    alone = "unseen words" if ask.unseen else "concepts"
    found = {"pairs" if len(ask.items) == 2 else alone: share}
    placed = [(item.concept, PLACES.index(item.place)) for item in ask.items if item.place]
    if len(placed) == len(ask.items):
        found["places"] = float(np.mean([reading.concepts[n, p] == c for c, p in placed]))
    if ask.ground:
        found["grounds"] = float(reading.grounds[n] == list(GROUNDS).index(ask.ground))
    if ask.artist:
        found["styles"] = float(reading.artists[n] == list(ARTISTS).index(ask.artist))
    return found


def grounds(pictures: Pictures) -> NDArray[np.int64]:
    """Index of the ground closest to the border's median colour, −1 if none is close. [N]"""
    x = np.asarray(pictures, np.float32)
    edge = max(1, x.shape[1] // 16)
    sides = (x[:, :edge], x[:, -edge:], x[:, :, :edge], x[:, :, -edge:])
    border = np.concatenate([s.reshape(len(x), -1, 3) for s in sides], axis=1)
    named = np.array(list(GROUNDS.values()), np.float32)
    distance = np.linalg.norm(np.median(border, axis=1)[:, None] - named, axis=2)
    return np.where(distance.min(1) < _GROUND_TOLERANCE, distance.argmin(1), -1)


def _targets(shown: list[Scene]) -> tuple[Tensor, Tensor]:
    """Concepts [N, 3] and artists [N] of scenes."""
    import torch

    concepts = torch.full((len(shown), len(PLACES)), NOTHING)
    for n, scene in enumerate(shown):
        for item in scene.items:
            concepts[n, PLACES.index(item.place)] = item.concept
    return concepts, torch.tensor([list(ARTISTS).index(s.artist) for s in shown])
