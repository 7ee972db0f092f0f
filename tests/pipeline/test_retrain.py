"""Retraining on the user's own data: a file more, and only that is embedded and learned from."""

import json
import shutil

import pytest
from kit import ediffi, said, shards_of, spec_with, strict_json, versions

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


class Own:
    """A user's folder of Parquet files, which grows, and a spec of one expert that reads it."""

    def __init__(self, smoke, root):
        self.files = sorted(smoke.folder("data/train").rglob("*.parquet"))
        self.data, self.store = root / "pairs", root / "store"
        self.data.mkdir()
        held_out = sorted(smoke.folder("data/validation").rglob("*.parquet"))
        (root / "held-out").mkdir()
        shutil.copy2(held_out[0], root / "held-out")
        encoders = smoke.folder("encoders/tiny")

        def change(raw):
            raw |= {"name": "own"}
            raw["data"] = {
                "train": {"path": str(self.data)},
                "validation": {"path": str(root / "held-out")},
            }
            raw["encoders"] = {role: str(encoders / role) for role in ("t5", "clip")}
            raw["evaluate"] = {"captions": 4}
            raw["retraining"] = {"share": 1.0}
            del raw["stages"]["sr32"], raw["stages"]["base"]["single"]
            raw["stages"]["base"] |= {"experts": {"E0_0": {"images": 64}}, "ensemble": ["E0_0"]}

        self.spec = spec_with(root / "own.yaml", change)

    def add(self, count):
        for file in self.files[:count]:
            shutil.copy2(file, self.data)
        del self.files[:count]

    def command(self, verb):
        end = ediffi(verb, self.spec, "--storage", self.store)
        assert end.returncode == 0, end.stdout + end.stderr
        return end.stdout

    def book(self):
        return strict_json((self.store / "registry/own.json").read_text())

    def manifests(self, node):
        found = self.store.glob(f"nodes/{node}-*/manifest.json")
        return {json.loads(f.read_text())["fingerprint"]: json.loads(f.read_text()) for f in found}


def test_a_file_more_makes_a_new_champion(smoke, tmp_path):
    own = Own(smoke, tmp_path)
    own.add(3)
    assert "there was no champion" in own.command("run")
    [first] = own.book()["history"][:1]
    before = {p: p.stat().st_mtime_ns for p in own.store.glob("embeddings/**/*.parquet")}
    nothing = said("retrain", own.spec, "--storage", own.store)
    assert nothing == "skipped: the data is what the champion was trained on\n"

    own.add(1)
    assert "1 of 4 shards to embed" in said("plan", own.spec, "--storage", own.store)
    told = own.command("retrain")
    champion = own.book()["champion"]
    # 64 images more, after 64, are a gain that no interval doubts.
    assert champion["fingerprint"] != first["fingerprint"], told
    assert "val_loss of base is better than the champion's" in champion["why"]
    after = {p: p.stat().st_mtime_ns for p in own.store.glob("embeddings/**/*.parquet")}
    assert {p: t for p, t in after.items() if p in before} == before
    assert len(after) == len(before) + 1
    assert max(len(shards_of(v)) for v in versions(own.store)) == 4
    trained = own.manifests("train/base/E0_0")
    [parent] = (m["inputs"].get("parent") for m in trained.values() if "parent" in m["inputs"])
    assert parent["fingerprint"] in trained
    said_again = said("retrain", own.spec, "--storage", own.store)
    assert said_again == "skipped: the data is what the champion was trained on\n"
