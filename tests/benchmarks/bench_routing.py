"""What an ensemble costs at inference: three experts routed by σ against one model."""

from __future__ import annotations

import torch
from harness import in_turn, report

from ediffi_core.conditioning import Conditioning
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.noise import EVERYTHING, NoiseDistribution, edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS
from ediffi_core.tree import intervals_of
from ediffi_core.unet import PRESETS, UNet

PICTURES, STEPS, ROUNDS = 8, 25, 9


def denoiser(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(UNet(PRESETS["demo"])).eval().requires_grad_(False)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    noise = NoiseDistribution()
    names = ["E9_511", "M_C", "E3_0"]
    experts = [Expert(n, i, denoiser(k)) for k, (n, i) in enumerate(intervals_of(names).items())]
    one = Ensemble([Expert("E0_0", EVERYTHING, denoiser(0))], noise)
    three = Ensemble(experts, noise)
    sigmas = edm_grid(STEPS)
    x = 80 * torch.randn(PICTURES, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def sample(model: Ensemble) -> torch.Tensor:
        return SOLVERS["deis3"](lambda x, s: model(x, s, Conditioning()), x, sigmas)

    s = in_turn(ROUNDS, one=lambda: sample(one), three=lambda: sample(three))
    report(
        "Sampling: three experts against one model",
        [
            f"{PICTURES} pictures, {STEPS} steps of DEIS-3, the demo's network, one thread, "
            f"median of {ROUNDS} rounds in turn.",
            "",
            f"One model {s['one'] * 1e3:.0f} ms, three experts {s['three'] * 1e3:.0f} ms: "
            f"{s['three'] / s['one']:.3f}×.",
        ],
    )


if __name__ == "__main__":
    main()
