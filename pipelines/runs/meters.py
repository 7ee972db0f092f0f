"""What a step costs its machine, as ``system/…`` metrics: read from the kernel, without a thread.

A process reads what is its own with :class:`SystemMeter`; the driver reads the machine it shares
with its workers with :class:`MachineMeter`. GPUs are asked through NVML. Where the system or a
driver does not tell a number, its key is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVERY_S = 12.0
GB = 1e9


class Gauge:
    """A share of time: how much of the time since the last look was spent at work."""

    def __init__(self) -> None:
        self.busy_s = self.all_s = 0.0

    def percent(self, busy_s: float, all_s: float) -> float:
        spent, passed = busy_s - self.busy_s, all_s - self.all_s
        self.busy_s, self.all_s = busy_s, all_s
        return 100 * spent / passed if passed > 0 else 0.0


class SystemMeter:
    """Of this process: CPU (100 % is one core, of all its threads), memory, and its GPU."""

    def __init__(self) -> None:
        self._cpu = Gauge()
        self._cpu.percent(time.process_time(), time.monotonic())

    def read(self) -> dict[str, float]:
        """Metric → value; CPU since the last call, everything else now."""
        out = {
            "system/process_cpu_percent": self._cpu.percent(time.process_time(), time.monotonic())
        }
        with contextlib.suppress(FileNotFoundError):  # not Linux
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            out["system/process_memory_gb"] = pages * os.sysconf("SC_PAGE_SIZE") / GB
        import torch

        if torch.cuda.is_initialized():  # else it would take memory of a GPU to ask about it
            device = torch.cuda.current_device()
            out["system/process_gpu_memory_gb"] = torch.cuda.memory_reserved(device) / GB
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            out |= {f"system/{k}": v for k, v in gpu(uuid).items()}
        return out


class MachineMeter:
    """Of this machine: CPU (100 % is all cores), memory, GPUs, and the room a store has left."""

    def __init__(self, store: str | None) -> None:
        """
        Args:
            store: the store's folder; None for a bucket, whose room nobody tells.
        """
        self.store = store
        self._cpu = Gauge()
        self.read()

    def read(self) -> dict[str, float]:
        """Metric → value; CPU since the last call, everything else now."""
        out: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError):  # not Linux
            ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
            idle = ticks[3] + ticks[4]  # the fifth waits for a disk
            out["system/machine_cpu_percent"] = self._cpu.percent(sum(ticks) - idle, sum(ticks))
            lines = Path("/proc/meminfo").read_text().splitlines()
            kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
            used = kb["MemTotal"] - kb["MemAvailable"]
            out["system/machine_memory_gb"] = used * 1024 / GB
        for index in range(gpus()):
            out |= {f"system/machine_{k}_{index}": v for k, v in gpu(index).items()}
        if self.store:
            out["system/store_free_gb"] = shutil.disk_usage(self.store).free / GB
        return out


def nvml() -> Any:
    """NVIDIA's library of measurements; None without it or its driver."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpus() -> int:
    library = nvml()
    return int(library.nvmlDeviceGetCount()) if library else 0


def gpu(which: int | str) -> dict[str, float]:
    """Utilisation and used memory of a GPU, by its number or UUID; whatever process uses it."""
    library = nvml()
    if library is None:
        return {}
    out: dict[str, float] = {}
    with contextlib.suppress(library.NVMLError):  # a part of a GPU (MIG) does not tell
        handle = (
            library.nvmlDeviceGetHandleByIndex(which)
            if isinstance(which, int)
            else library.nvmlDeviceGetHandleByUUID(which)
        )
        out["gpu_memory_gb"] = library.nvmlDeviceGetMemoryInfo(handle).used / GB
        out["gpu_percent"] = float(library.nvmlDeviceGetUtilizationRates(handle).gpu)
    return out


@contextlib.contextmanager
def metered(ctx: Any, every_s: float = EVERY_S) -> Iterator[None]:
    """Reports this process's numbers while a step runs in it, for steps without a clock."""
    meter, ended = SystemMeter(), threading.Event()

    def work() -> None:
        while not ended.wait(every_s):
            ctx.report(metrics=meter.read())

    thread = threading.Thread(target=work, name="meter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
