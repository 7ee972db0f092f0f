"""Probes of a finished pipeline: only they run, on what the store has, and each is there."""

import pytest
from kit import ediffi, said, spec_with, strict_json

NAMES = ["encoders", "guidance", "prompt_switch", "seconds", "text_effect"]


def smaller(raw):
    """All probes, of few pictures."""
    del raw["stages"]["base"]["single"]
    raw["evaluate"]["probes"] = {
        "text_effect": {"levels": 4, "pictures": 8},
        "prompt_switch": {"captions": 8, "fractions": [0.0, 1.0]},
        "encoders": {"captions": 16},
        "guidance": {"captions": 16, "scales": [0.0, 1.0]},
        "seconds": {"pictures": 4, "repeats": 2},
    }


@pytest.mark.soak
def test_probes_run_on_a_finished_pipeline(smoke, tmp_path):
    store = smoke.copy(tmp_path / "store")
    spec = spec_with(tmp_path / "smoke.yaml", smaller)
    done = ediffi("run", spec, "--storage", store)
    assert done.returncode == 0, done.stdout + done.stderr
    started = {line.split()[-2] for line in done.stdout.splitlines() if line.endswith(" started")}
    of_root = {f"probe/base/root/{name}" for name in ("guidance", "text_effect")}
    assert started == of_root | {f"probe/base/ensemble/{name}" for name in NAMES}
    assert "0 to run" in said("plan", spec, "--storage", store)

    found = {}
    for name in NAMES:
        [folder] = store.glob(f"nodes/probe/base/ensemble/{name}-*")
        found[name] = strict_json((folder / "probe.json").read_text())
        assert found[name]["probe"] == name
        assert strict_json((folder / "manifest.json").read_text())["metrics"]
    # The evaluation has as many captions, in one batch as here, and the spec's guidance is 1.
    metrics = smoke.manifest("evaluate/base/ensemble")["metrics"]
    for name, at in (("encoders", 0), ("guidance", 1)):
        measures = found[name]["points"][at]["measures"]
        assert {"concepts", "kernel_distance"} <= measures.keys()
        for measure, one in measures.items():
            assert one["value"] == metrics[measure], (name, measure)
