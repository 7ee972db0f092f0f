"""Time of one evaluation and of drawing, and the model's capacity (eDiff-I figure 13)."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ediffi_core.precond import Denoiser
from pipelines.evaluation.probes.model import Found, Model
from pipelines.spec.probes import SecondsProbe
from pipelines.training.meters import forward_flops

DRAWING = ""
"""Name of a whole drawing, among those of experts."""


@torch.inference_mode()
def measure(model: Model, options: SecondsProbe) -> Found:
    """Measure medians of the time, on this machine, after one evaluation that is not counted.

    Parameters are those of one expert (active) and of all distinct ones (stored): slots that the
    same weights serve count once. FLOPs are of one picture.
    """
    [batch, *_] = model.batches(min(options.pictures, model.batch))
    side, count = model.stage.resolution, len(batch.captions)
    x = torch.zeros(count, 3, side, side, device=model.device)
    noise, calls = model.ensemble.noise, dict[str, Callable[[], object]]()
    experts: dict[str, dict[str, Any]] = {}
    for expert in model.ensemble.experts:
        middle = (expert.interval.q_lo + expert.interval.q_hi) / 2
        sigma = torch.tensor(noise.sigma_at(middle), dtype=torch.float64)
        calls[expert.name] = partial(expert.denoiser, x, sigma, batch.cond)
        one = slice(0, 1)
        experts[expert.name] = {
            "parameters": parameters(expert.denoiser),
            "flops": forward_flops(expert.denoiser, x[one], sigma, batch.cond[one]),
        }
    model.to_draw = count * (options.repeats + 1)
    calls[DRAWING] = partial(model.draw, batch)
    times = timed(calls, model.device, options.repeats)
    drawing = median(times.pop(DRAWING)) / count
    for name, taken in times.items():
        experts[name]["seconds"] = median(taken) / count
    distinct = {id(e.denoiser): e.denoiser for e in model.ensemble.experts}
    flops = max(one["flops"] for one in experts.values())
    found: dict[str, float] = {
        "seconds_evaluation": median(chain.from_iterable(times.values())) / count,
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


def timed(
    calls: Mapping[str, Callable[[], object]], device: str, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each call, a number of times after one that is not counted.

    The calls take turns, so that other load on the machine meets all of them alike.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            began = _now(device)
            call()
            if turn:
                found[name].append(_now(device) - began)
    return found


def _now(device: str) -> float:
    """The time once the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
