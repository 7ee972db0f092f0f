"""What the watermark costs, survives and claims wrongly, on drawn and on composed pictures."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness import report
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from pipelines.demo.scenes import draw  # noqa: E402
from pipelines.lineage.lookup import find_model  # noqa: E402
from pipelines.models.text_to_image import TextToImage  # noqa: E402
from pipelines.serving.marks import find_mark, mark, threshold  # noqa: E402
from pipelines.spec.serving import Marks  # noqa: E402

KEY, INVISIBLE = b"of the measurement", Marks(invisible=True)
MARKED, UNMARKED, BATCH = 200, 2600, 25
PROMPTS = [
    "a frog on a pink background",
    "a rocket and a frog",
    "a tomato left of a cat",
    "a red car on a blue background",
    "a bird",
]
Pixels = np.ndarray[Any, Any]


def saved(pixels: Pixels, kind: str, **how: Any) -> Pixels:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **how)
    return np.asarray(Image.open(out).convert("RGB"))


def resized(pixels: Pixels, *sides: int) -> Pixels:
    image = Image.fromarray(pixels)
    for side in sides:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


CHANGES = {
    "PNG": lambda x: saved(x, "PNG"),
    "JPEG, quality 90": lambda x: saved(x, "JPEG", quality=90),
    "JPEG, quality 75": lambda x: saved(x, "JPEG", quality=75),
    "JPEG, quality 50": lambda x: saved(x, "JPEG", quality=50),
    "JPEG, quality 30": lambda x: saved(x, "JPEG", quality=30),
    "WebP, quality 80": lambda x: saved(x, "WEBP", quality=80),
    "10 % brighter": lambda x: np.clip(np.rint(x * 1.1), 0, 255).astype(np.uint8),
    "10 % darker": lambda x: np.rint(x * 0.9).astype(np.uint8),
    "4 pixels cut off each side": lambda x: x[4:-4, 4:-4],
    "16 pixels cut off two sides": lambda x: x[16:, 16:],
    "enlarged twice, and back": lambda x: resized(x, 128, 64),
    "halved, and back": lambda x: resized(x, 32, 64),
    "turned by 1°": lambda x: np.asarray(Image.fromarray(x).rotate(1, Image.Resampling.BICUBIC)),
    "the visible sign": lambda x: mark(x, Marks(visible=True)),
    "enlarged 1.5 times": lambda x: resized(x, 96),
    "mirrored": lambda x: np.ascontiguousarray(x[:, ::-1]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=ROOT / "ediffi-store", help="a done demo's")
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest  # the report has options of its own
    model = TextToImage.load(find_model("emoji-scenes", str(given.store)), "all", str(given.store))
    prompts = PROMPTS * (BATCH // len(PROMPTS))
    drawn = np.concatenate([model.sample(prompts, seed=s) for s in range(MARKED // BATCH)])
    composed = np.stack([draw(7, "train", i)[1] for i in range(UNMARKED)])

    unmarked = np.array([find_mark(x, KEY).z for x in [*drawn, *composed]])
    marked = {
        "drawn": [(x, mark(x, INVISIBLE, KEY)) for x in drawn],
        "composed": [(x, mark(x, INVISIBLE, KEY)) for x in composed[:MARKED]],
    }
    errors = {
        name: [np.mean((m.astype(float) - x) ** 2) for x, m in pairs]
        for name, pairs in marked.items()
    }
    psnr = {name: np.mean(10 * np.log10(255**2 / np.array(e))) for name, e in errors.items()}
    rows = []
    for change, apply in CHANGES.items():
        found = [
            np.mean([find_mark(apply(m), KEY).is_marked for _, m in pairs])
            for pairs in marked.values()
        ]
        rows.append(f"| {change} | " + " | ".join(f"{share:.1%}" for share in found) + " |")
    report(
        "Watermark",
        [
            f"{MARKED} pictures drawn by the demo and {MARKED} that it composes for training, all "
            f"64×64; PSNR {psnr['drawn']:.1f} and {psnr['composed']:.1f} dB. At a threshold of "
            f"z = {threshold():.2f}, {np.sum(unmarked > threshold())} of {len(unmarked):,} "
            f"unmarked pictures are taken for marked; their highest z is {unmarked.max():.2f}.",
            "",
            "| found after | drawn | composed |",
            "|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
