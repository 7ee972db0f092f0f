"""Where weights go, by the memory that is free."""

import pytest

from pipelines.serving import residency

TOTAL = 1_000_000


@pytest.fixture
def manifest(tmp_path):
    """An ensemble of two files of weights, one of which serves two slots."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(TOTAL // 2))
    slots = {"base/E1_1": "a", "base/E1_0": "b", "base/E2_0": "b"}
    return {"store": str(tmp_path), "weights": {s: {"path": p} for s, p in slots.items()}}


@pytest.mark.parametrize(
    ("gpu", "host", "chosen"),
    [
        (None, 2 * TOTAL, "all"),
        (None, TOTAL, "disk"),
        (2 * TOTAL, 0, "all"),
        (TOTAL, 2 * TOTAL, "current"),
        (TOTAL, TOTAL, "disk"),
    ],
)
def test_weights_are_as_near_as_memory_lets_them(manifest, monkeypatch, gpu, host, chosen):
    monkeypatch.setattr(residency, "available_memory", lambda: host)
    monkeypatch.setattr(residency.torch.cuda, "mem_get_info", lambda: (gpu, gpu))
    found, why = residency.choose(manifest, on_gpu=gpu is not None)
    assert found == chosen and "1.0 MB of weights" in why


def test_a_containers_limit_counts_without_cached_files(tmp_path, monkeypatch):
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(residency, "MEMORY", memory)
    monkeypatch.setattr(
        residency, "CGROUPS", ((str(tmp_path), "memory.max", "memory.current", "inactive_file"),)
    )
    assert residency.available_memory() == 5_120_000
    (tmp_path / "memory.max").write_text("max\n")
    assert residency.available_memory() == 5_120_000
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1500000\ninactive_file 1000000\n")
    assert residency.available_memory() == 1_500_000
