"""What paint-with-words costs: an evaluation with painted phrases against one without."""

from __future__ import annotations

import dataclasses

import torch
from harness import in_turn, report

from ediffi_core.conditioning import Conditioning, EmbeddingSpec, Paint
from ediffi_core.precond import Denoiser
from ediffi_core.unet import PRESETS, UNet

PICTURES, TOKENS, DIM, ROUNDS = 8, 77, 256, 15
SPECS = (
    EmbeddingSpec(name="clip_text", dim=DIM, kind="sequence"),
    EmbeddingSpec(name="t5", dim=DIM, kind="sequence"),
)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = dataclasses.replace(
        PRESETS["demo"], resolution=32, channels=64, self_attention=(16, 8),
        cross_attention=(16, 8), embeddings=SPECS,
    )  # fmt: skip
    net = Denoiser(UNet(config)).eval()
    x = torch.randn(PICTURES, 3, 32, 32)
    sigma = torch.tensor(2.0, dtype=torch.float64)
    names = [s.name for s in SPECS]
    cond = Conditioning(
        {n: torch.randn(PICTURES, TOKENS, DIM) for n in names},
        {n: torch.ones(PICTURES, TOKENS, dtype=torch.bool) for n in names},
    )
    maps = {n: torch.zeros(PICTURES, TOKENS, 64, 64) for n in names}
    for m in maps.values():
        m[:, 3:5, :, :32] = 0.4
        m[:, 8:10, :, 32:] = 0.4
    ways = {
        "plain": cond,
        "max": dataclasses.replace(cond, paint=Paint(maps)),
        "std": dataclasses.replace(cond, paint=Paint(maps, "std")),
    }
    s = in_turn(ROUNDS, **{n: lambda c=c: net(x, sigma, c) for n, c in ways.items()})  # type: ignore[misc]
    size = sum(p.numel() for p in net.parameters()) / 1e6
    report(
        "Paint-with-words: cost of an evaluation",
        [
            f"{PICTURES} pictures of 32×32, {size:.1f} M parameters, twice {TOKENS} tokens, one "
            f"thread, median of {ROUNDS} rounds in turn.",
            "",
            f"Without paint {s['plain'] * 1e3:.0f} ms; painted, weight by the maximum "
            f"{s['max'] / s['plain']:.3f}×, by the standard deviation "
            f"{s['std'] / s['plain']:.3f}×.",
        ],
    )


if __name__ == "__main__":
    main()
