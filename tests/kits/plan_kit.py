"""Plans whose nodes were never run, and stores as if they had been."""

import json

import yaml
from paths import SMOKE

from pipelines.dag import plan
from pipelines.dag.champion import Champion
from pipelines.spec.pipeline import Spec


def spec(change=lambda raw: None):
    raw = yaml.safe_load(SMOKE.read_text())
    change(raw)
    return Spec.model_validate(raw)


def finish(store, verdict, **more):
    """As if the node had been run."""
    store.write(f"{verdict.folder}/result", b"x")
    inputs = {r: {"node": i, "fingerprint": "f"} for r, i in verdict.node.inputs.items()}
    settings = json.loads(json.dumps(verdict.node.settings))
    manifest = {"fingerprint": verdict.fingerprint, "settings": settings, "inputs": inputs}
    manifest |= {"metrics": {}, "info": {}, "seconds": 1.0}
    return store.commit(verdict.folder, ["result"], manifest | more)


class Promoted:
    """A champion of the smoke spec, as its promote node left it."""

    def __init__(self, store, change=lambda raw: None):
        self.store = store
        made = plan.make(spec(change), store, {})
        by_id = made.verdicts
        for verdict in by_id.values():
            if verdict.node.kind == "train":
                finish(store, verdict, metrics={"val_loss": 0.1}, kind="train")
        promoted = by_id["promote/smoke"]
        stages = [dict(s) for s in promoted.node.settings["stages"]]
        weights = {}
        for stage in stages:
            for slot in stage["experts"]:
                at = by_id[f"train/{stage['name']}/{slot}"]
                weights[f"{stage['name']}/{slot}"] = {
                    "path": f"{at.folder}/ema.safetensors",
                    "fingerprint": at.fingerprint,
                    "expert": slot,
                }
        data = {s: by_id[f"embed/{s}"] for s in ("train", "validation")}
        read = {s: {"folder": v.folder, "fingerprint": v.fingerprint} for s, v in data.items()}
        manifest = {"stages": stages, "weights": weights, "data": read, "trained_with": {}}
        store.write_json(f"{promoted.folder}/ensemble.json", manifest)
        self.champion = Champion.load(store, "smoke", promoted.folder, promoted.fingerprint)

    def plan(self, change=lambda raw: None, **how):
        return plan.make(spec(change), self.store, {}, champion=self.champion, **how)
