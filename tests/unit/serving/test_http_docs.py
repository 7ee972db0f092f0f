"""What serving.md says of the service holds: its curl commands run, and its tables are complete."""

import inspect
import re
import shutil
import subprocess

import ensemble_kit
import http_kit
import pytest
import serving_kit
from commands import blocks
from paths import ROOT
from PIL import Image

from pipelines.models.limits import MOST_VALUES, OPERATORS
from pipelines.serving import errors, http_errors
from pipelines.serving.filters import Judges
from pipelines.serving.meters import METRICS
from pipelines.serving.openai_api import Generation
from pipelines.serving.requests import Sample
from pipelines.spec.serving import Serving

PAGE = (ROOT / "pipelines/docs/serving.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
CURLS = [block.text for block in blocks(PAGE) if block.info == "bash"]


def section(heading):
    """The text below a heading."""
    return re.split(r"^## ", PAGE.partition(f"\n## {heading}\n")[2], flags=re.M)[0]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_the_curl_commands_run(tmp_path):
    store = ensemble_kit.make(tmp_path / "store")
    serving_kit.promote(store)
    outputs = []
    with http_kit.running_local(store) as (_, url):
        for command in CURLS:
            assert ADDRESS in command
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", command.replace(ADDRESS, url)],
                cwd=tmp_path,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0 and '"error"' not in done.stdout, (command, done)
            outputs.append(done.stdout)
    assert len(CURLS) >= 7
    for name in ("out", "painted", "styled"):
        assert Image.open(tmp_path / f"{name}.png").size == (16, 16)
    assert "event: done" in outputs[-1]


def test_every_refusal_is_in_the_table():
    table = section("Errors")
    refusals = {
        kind
        for module in (errors, http_errors)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, errors.Refused)
    }
    assert len(refusals) > 10
    missing = [k for k in refusals if not re.search(rf"^\| {k.status} \|.*`{k.code}`", table, re.M)]
    assert missing == []


def test_every_field_is_in_its_table():
    assert [
        f for f in Sample.model_fields if f"`{f}`" not in section("All that can be steered")
    ] == []
    assert [name for name in Generation.model_fields if f"`{name}`" not in PAGE] == []
    assert [name for name in OPERATORS if f"`{name}`" not in PAGE] == []


def test_the_limits_are_the_defaults():
    import yaml

    serving = Serving(model="tiny").model_dump()
    said = yaml.safe_load(next(b.text for b in blocks(section("Limits")) if b.info == "text"))
    assert said["limits"] == serving["limits"]
    assert said["queue"] == serving["queue"]
    assert f"{MOST_VALUES:,} values" in PAGE


def test_every_metric_is_in_the_table():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section("Metrics"), flags=re.M)
    assert rows == [(name, metric.kind) for name, metric in METRICS.items()]


def test_the_filters_of_the_page_work():
    import numpy as np

    [code] = [b.text for b in blocks(section("Filters")) if b.info == "python"]
    names = {}
    exec(code, names)
    assert names["words"]("a frog") is None and "weapons" in names["words"]("two Rockets")
    assert names["is_blank"](np.zeros((8, 8, 3), np.uint8))
    judges = Judges(picture=[("is_blank", names["is_blank"])])
    judges.judge_picture(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
