"""What a device holds while three experts take turns, by residency.

On a GPU the device's own peak; without one, the process's anonymous memory, in which a checkpoint
that is mapped from its file does not count, as host memory does not count on a GPU.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from harness import report
from safetensors.torch import load_file, save_file

from ediffi_core.conditioning import Conditioning
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.noise import EVERYTHING, NoiseDistribution, edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.residency import SwappedEnsemble
from ediffi_core.sampling import SOLVERS
from ediffi_core.tree import intervals_of
from ediffi_core.unet import PRESETS, UNet

EXPERTS, PICTURES, STEPS = ["E9_511", "M_C", "E3_0"], 2, 12
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NETWORK = dataclasses.replace(PRESETS["demo"], channels=160, head_channels=32)
WAYS = ("one model", "all", "current", "disk")


def denoiser(file: Path) -> Denoiser:
    with torch.device("meta"):
        model = Denoiser(UNet(NETWORK))
    model.to_empty(device=DEVICE)
    model.load_state_dict(load_file(file))
    return model.eval().requires_grad_(False)


def ensemble(way: str, folder: Path) -> Ensemble:
    noise, intervals = NoiseDistribution(), intervals_of(EXPERTS)
    files = {name: folder / f"{name}.safetensors" for name in EXPERTS}
    if way == "one model":
        return Ensemble([Expert("E0_0", EVERYTHING, denoiser(files["M_C"]))], noise)
    if way == "all":
        return Ensemble([Expert(n, i, denoiser(files[n])) for n, i in intervals.items()], noise)
    held = {n: load_file(f) for n, f in files.items()} if way == "current" else {}
    load = {n: lambda n=n: held.get(n) or load_file(files[n]) for n in EXPERTS}  # type: ignore[misc]
    return SwappedEnsemble(denoiser(files["M_C"]), intervals, load, noise)


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if "RssAnon" in line)) * 1024


class Peak:
    """The most memory the device held inside the block, above what it held before it."""

    def __enter__(self) -> Peak:
        self.over = threading.Event()
        self.bytes = 0
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return self
        self.start = anonymous_bytes()
        self.watch = threading.Thread(target=self._look)
        self.watch.start()
        return self

    def _look(self) -> None:
        while not self.over.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes() - self.start)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if DEVICE == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self.start
        else:
            self.watch.join()


@torch.inference_mode()
def child(way: str, folder: Path) -> None:
    torch.set_num_threads(1)
    shape = (PICTURES, 3, 16, 16)
    x = 80 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    torch.nn.functional.conv2d(x, torch.ones(8, 3, 3, 3, device=DEVICE))  # pays for libraries
    with Peak() as peak:
        model = ensemble(way, folder)
        SOLVERS["deis3"](lambda x, s: model(x, s, Conditioning()), x, edm_grid(STEPS))
    print(peak.bytes)


def measure(way: str, folder: Path) -> int:
    # glibc keeps what is freed; without its arenas the numbers are those of the live tensors.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0",
           "MALLOC_MMAP_THRESHOLD_": "65536"}  # fmt: skip
    command = [sys.executable, __file__, "--child", way, str(folder)]
    return int(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for seed, name in enumerate(EXPERTS):
            torch.manual_seed(seed)
            save_file(Denoiser(UNet(NETWORK)).state_dict(), folder / f"{name}.safetensors")
        size = (folder / "M_C.safetensors").stat().st_size
        peaks = {way: measure(way, folder) for way in WAYS}
    what = "GPU memory" if DEVICE == "cuda" else "anonymous memory"
    report(
        "Residency: what the device holds",
        [
            f"Three experts of {size / 2**20:.0f} MiB, {PICTURES} pictures, {STEPS} steps of "
            f"DEIS-3; peak {what}, each way in a process of its own.",
            "",
            "| residency | peak | against one model |",
            "|---|---|---|",
            *(
                f"| {way} | {peak / 2**20:.0f} MiB | {peak / peaks['one model']:.2f}× |"
                for way, peak in peaks.items()
            ),
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
