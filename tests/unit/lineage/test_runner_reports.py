"""Reports of a step reach the terminal, the status and MLflow."""

import json
from pathlib import Path

import pytest
from record_kit import NODE, points, runs_of

from pipelines.executor.console import Console
from pipelines.executor.runner import Runner
from pipelines.executor.stopping import Stop
from pipelines.runs import meters
from pipelines.runs.claims import Claims
from pipelines.runs.lease import acquire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def runner_of(driver):
    claims = Claims(driver.store, "smoke", acquire(driver.store, "smoke"))
    told = driver.lineage, Console(), Stop()
    runner = Runner(driver.plan, driver.store, driver.execution, *told, claims)
    runner.set_state(driver.plan.verdicts[NODE], "running")
    return runner


def test_pictures_checkpoints_and_the_machines_numbers(driver, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    mine = driver()
    runner = runner_of(mine)
    mine.start()
    picture = "nodes/train/base/E0_0-1/samples/000000064.png"
    mine.store.write(picture, b"a picture")
    row = {"time_ms": 1, "done": 64, "of": 256, "unit": "images", "images": 64}
    runner.progress.handle(NODE, {**row, "metrics": {"loss": 0.5}})
    runner.progress.handle(NODE, {"time_ms": 2, "checkpoint": 64})
    runner.progress.handle(NODE, {"time_ms": 3, "picture": picture})
    runner.progress.report_machine()  # too early
    runner.progress.machine_read_at -= meters.REPORT_EVERY_S
    runner.progress.report_machine()
    mine.close()

    uri = mine.lineage.uri
    assert points(uri, "loss") == [(64, 0.5)]
    [(step, free)] = points(uri, "system/store_free_gb")
    assert step == 64 and free > 0
    [run] = runs_of(uri)[NODE]
    place = mine.lineage.writer.client.download_artifacts(
        run.info.run_id, "samples/000000064.png", str(mine.store.full(""))
    )
    assert Path(place).read_bytes() == b"a picture"
    state = mine.execution.nodes[NODE]
    assert (state["done"], state["checkpoint"], state["picture"]) == (64, 64, picture)
    assert f"{NODE} drew " in capsys.readouterr().out
    assert "saved 64 (" in runner.console.progress_line(NODE)


def test_the_drivers_own_machine_is_not_measured_for_a_cluster(driver, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    mine = driver()
    runner = runner_of(mine)
    runner.progress.machine_read_at -= meters.REPORT_EVERY_S
    runner.progress.report_machine()
    [only] = mine.lineage.spool.path.read_text().splitlines()
    assert json.loads(only)["do"] == "open"
