"""Resource usage as ``system/…`` metrics, read from the kernel and from NVML.

Each process reads its own usage with :class:`SystemMeter`. The driver reads the machine it shares
with its workers with :class:`MachineMeter`. A metric that the system does not offer is left out.
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

REPORT_EVERY_S = 12.0
GB = 1e9


class BusyShare:
    """Share of the time since the last reading that was spent busy."""

    def __init__(self) -> None:
        self.busy_s = self.all_s = 0.0

    def percent(self, busy_s: float, all_s: float) -> float:
        """Percent busy since the last call.

        Args:
            busy_s: total busy time so far.
            all_s: total time so far, in the same unit.
        """
        spent, passed = busy_s - self.busy_s, all_s - self.all_s
        self.busy_s, self.all_s = busy_s, all_s
        return 100 * spent / passed if passed > 0 else 0.0


class SystemMeter:
    """Usage of this process: CPU of all its threads (100 % is one core), memory, and its GPU."""

    def __init__(self) -> None:
        self._cpu = BusyShare()
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

        if torch.cuda.is_initialized():  # else the question itself would allocate GPU memory
            device = torch.cuda.current_device()
            out["system/process_gpu_memory_gb"] = torch.cuda.memory_reserved(device) / GB
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            out |= {f"system/{k}": v for k, v in gpu_usage(uuid).items()}
        return out


class MachineMeter:
    """Usage of this machine: CPU (100 % is all cores), memory, GPUs, and the store's free space."""

    def __init__(self, store: str | None) -> None:
        """
        Args:
            store: the store's folder; None for a bucket, which has no free space to report.
        """
        self.store = store
        self._cpu = BusyShare()
        self.read()

    def read(self) -> dict[str, float]:
        """Metric → value; CPU since the last call, everything else now."""
        out: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError):  # not Linux
            ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
            idle = ticks[3] + ticks[4]  # the fifth number is waiting for disks
            out["system/machine_cpu_percent"] = self._cpu.percent(sum(ticks) - idle, sum(ticks))
            lines = Path("/proc/meminfo").read_text().splitlines()
            kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
            used = kb["MemTotal"] - kb["MemAvailable"]
            out["system/machine_memory_gb"] = used * 1024 / GB
        for index in range(gpu_count()):
            out |= {f"system/machine_{k}_{index}": v for k, v in gpu_usage(index).items()}
        if self.store:
            out["system/store_free_gb"] = shutil.disk_usage(self.store).free / GB
        return out


def nvml() -> Any:
    """NVIDIA's management library, initialised; None without it or without a driver."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpu_count() -> int:
    """Number of this machine's NVIDIA GPUs."""
    library = nvml()
    return int(library.nvmlDeviceGetCount()) if library else 0


def gpu_usage(which: int | str) -> dict[str, float]:
    """Utilisation and used memory of a GPU, over all processes.

    Args:
        which: index or UUID.

    Returns:
        ``gpu_percent`` and ``gpu_memory_gb``, as far as NVML offers them.
    """
    library = nvml()
    if library is None:
        return {}
    out: dict[str, float] = {}
    with contextlib.suppress(library.NVMLError):  # MIG instances do not offer all numbers
        handle = (
            library.nvmlDeviceGetHandleByIndex(which)
            if isinstance(which, int)
            else library.nvmlDeviceGetHandleByUUID(which)
        )
        out["gpu_memory_gb"] = library.nvmlDeviceGetMemoryInfo(handle).used / GB
        out["gpu_percent"] = float(library.nvmlDeviceGetUtilizationRates(handle).gpu)
    return out


@contextlib.contextmanager
def metered(ctx: Any, every_s: float = REPORT_EVERY_S) -> Iterator[None]:
    """Report this process's usage from a thread while the context is open.

    For steps that have no loop of their own to report it from.

    Args:
        ctx: context of the step.
        every_s: seconds between reports.
    """
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
