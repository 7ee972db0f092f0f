"""Does a caption decide which of two things stands left? Every ordered pair of the trained demo.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``. Numbers are the demo scorer's.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from harness import report
from measure_control import SEED, loaded, noun

from pipelines.demo.scenes import GROUNDS, PAIRED, PLACES, held_out_ground, held_out_pair

FORMS = ("{0} left of {1}", "{0} on the left and {1} on the right")
REVERSED = "{1} right of {0}"
"""No caption of training names the right thing first."""

PAIRS = list(itertools.permutations(PAIRED, 2))


def main() -> None:
    torch.set_num_threads(2)
    model, scorer = loaded()
    asked = np.array(PAIRS)
    held = np.array([held_out_pair(a, b) for a, b in PAIRS])
    lines = [
        f"All {len(PAIRS)} ordered pairs of the {len(PAIRED)} things that appear in pairs, on a "
        "ground that training shows with both.",
        "",
        "| prompt | training shows the two together | things | where the prompt says "
        "| on the other side |",
        "|---|---|---|---|---|",
    ]
    for form in (*FORMS, REVERSED):
        rng = np.random.default_rng(SEED)
        prompts = [
            f"{form.format(noun(a), noun(b))}, on a {ground(a, b, rng)} background"
            for a, b in PAIRS
        ]
        read = scorer.read(model.sample(prompts, seed=SEED)).concepts
        left, right = read[:, PLACES.index("left")], read[:, PLACES.index("right")]
        there = np.stack([left == asked[:, 0], right == asked[:, 1]], axis=1)
        swapped = np.stack([right == asked[:, 0], left == asked[:, 1]], axis=1)
        for shown, rows in (("yes", ~held), ("never", held)):
            shares = f"{there[rows].mean():.2f} | {swapped[rows].mean():.2f}"
            lines.append(
                f"| {form.format('a frog', 'a rocket')} | {shown} | {2 * rows.sum()} | {shares} |"
            )
    report("Places: which of two things stands left", lines)


def ground(a: int, b: int, rng: np.random.Generator) -> str:
    """A ground on which training shows both things."""
    shown = [name for name in GROUNDS if name not in {held_out_ground(a), held_out_ground(b)}]
    return str(rng.choice(shown))


if __name__ == "__main__":
    main()
