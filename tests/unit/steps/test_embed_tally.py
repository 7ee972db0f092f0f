"""A version's totals are those of its shards, in any order and any number of parts."""

import random

import embedded
import pytest

from pipelines.data.formats.shard import SourceShard
from pipelines.steps import embed_tally
from pipelines.steps.embed_tally import Tally
from pipelines.store.artifacts import Store


@pytest.fixture
def record(tmp_path):
    """Of nine shards, two of them without a row."""
    job = embedded.job(Store.at(str(tmp_path)))
    found = []
    for i in range(9):
        shard = SourceShard(name=f"s{i}", folder="/d", path=f"{i}.tar", identity=str(i), bytes=1)
        captions = ["a fox", "two red foxes"][: i % 3] + ["a fox at night"] * (i % 3)
        bad = [(f"{i}", "image is missing", "")] * (1 + i % 2)
        small = (0,) if i % 3 else ()
        found.append(
            embedded.embed(job, shard, captions if i not in (0, 3) else [], bad=bad, small=small)
        )
    return found


def test_neither_order_nor_parts_matter(record, monkeypatch):
    def tallied(order, block):
        monkeypatch.setattr(embed_tally, "BLOCK", block)
        tally = Tally("embeddings/tiny")
        for f in order:
            tally.add(f, now=f["name"] in ("s1", "s5"))
        return tally.table().sort_by("name"), tally.stats(), tally.totals

    whole = tallied(record, 4096)
    shuffled = random.Random(1).sample(record, len(record))
    table, stats, totals = tallied(shuffled, 2)
    assert table.combine_chunks().equals(whole[0].combine_chunks())
    assert (stats, totals) == whole[1:]
    assert stats["rows"] == sum(f["rows"] for f in record) > 0
    assert stats["read"] == stats["rows"] + sum(stats["quarantined"].values())
    assert totals["encoded_now"] == record[1]["rows"] + record[5]["rows"]
    assert sum(stats["tokens"]["t5"].values()) == stats["rows"]
    assert len(stats["empty"]) == sum(not f["rows"] for f in record) >= 2
    assert stats["rms_error"]["t5"] == max(f["rms_error"]["t5"] for f in record if f["rows"])
    assert len(table) + len(stats["empty"]) == 9


def test_a_version_without_a_row_has_no_header(record):
    tally = Tally("embeddings/tiny")
    for f in record:
        if not f["rows"]:
            tally.add(f)
    assert tally.header is None and tally.stats()["read"] > 0
