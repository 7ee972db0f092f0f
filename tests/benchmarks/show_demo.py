"""The README's pictures of the trained demo: twelve prompts, and what comes closest in training.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``. Prompts and seed are fixed;
nothing is chosen by its looks.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.data.contact_sheet import Sample, draw_sheet
from pipelines.demo.captions import parse, write
from pipelines.demo.drawings import CONCEPTS, indices
from pipelines.demo.scenes import GROUNDS, compose, draw, generator, is_trained
from pipelines.demo.scenes import Item as Thing
from pipelines.lineage.lookup import find_model
from pipelines.models.text_to_image import TextToImage
from pipelines.spec.loading import load

ROOT = Path(__file__).parents[2]
PROMPTS = (
    "a frog, on a pink background",
    "a penguin, on a yellow background, Twemoji style",
    "a tractor, on green, Noto style",
    "a crown, on a green background",
    "a jack-o-lantern, on purple, EmojiOne style",
    "a snowman, on pink, Fluent style",
    "a frog left of a strawberry, on a blue background",
    "a rocket left of a penguin, on yellow, Noto v1 style",
    "a kitten, on a blue background",
    "a toad, on grey",
    "a spaceship, on a yellow background",
    "a cheeseburger, on a pink background",
)
COUNT = 8


def note(prompt: str) -> str:
    """What of a prompt training had not."""
    ask = parse(prompt)
    if ask.unseen:
        return "no caption had the word"
    places = ("left", "right") if len(ask.items) == 2 else ("centre",)
    things = tuple(Thing(i.concept, i.place or p) for i, p in zip(ask.items, places, strict=True))
    shown = any(is_trained(things, g) for g in ([ask.ground] if ask.ground else GROUNDS))
    return "trained as it is" if shown else "pair never trained"


def nearest(pictures: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Number of the training picture with the least squared difference. [N]"""
    flat = training.reshape(len(training), -1).astype(np.float32)
    squares = (flat**2).sum(1)
    made = pictures.reshape(len(pictures), -1).astype(np.float32)
    return (squares - 2 * made @ flat.T).argmin(1)


def main() -> None:
    torch.set_num_threads(2)
    model = TextToImage.load(
        find_model("emoji-scenes", os.environ.get("EDIFFI_STORE", "ediffi-store"))
    )
    drawn = model.sample(PROMPTS, seed=[0] * len(PROMPTS))
    pairs = [Sample(note(t), t, Image.fromarray(p)) for p, t in zip(drawn, PROMPTS, strict=True)]
    save(draw_sheet(pairs, "twelve prompts at 64×64, one seed"), "prompts.png")

    demo = load(ROOT / "pipelines" / "specs" / "demo.yaml")
    chosen = indices(demo.data.train.concepts)
    training = [draw(demo.seed, "train", i, chosen) for i in range(demo.data.train.rows)]
    asked = [compose(demo.seed, "validation", i, chosen) for i in range(COUNT)]
    captions = [
        write(s, generator(demo.seed, "validation", i, "caption")) for i, s in enumerate(asked)
    ]
    made = model.sample(captions, seed=0)
    closest = nearest(made, np.stack([p for _, p in training]))
    both = []
    for picture, caption, row in zip(made, captions, closest, strict=True):
        scene = training[row][0]
        things = " and ".join(CONCEPTS[i.concept].name for i in scene.items)
        both.append(Sample("drawn", caption, Image.fromarray(picture)))
        told = f"{things}, on {scene.ground}, {scene.artist} style"
        both.append(Sample(f"nearest: train-{row:06d}", told, Image.fromarray(training[row][1])))
    title = "eight held-out captions, and the nearest training picture of each"
    save(draw_sheet(both, title), "nearest.png")


def save(picture: Image.Image, name: str) -> None:
    """Of 256 colours, at two thirds of the side: a fifth of the bytes."""
    small = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3))
    small.quantize(256).save(ROOT / ".github" / name, optimize=True)


if __name__ == "__main__":
    main()
