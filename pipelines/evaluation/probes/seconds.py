"""Time of one evaluation and of drawing, and the model's capacity (eDiff-I figure 13)."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ediffi_core.precond import Denoiser
from pipelines.evaluation.probes.model import Found, Model
from pipelines.spec.probes import SecondsProbe
from pipelines.training.meters import forward_flops


@torch.inference_mode()
def measure(model: Model, options: SecondsProbe) -> Found:
    """Measure medians of the time, on this machine, after one evaluation that is not counted.

    Parameters are those of one expert (active) and of all distinct ones (stored): slots that the
    same weights serve count once. FLOPs are of one picture.
    """
    [batch, *_] = model.batches(min(options.pictures, model.batch))
    side, count = model.stage.resolution, len(batch.captions)
    x = torch.zeros(count, 3, side, side, device=model.device)
    experts: dict[str, dict[str, Any]] = {}
    times: list[float] = []
    noise, timed = model.ensemble.noise, Timed(model.device, options.repeats)
    for expert in model.ensemble.experts:
        middle = (expert.interval.q_lo + expert.interval.q_hi) / 2
        sigma = torch.tensor(noise.sigma_at(middle), dtype=torch.float64)
        denoiser = expert.denoiser
        taken = timed(partial(denoiser, x, sigma, batch.cond))
        times += taken
        one = slice(0, 1)
        experts[expert.name] = {
            "seconds": median(taken) / count,
            "parameters": parameters(denoiser),
            "flops": forward_flops(denoiser, x[one], sigma, batch.cond[one]),
        }
    model.to_draw = count * (options.repeats + 1)
    drawing = median(timed(partial(model.draw, batch))) / count
    distinct = {id(e.denoiser): e.denoiser for e in model.ensemble.experts}
    flops = max(one["flops"] for one in experts.values())
    found: dict[str, float] = {
        "seconds_evaluation": median(times) / count,
        "seconds_picture": drawing,
        "parameters_active": max(one["parameters"] for one in experts.values()),
        "parameters_stored": sum(parameters(denoiser) for denoiser in distinct.values()),
        "flops_evaluation": flops,
        "flops_picture": flops * model.sampling.network_calls,
    }
    data: dict[str, Any] = {
        **found,
        "machine": machine(model.device),
        "pictures": count,
        "repeats": options.repeats,
        "network_calls": model.sampling.network_calls,
        "experts": experts,
    }
    return Found(data=data, metrics=found)


class Timed:
    """Measures how long something takes, a number of times after one that is not counted."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = torch.device(device), repeats

    def __call__(self, run: Callable[[], object]) -> list[float]:
        """Seconds of each repeat."""
        run()
        found = []
        for _ in range(self.repeats):
            self._wait()
            began = time.perf_counter()
            run()
            self._wait()
            found.append(time.perf_counter() - began)
        return found

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def parameters(denoiser: Denoiser) -> int:
    """Number of a network's parameters."""
    return sum(p.numel() for p in denoiser.parameters())


def machine(device: str) -> Mapping[str, Any]:
    """What the times were measured on."""
    is_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # only Linux has it
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
