"""Verbs that only read must not wait for libraries they do not need: torch alone takes 2 s.

A fresh process runs each verb and lists what it has imported. Times are in
``tests/benchmarks/bench_startup.py``.
"""

import json
import subprocess
import sys

import pytest
import tiny_shards
import yaml
from paths import DEMO, ROOT, SMOKE
from plan_kit import finish

from pipelines.dag import plan, sources
from pipelines.runs.execution import begin
from pipelines.spec.loading import load
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store, sha256
from pipelines.store.dataset import Version
from pipelines.store.shards import write

ARRAYS = {"numpy", "pyarrow"}
HEAVY = {
    *("torch", "torchvision", "transformers", "open_clip", "huggingface_hub", "safetensors"),
    *("ray", "mlflow", "pandas", "matplotlib", "scipy", "sklearn", "boto3", "s3fs", "aiohttp"),
}
SCRIPT = """
import json, sys
from pipelines.cli import main
try:
    main()
except SystemExit as end:
    code = end.code or 0
else:
    code = 0
names = sorted({name.partition(".")[0] for name in sys.modules})
print("\\n" + json.dumps({"code": code, "modules": names}))
"""


def run(script, *arguments):
    """What the command printed, and the top-level packages it imported."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    output, _, last = done.stdout.rstrip().rpartition("\n")
    found = json.loads(last)
    assert found["code"] == 0, output + done.stderr
    return output, set(found["modules"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store in which every node of the smoke pipeline is done, its data set a real one."""
    store, spec = Store.open(str(tmp_path_factory.mktemp("store"))), load(SMOKE)
    header = tiny_shards.header()
    written = write(tiny_shards.made_rows(3), header)
    store.write("embeddings/tiny/0000.parquet", written.data)
    shard = {
        "name": "0000",
        "path": "embeddings/tiny/0000.parquet",
        "bytes": len(written.data),
        "sha256": sha256(written.data),
        "rows": 3,
        "usable": written.usable,
    }
    made = plan.make(spec, store, sources.identify_all(spec))
    execution = begin(made, store)
    for verdict in made.verdicts.values():
        if verdict.node.kind == "embed":
            Version.write(store, verdict.folder, [shard], header)
            settings = json.loads(json.dumps(verdict.node.settings))
            about = {"fingerprint": verdict.fingerprint, "settings": settings, "inputs": {}}
            store.commit(verdict.folder, ["dataset.parquet"], about | {"metrics": {}, "info": {}})
        else:
            finish(store, verdict)
        execution.nodes[verdict.node.id] = {"state": "done"}
    execution.state = "done"
    execution.save(store)
    offer = {
        "what": "offered",
        "fingerprint": "0123456789abcdef",
        "folder": made.verdicts["promote/smoke"].folder,
        "by": f"run {execution.id}",
        "why": "finished",
        "when": "2026-11-29T12:00:00+00:00",
    }
    book = {"model": "smoke", "champion": None, "candidate": offer, "history": [offer]}
    store.write_json("registry/smoke.json", book)
    return store.root


@pytest.mark.parametrize("verb", [[], ["plan"], ["status"], ["models"], ["jobs"], ["run"]])
def test_help_imports_nothing_heavy(verb):
    output, modules = run(SCRIPT, *verb, "--help")
    assert "Usage" in output
    assert not modules & (HEAVY | ARRAYS | {"fsspec", "yaml"})


def test_status_of_a_run_imports_nothing_heavy(finished):
    output, modules = run(SCRIPT, "status", "--storage", finished)
    assert "train/base/E0_0" in output
    assert not modules & (HEAVY | ARRAYS | {"yaml"})


@pytest.mark.slow
def test_status_of_a_spec_imports_nothing_heavy(finished):
    output, modules = run(SCRIPT, "status", SMOKE, "--storage", finished)
    assert "train/base/E0_0" in output
    assert not modules & (HEAVY | {"pyarrow"})


@pytest.mark.slow
def test_the_models_import_nothing_heavy(finished):
    output, modules = run(SCRIPT, "models", "--storage", finished)
    assert "candidate" in output
    assert not modules & (HEAVY | ARRAYS)


@pytest.mark.slow
def test_the_jobs_verbs_wait_with_ray_until_they_ask_a_server():
    script = SCRIPT.replace("main()", "from pipelines.jobs import client, submit", 1)
    _, modules = run(script)
    assert not modules & HEAVY


@pytest.mark.slow
def test_the_plan_of_a_finished_pipeline_imports_arrow_for_the_lists_of_shards_alone(finished):
    output, modules = run(SCRIPT, "plan", SMOKE, "--storage", finished)
    assert "0 to run" in output
    assert not modules & HEAVY


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SMOKE, DEMO])
def test_the_plan_of_a_pipeline_that_never_ran_imports_nothing_heavy(spec, tmp_path):
    output, modules = run(SCRIPT, "plan", spec, "--storage", tmp_path)
    assert "never done here" in output
    assert not modules & (HEAVY | {"pyarrow"})


@pytest.mark.slow
def test_costs_on_a_cluster_are_reckoned_without_torch():
    output, modules = run(SCRIPT, "plan", DEMO.with_name("ediffi-d.yaml"), "--assume")
    assert "993,416,515 parameters" in output
    assert not modules & (HEAVY | {"pyarrow"})


def test_the_tree_of_a_run_is_reported_without_torch():
    """As at the end of a run that had nothing to do."""
    script = SCRIPT.replace(
        "    main()\n",
        "    from pipelines.reports.tree import stage_settings\n"
        "    from pipelines.spec.loading import load\n"
        "    print(stage_settings(load(sys.argv[1]).stages['base'])['sampling']['sigmas'])\n",
        1,
    )
    output, modules = run(script, SMOKE)
    assert output.startswith("[80.0")
    assert not modules & HEAVY


@pytest.mark.parametrize("weighting", ["noise", "sampler"])
def test_a_tree_grows_without_torch(weighting, tmp_path):
    raw = yaml.safe_load(SMOKE.read_text())
    stage = raw["stages"]["base"]
    for key in ("ensemble", "single"):
        stage.pop(key, None)
    root = stage["experts"]["E0_0"]
    stage["experts"] = {"E0_0": root}
    stage["adaptive"] = {"budget": 640, "images": 64, "depth": 2, "weighting": weighting}
    spec = Spec.model_validate(raw)
    store = Store.open(str(tmp_path / "store"))
    made = plan.make(spec, store, {})
    for name in ("E1_0", "E1_1"):
        gain = {"val_loss": 0.2, "val_loss_parent": 0.3, "val_gain": 0.1}
        gain |= {"val_gain_low": 0.09, "val_gain_high": 0.11}
        finish(store, made.verdicts[f"train/base/{name}"], metrics=gain)
    file = tmp_path / "grows.yaml"
    file.write_text(yaml.safe_dump(raw))
    output, modules = run(SCRIPT, "plan", file, "--storage", store.root)
    assert "train/base/E2_" in output
    assert not modules & HEAVY
