"""Retraining on the user's own data: a file more, and only that is embedded and learned from."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import ediffi, said, shards_of, spec_with, strict_json, versions

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


class Own:
    """A user's folder of Parquet files, which grows, and a spec of one expert that reads it."""

    def __init__(self, smoke, root, **retraining):
        self.files = sorted(smoke.folder("data/train").rglob("*.parquet"))
        self.data, self.store = root / "pairs", root / "store"
        self.data.mkdir()
        held_out = sorted(smoke.folder("data/validation").rglob("*.parquet"))
        (root / "held-out").mkdir()
        shutil.copy2(held_out[0], root / "held-out")
        self.root, self.encoders = root, smoke.folder("encoders/tiny")
        self.write(**retraining)

    def write(self, **retraining):
        """The spec, with these settings of retrainings."""

        def change(raw):
            raw |= {"name": "own"}
            raw["data"] = {
                "train": {"path": str(self.data)},
                "validation": {"path": str(self.root / "held-out")},
            }
            raw["encoders"] = {role: str(self.encoders / role) for role in ("t5", "clip")}
            raw["evaluate"] = {"captions": 4}
            raw["retraining"] = {"share": 1.0, **retraining}
            del raw["stages"]["sr32"], raw["stages"]["base"]["single"]
            raw["stages"]["base"] |= {"experts": {"E0_0": {"images": 64}}, "ensemble": ["E0_0"]}

        self.spec = spec_with(self.root / "own.yaml", change)

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


def test_data_that_has_drifted_is_not_trained_on_until_its_limit_is_raised(smoke, tmp_path):
    own = Own(smoke, tmp_path, drift={"caption_lengths": 0.3})
    own.add(3)
    own.command("run")
    before = own.book()["champion"]
    table = pq.read_table(own.files[0])
    longer = pa.array([f"{c.as_py()}, as has been said at length" * 3 for c in table["caption"]])
    at = table.schema.get_field_index("caption")
    pq.write_table(table.set_column(at, "caption", longer), own.data / "longer.parquet")

    end = ediffi("retrain", own.spec, "--storage", own.store)
    assert end.returncode == 2, end.stdout + end.stderr
    assert "the data has drifted from the champion's: lengths of captions" in end.stderr
    assert "`retraining.drift.caption_lengths: 0.3`" in end.stderr
    assert len(own.manifests("train/base/E0_0")) == 1 and own.book()["champion"] == before

    own.write(drift={"caption_lengths": 1.0})
    own.command("retrain")
    assert len(own.manifests("train/base/E0_0")) == 2
    assert len(own.manifests("drift/train")) == 1  # not measured again
