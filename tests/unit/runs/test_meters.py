"""The meters measure what the process, the machine and the disk do."""

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from pipelines.runs import meters
from pipelines.runs.meters import MachineMeter, SystemMeter, metered

linux = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads /proc")


@pytest.mark.slow
def test_a_busy_process_shows_more_cpu_than_an_idle_one():
    meter = SystemMeter()
    time.sleep(0.3)
    idle = meter.read()["system/process_cpu_percent"]
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass
    busy = meter.read()["system/process_cpu_percent"]
    assert 0 <= idle < busy


@linux
def test_memory_that_a_process_takes_is_seen():
    meter = SystemMeter()
    before = meter.read()["system/process_memory_gb"]
    held = torch.ones(75_000_000)  # 0.3 GB
    assert meter.read()["system/process_memory_gb"] - before == pytest.approx(0.3, abs=0.05)
    del held


@linux
def test_the_machine_and_the_free_space_of_the_store(tmp_path):
    meter = MachineMeter(str(tmp_path))
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass
    found = meter.read()
    assert 0 < found["system/machine_cpu_percent"] <= 100
    assert found["system/machine_memory_gb"] > SystemMeter().read()["system/process_memory_gb"]
    assert found["system/store_free_gb"] == pytest.approx(
        shutil.disk_usage(tmp_path).free / 1e9, abs=1
    )
    assert "system/store_free_gb" not in MachineMeter(None).read()


def test_reading_is_cheap():
    meter = SystemMeter()
    meter.read()
    began = time.process_time()
    for _ in range(100):
        meter.read()
    assert (time.process_time() - began) / 100 < 0.005


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_there_are_no_gpu_metrics(tmp_path):
    assert meters.gpu_count() == 0
    keys = {*SystemMeter().read(), *MachineMeter(str(tmp_path)).read()}
    assert not [key for key in keys if "gpu" in key]


def test_a_step_is_metered_while_it_runs():
    class Recorder:
        rows: list = []  # noqa: RUF012
        reported = threading.Event()

        def report(self, **row):
            self.rows.append(row)
            self.reported.set()

    ctx = Recorder()
    with metered(ctx, every_s=0.01):
        assert ctx.reported.wait(30)
    count = len(ctx.rows)
    time.sleep(0.1)
    assert len(ctx.rows) == count, "it went on after the step"
    assert "system/process_cpu_percent" in ctx.rows[0]["metrics"]
