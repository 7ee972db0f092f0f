"""The estimate of an embed node in the plan."""

import io
import json
from pathlib import Path

import embedded
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli.verbs import app
from pipelines.dag import plan, sources
from pipelines.data.formats import folder
from pipelines.data.row_reuse import content_hash, image_hash
from pipelines.data.rows import Row
from pipelines.data.shard_pool import pool_path
from pipelines.data.sources import list_shards, read_shard
from pipelines.planning import embedding
from pipelines.reports import plan as plan_view
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store

STAGES = {
    "base": {
        "resolution": 64,
        "network": {"preset": "base64"},
        "training": {"batch": 64},
        "experts": {"E0_0": {"images": 640}},
        "ensemble": ["E0_0"],
    }
}


def noise(*seed):
    """A picture that Parquet cannot compress."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def parquet(folder, name, rows, said="a fox"):
    folder.mkdir(exist_ok=True)
    table = {
        "image": [noise(rows, i) for i in range(rows)],
        "caption": [f"{said} {i}" for i in range(rows)],
    }
    pq.write_table(pa.table(table), folder / name)


@pytest.fixture
def data(tmp_path):
    """Four files of 10, 20, 30 and 40 rows to train on, one of 5 to validate on."""
    for i in range(4):
        parquet(tmp_path / "train", f"{i}.parquet", 10 * (i + 1))
    parquet(tmp_path / "validation", "0.parquet", 5)
    return tmp_path


def spec_of(data, /, **changes):
    splits = {split: {"path": str(data / split)} for split in ("train", "validation")}
    raw = {
        "name": "mine",
        "storage": str(data / "store"),
        "data": splits,
        "encoders": {"t5_dtype": "bfloat16"},
        "stages": STAGES,
    }
    return Spec.model_validate(raw | changes)


def planned(data, /, **changes):
    spec, store = spec_of(data, **changes), Store.at(str(data / "store"))
    found = sources.identify_all(spec)
    made = plan.make(spec, store, found)
    return made, embedding.estimate(made, store, found)


def embed(data, made):
    """Every shard of train in the pool, and a version of them."""
    settings = made.verdicts["embed/train"].node.settings
    source = made.spec.data.train
    job = embedded.job(Store.at(str(data / "store")), pool_path(settings["recipe"], None))
    facts = [embedded.embed(job, s, ["a red fox"] * 8) for s in list_shards(source)]
    embedded.version(job, facts, settings=json.loads(json.dumps(settings)))


def test_an_empty_store_embeds_everything(data):
    _, work = planned(data)
    train = work["embed/train"]
    assert (train["source_shards"], train["to_embed"], train["pairs"]) == (4, 4, 100)
    # 24 T5 tokens of 4096, 22 of CLIP's 768, two pooled vectors, 64² pixels in PNG
    assert train["bytes_a_pair"] == round(196_608 + 33_792 + 3_072 + 64 * 64 * 1.8)
    assert train["bytes"] == pytest.approx(100 * train["bytes_a_pair"], rel=1e-4)
    assert train["gpu_hours"]["t5"] == pytest.approx(156.2 * 100 / 1e9, rel=1e-3)
    assert work["embed/validation"]["pairs"] == 5
    assert embedding.describe(train) == [
        "4 of 4 shards to embed",
        "100 pairs (from Parquet footers)",
        "about 24.1 MB of shards, at 24 T5 and 22 CLIP tokens per caption (assumed)",
        "T5 less than 0.1 GPU-minutes (bfloat16), CLIP less than 0.1 GPU-minutes (float32) of one "
        "H100 at 40 % of its peak",
    ]


def test_only_what_is_new_or_changed_is_embedded(data):
    embed(data, planned(data)[0])
    parquet(data / "train", "4.parquet", 7)
    parquet(data / "train", "5.parquet", 9)
    parquet(data / "train", "1.parquet", 20, said="another fox")
    (data / "train" / "0.parquet").unlink()
    train = planned(data)[1]["embed/train"]
    assert {k: train[k] for k in ("to_embed", "new", "changed", "again", "removed")} == {
        "to_embed": 3,
        "new": 2,
        "changed": 1,
        "again": 0,
        "removed": 1,
    }
    assert train["pairs"] == 7 + 9 + 20
    assert train["tokens"] == {"t5": 3.0, "clip_text": 5.0}  # those of the version before
    assert embedding.describe(train)[0] == "3 of 5 shards to embed: 2 new, 1 changed; 1 removed"


def pairs(folder, count, first=0):
    folder.mkdir(exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i:04d}.png").write_bytes(noise(i))
        (folder / f"{i:04d}.txt").write_text(f"fox {i}")


def embed_pictures(data, made):
    """Embed as the job would, with the contents of the rows."""
    settings = made.verdicts["embed/train"].node.settings
    job = embedded.job(Store.at(str(data / "store")), pool_path(settings["recipe"], None))
    source, facts = made.spec.data.train, []
    for shard in list_shards(source):
        rows = [row for row in read_shard(source, shard) if isinstance(row, Row)]
        contents = [content_hash(image_hash(row.image), row.captions[0]) for row in rows]
        captions = [row.captions[0] for row in rows]
        facts.append(embedded.embed(job, shard, captions, contents=contents))
    embedded.version(job, facts, settings=json.loads(json.dumps(settings)))


def test_new_pairs_are_told_apart_from_copied_ones(data, monkeypatch):
    """In a folder of 40: 3 added, one with a new caption, one removed, one too small."""
    monkeypatch.setattr(folder, "SHARD_PICTURES", 16)
    pictures = data / "pictures"
    pairs(pictures, 40)
    sets = {
        "train": {"path": str(pictures)},
        "validation": {"path": str(data / "validation")},
    }
    made, _ = planned(data, data=sets)
    embed_pictures(data, made)
    pairs(pictures, 3, first=100)
    (pictures / "0007.txt").write_text("a hare")
    (pictures / "0009.png").unlink()
    (pictures / "0009.txt").unlink()
    Image.new("RGB", (63, 64)).save(pictures / "0011.png")
    train = planned(data, data=sets)[1]["embed/train"]
    shards = {s.name: s for s in list_shards(made.spec.data.train)}
    assert train["pairs"] == 4 and not train["at_least"]
    assert 0 < train["to_embed"] < len(shards)
    assert train["copied"] + train["pairs"] <= sum(len(s.files) // 2 for s in shards.values()) - 1
    assert train["bytes"] == train["bytes_a_pair"] * (4 + train["copied"])
    assert embedding.describe(train)[1] == (
        f"4 pairs to encode, {train['copied']} to copy (compared with pairs embedded before)"
    )


def test_unread_shards_are_estimated_from_their_earlier_rows(data, monkeypatch):
    """Two files that had 8 rows each in the last version are replaced by files with 53 in all."""
    embed(data, planned(data)[0])
    monkeypatch.setattr(embedding, "MAX_READ_BYTES", 0)
    for i, rows in ((1, 22), (2, 31)):
        parquet(data / "train", f"{i}.parquet", rows)
    train = planned(data)[1]["embed/train"]
    assert (train["pairs"], train["copied"], train["at_least"]) == (53 - 16, 16, True)
    assert embedding.describe(train)[1].startswith(
        "at least 37 pairs to encode, 16 to copy (from Parquet"
    )


def test_a_pool_is_listed_once(data, monkeypatch):
    made, _ = planned(data)
    embed(data, made)
    parquet(data / "train", "0.parquet", 11)
    listed, files = [], Store.files
    monkeypatch.setattr(Store, "files", lambda s, f: listed.append(f) or files(s, f))
    store, found = Store.at(str(data / "store")), sources.identify_all(made.spec)
    again = plan.make(made.spec, store, found)
    listed.clear()
    work = embedding.estimate(again, store, found)
    assert work["embed/train"]["to_embed"] == 1
    assert len(listed) == 2  # for each split, of which one has nothing yet


def test_a_plan_fetches_no_pictures_from_the_web(data, monkeypatch):
    """Rows with addresses are estimated, not read."""
    embed(data, planned(data)[0])
    table = pa.table({"image": ["https://there.invalid/1.jpg"] * 12, "caption": ["a fox"] * 12})
    pq.write_table(table, data / "train" / "0.parquet")

    def read(source, shard):
        assert shard.folder.endswith("validation")
        return read_shard(source, shard)

    monkeypatch.setattr(embedding, "read_shard", read)
    train = planned(data)[1]["embed/train"]
    assert (train["pairs"], train["copied"]) == (12 - 8, 8)


def test_a_removed_shard_alone_costs_nothing(data):
    embed(data, planned(data)[0])
    (data / "train" / "0.parquet").unlink()
    train = planned(data)[1]["embed/train"]
    assert embedding.describe(train) == ["0 of 3 shards to embed: all are in the pool; 1 removed"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:-1])])
def test_a_lost_or_torn_shard_is_embedded_again(data, harm):
    made, _ = planned(data)
    embed(data, made)
    harm(min((data / "store" / "embeddings").rglob("*.parquet")))
    train = planned(data)[1]["embed/train"]
    assert (
        embedding.describe(train)[0]
        == "1 of 4 shards to embed: 1 with lost files or missing images"
    )


def test_another_recipe_embeds_all_again(data):
    embed(data, planned(data)[0])
    train = planned(data, embedding={"precision": "int8"})[1]["embed/train"]
    assert (train["to_embed"], train["again"]) == (4, 4)
    assert embedding.describe(train)[0] == "4 of 4 shards to embed: 4 by a new recipe"
    # not the old version's bytes, but its tokens: 3 of T5's 4096 + 4, 5 of CLIP's 768 + 4
    assert train["bytes_a_pair"] == round(3 * 4100 + 5 * 772 + 3_072 + 64 * 64 * 1.8)


def test_many_files_are_estimated_from_a_sample_of_footers(data, monkeypatch):
    monkeypatch.setattr(embedding, "MAX_LOCAL_FOOTERS", 2)
    train = planned(data)[1]["embed/train"]
    assert train["pairs_by"] == "from 2 of 4 Parquet footers"
    assert train["pairs"] == pytest.approx(100, rel=0.05)


def test_pictures_of_a_folder_are_counted_and_those_of_a_tar_estimated(data, tmp_path):
    for split in ("pictures", "tars"):
        (tmp_path / split).mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(b"x")
        (tmp_path / "pictures" / f"{i}.txt").write_text("a fox")
    (tmp_path / "tars" / "0.tar").write_bytes(b"x" * 1_000_000)
    both = {"train": {"path": str(tmp_path / "pictures")}}
    both["validation"] = {"path": str(tmp_path / "tars")}
    _, work = planned(data, data=both)
    found = {name: (w["pairs"], w["pairs_by"]) for name, w in work.items()}
    assert found["embed/train"] == (3, "images listed")
    assert found["embed/validation"] == (10, "assumed at 100 kB per pair")


def test_the_spec_names_the_gpu(data):
    made, work = planned(data, embedding={"gpu": "A100", "utilisation": 0.2})
    hours = work["embed/train"]["gpu_hours"]["t5"]
    assert hours == pytest.approx(156.2 * 100 / 1e9 * (989.4 / 312) * 2, rel=1e-3)
    assert made.fingerprint == planned(data)[0].fingerprint  # it changes no result
    with pytest.raises(ValueError, match="'A1000' is unknown; there are A100, H100"):
        spec_of(data, embedding={"gpu": "A1000"})


def test_an_encoder_of_unknown_size_is_reported(data):
    train = planned(data, encoders={"t5": "their/encoder"})[1]["embed/train"]
    assert (train["gpu_hours"]["t5"], train["bytes"]) == (None, None)
    lines = embedding.describe(train)
    assert lines[-1] == "no estimate of GPU-hours for T5: size unknown"
    assert lines[2].startswith("shards of unknown size, at 24 T5")


BERT = {
    "model_type": "bert",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}


@pytest.fixture
def bert(tmp_path):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BERT))
    return str(folder)


def test_a_bert_for_t5_and_further_encoders_are_counted(data, bert):
    """A BERT-base has 85 M parameters outside its tables; each use of it is counted."""
    plain = planned(data)[1]["embed/train"]
    more = {
        "words": {"model": bert, "dim": 768},
        "style": {"model": bert, "dim": 768, "kind": "pooled"},
        "far": {"model": "somebody/elsewhere", "dim": 8},
    }
    alone = planned(data, encoders={"t5": bert})[1]["embed/train"]
    both = planned(data, encoders={"t5_dtype": "bfloat16", "more": more})[1]["embed/train"]
    tokens, one = 24, 2 * 84_934_656 * 24 + 4 * 24**2 * 768 * 12
    assert alone["flops"]["t5"] == 100 * one
    assert both["flops"]["words"] == both["flops"]["style"] == 100 * one
    assert both["flops"]["t5"] == plain["flops"]["t5"]
    assert (both["flops"]["far"], both["gpu_hours"]["far"]) == (None, None)
    beside = tokens * (768 + 8) * 2 + 768 * 2  # of fp16
    assert both["bytes_a_pair"] == plain["bytes_a_pair"] + beside
    said = embedding.describe(both)
    assert "words less than 0.1 GPU-minutes (float32), style less" in said[3]
    assert said[4] == "no estimate of GPU-hours for far: size unknown"


@pytest.mark.slow
def test_no_estimate_stops_a_plan(data, bert, tmp_path):
    """Whatever a configuration contains, the command prints a plan."""
    for text in ("{", "[1]", "{}", json.dumps(BERT | {"num_hidden_layers": None})):
        (Path(bert) / "config.json").write_text(text)
        spec = data / "mine.yaml"
        given = {"t5": bert, "more": {"words": {"model": bert, "dim": 8}}}
        cluster = {"groups": {"a": {"gpu": "H100", "count": 8}}}
        told = spec_of(data, encoders=given, cluster=cluster).model_dump(exclude_unset=True)
        spec.write_text(json.dumps(told))
        said = CliRunner().invoke(app, ["plan", str(spec)])
        assert said.exit_code == 0, said.output
        assert "no estimate of GPU-hours for T5 and words: size unknown" in said.output


def test_a_billion_pairs_are_estimated(data):
    made, work = planned(data)
    recipe, spec = made.verdicts["embed/train"].node.settings["recipe"], made.spec
    many = embedding._cost(1e9, 1.0, {}, recipe, spec.encoders, spec.embedding)
    lines = embedding.describe(work["embed/train"] | many | {"pairs_by": "assumed"})
    assert lines[1:] == [
        "1,000,000,000 pairs (assumed)",
        "about 240.8 TB of shards, at 24 T5 and 22 CLIP tokens per caption (assumed)",
        "T5 about 156 GPU-hours (bfloat16), CLIP about 1,718 GPU-hours (float32) of one H100 at "
        "40 % of its peak",
    ]


def test_a_damaged_file_is_left_for_the_run_to_report(data):
    (data / "train" / "4.parquet").write_bytes(b"PAR1 and no more")
    assert planned(data)[1]["embed/train"]["to_embed"] == 5


def test_the_plan_shows_it(data):
    made, work = planned(data)
    lines = plan_view.text(made, work).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("run    embed/train"))
    assert lines[at + 1].strip() == "4 of 4 shards to embed"
    nodes = {n["id"]: n for n in plan_view.data(made, work)["nodes"]}
    assert nodes["embed/train"]["work"] == work["embed/train"]
    assert "work" not in nodes["train/base/E0_0"]


def test_the_command_prints_the_same_numbers(data):
    spec = data / "mine.yaml"
    spec.write_text(json.dumps(spec_of(data).model_dump(exclude_unset=True)))
    said = CliRunner().invoke(app, ["plan", str(spec), "--json"])
    nodes = {n["id"]: n for n in json.loads(said.output)["nodes"]}
    assert nodes["embed/train"]["work"] == planned(data)[1]["embed/train"]
    assert not (data / "store").exists()  # it only looks
