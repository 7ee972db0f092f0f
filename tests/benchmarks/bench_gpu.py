"""The paper-size networks on a GPU: images/s, share of the card's matrix rate, peak memory.

Every preset, eager and compiled, over a sweep of batches; each way in a process of its own, so that
one that runs out of memory ends alone. Needs nothing but torch, numpy and safetensors:

    python tests/benchmarks/bench_gpu.py                          # all presets
    python tests/benchmarks/bench_gpu.py --presets base64 --batches 16 32
    python tests/benchmarks/bench_gpu.py --device cpu --presets smoke --batches 2    # a try
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import report

sys.path.insert(0, str(Path(__file__).parents[2]))

from ediffi_core.conditioning import Conditioning
from ediffi_core.precond import Denoiser, denoising_loss
from ediffi_core.unet import PRESETS, UNet
from ediffi_core.unet.config import SIZES

TOKENS, WARMUP, ROUNDS = 77, 3, 10
BATCHES = (8, 16, 32, 64)


def conditioning(preset: str, batch: int, device: str) -> Conditioning:
    config = PRESETS[preset]
    sequences = [s for s in config.embeddings if s.kind == "sequence"]
    low_res = torch.rand(batch, 3, config.resolution // 4, config.resolution // 4) * 2 - 1
    return Conditioning(
        {s.name: torch.randn(batch, TOKENS, s.dim) for s in sequences},
        {s.name: torch.ones(batch, TOKENS, dtype=torch.bool) for s in sequences},
        {s.name: torch.randn(batch, s.dim) for s in config.embeddings if s.kind == "pooled"},
        low_res=low_res if config.low_res else None,
    ).to(device)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device: str, work: Any) -> float:
    for _ in range(WARMUP):
        work()
    taken = []
    for _ in range(ROUNDS):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - start)
    return median(taken)


def matrix_rate(device: str) -> float:
    """Operations a second of a large bf16 product: what the card does at its best."""
    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(device, lambda: a @ b)


def measure(preset: str, batch: int, compiled: bool, checkpointed: bool, device: str) -> Any:
    """Training steps (forward, backward, AdamW) in bf16 with float32 weights; → figures."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    with torch.device(device):
        net = UNet(PRESETS[preset])
    model = Denoiser(net).to(memory_format=torch.channels_last)
    if checkpointed:
        net.checkpointed = frozenset(range(PRESETS[preset].levels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    side, cond = PRESETS[preset].resolution, conditioning(preset, batch, device)
    x = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    sigma = torch.rand(batch, device=device, dtype=torch.float64) + 0.1
    eps = torch.randn_like(x)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = denoising_loss(forward, model.sigma_data, x, sigma, eps, cond).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    took = seconds(device, step)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    operations = 3 * SIZES[preset].gflops * 1e9 * batch  # a backward pass costs two forward ones
    return {"images_per_s": batch / took, "rate": operations / took, "peak_gib": peak}


def in_a_process(arguments: list[str]) -> Any:
    run = subprocess.run(
        [sys.executable, __file__, "--child", *arguments], capture_output=True, text=True
    )
    if run.returncode == 0:
        return json.loads(run.stdout.splitlines()[-1])
    if "OutOfMemoryError" in run.stderr:
        return None
    raise SystemExit(run.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["base64", "sr256", "sr1024"])
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--device", default="cuda")
    options, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --device cpu --presets smoke tries the script")
    best = in_a_process(["matrix", options.device])
    rows = []
    for preset in options.presets:
        for way in ("eager", "compiled", "compiled, checkpointed"):
            for batch in options.batches:
                found = in_a_process([preset, str(batch), way, options.device])
                row = f"| {preset} | {way} | {batch} | "
                if found is None:
                    rows.append(row + "out of memory | | |")
                    break  # a larger batch will not fit either
                rows.append(
                    row + f"{found['images_per_s']:.1f} | {100 * found['rate'] / best:.0f} % | "
                    f"{found['peak_gib']:.1f} GiB |"
                )
                print(rows[-1], file=sys.stderr, flush=True)
    report(
        "The paper-size networks",
        [
            f"Training steps in bf16, weights and AdamW in float32, channels-last, {TOKENS} tokens "
            f"a sequence; median of {ROUNDS} steps. The card multiplies bf16 matrices at "
            f"{best / 1e12:.0f} TFLOP/s; the share counts three forward passes a step.",
            "",
            "| network | way | batch | images/s | share of the matrix rate | peak memory |",
            "|---|---|---|---|---|---|",
            *rows,
        ],
    )


def child(what: str, *arguments: str) -> None:
    if what == "matrix":
        print(matrix_rate(arguments[0]))
        return
    batch, way, device = arguments
    print(json.dumps(measure(what, int(batch), "compiled" in way, "checkpointed" in way, device)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
