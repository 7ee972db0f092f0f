"""A whole execution in MLflow, of nodes that were never really run."""

import random
import re
from datetime import UTC, datetime

from paths import ROOT
from plan_kit import finish
from record_kit import Driver

from pipelines.lineage.pages import every
from pipelines.models import champions
from pipelines.reports import tree as tree_view

PAGE = (ROOT / "infra/docs/record.md").read_text()


def search_on_page(question: str) -> str:
    """The search under a heading of ``infra/docs/record.md``."""
    [section] = re.findall(rf"^### {re.escape(question)}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    [search] = re.findall(r"^```text\n(.*?)\n```", section, re.M | re.S)
    return search


def make_results(driver: Driver, seed: int = 0) -> dict[str, dict]:
    """Manifests of all nodes of the smoke spec, with measures drawn at random."""
    draw, made = random.Random(seed), {}
    ids = driver.plan.verdicts
    for name, verdict in ids.items():
        node = verdict.node
        inputs = {r: {"node": i, "fingerprint": ids[i].fingerprint} for r, i in node.inputs.items()}
        info = {"weights_sha256": draw.randbytes(32).hex(), "parameters": 100}
        if node.kind == "adopt":
            seats = {slot: roles[0] for slot, roles in node.settings["seats"].items()}
            info = {"seats": seats, "refused": {}}
        measures = {"data": {"rows": 64}, "embed": {"rows": 64}}
        losses = {"val_loss": draw.random()} if node.kind in ("train", "evaluate") else {}
        metrics = measures.get(node.kind, losses)
        about = {"kind": node.kind, "name": node.name, "info": info, "inputs": inputs}
        finished = datetime.now(UTC).isoformat()
        finish(driver.store, verdict, metrics=metrics, finished=finished, **about)
        made[name] = driver.store.read_json(f"{verdict.folder}/manifest.json")
    return made


def make_ensemble(driver: Driver) -> champions.Entry:
    """The ensemble of the experts that :func:`make_results` made, offered as candidate."""
    promoted = driver.plan.verdicts["promote/smoke"]
    stages = [dict(s) for s in promoted.node.settings["stages"]]
    weights = {}
    for stage in stages:
        for slot in stage["experts"]:
            expert = driver.plan.verdicts[f"train/{stage['name']}/{slot}"]
            made = driver.store.read_json(f"{expert.folder}/manifest.json")
            weights[f"{stage['name']}/{slot}"] = {
                "path": f"{expert.folder}/ema.safetensors",
                "sha256": made["info"]["weights_sha256"],
                "fingerprint": expert.fingerprint,
                "expert": slot,
            }
    splits = {s: driver.plan.verdicts[f"embed/{s}"] for s in ("train", "validation")}
    manifest = {
        "model": "smoke",
        "store": driver.store.root,
        "stages": stages,
        "weights": weights,
        "encoders": {},
        "encoders_folder": "nodes/encoders/tiny",
        "trained_with": {},
        "data": {s: {"folder": v.folder, "fingerprint": v.fingerprint} for s, v in splits.items()},
    }
    driver.store.write_json(f"{promoted.folder}/ensemble.json", manifest)
    entry = champions.Entry(
        fingerprint=promoted.fingerprint,
        folder=promoted.folder,
        why="finished",
        by=f"run {driver.execution.id}",
    )
    champions.add_candidate(driver.store, "smoke", entry)
    return entry


def run_all(driver: Driver, manifests: dict[str, dict]) -> None:
    """Record every node of a finished execution, and its end."""
    for name, verdict in driver.plan.verdicts.items():
        driver.lineage.started(verdict)
        driver.lineage.finished(verdict, manifests[name])
        driver.execution.nodes[name] = {"state": "done", "folder": verdict.folder}
    driver.execution.state = "done"
    driver.execution.save(driver.store)
    tree = tree_view.build(driver.plan, driver.execution, manifests)
    driver.store.write_json(f"executions/{driver.execution.id}.tree.json", tree)
    driver.lineage.close("done", manifests, timeout_s=600)


def runs(client, search: str = "") -> dict[str, object]:
    """Node → its run among those that a search finds; executions under ``""``."""
    experiment = client.get_experiment_by_name("smoke").experiment_id
    found = every(client.search_runs, [experiment], search)
    return {r.data.tags.get("ediffi.node", ""): r for r in found}
