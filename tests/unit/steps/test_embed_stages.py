"""One source shard becomes the same embedded shard in one actor or four, written atomically."""

import io
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_kit import SIDE, Pool, picture, write_source

from pipelines.data import sources
from pipelines.data.sources import list_shards
from pipelines.spec.data import Source
from pipelines.steps import embed
from pipelines.steps.embed_stages import (
    STAGES,
    AllStages,
    Decode,
    EncodePictures,
    EncodeTexts,
    Write,
)
from pipelines.steps.embed_work import Job
from pipelines.store import remote
from pipelines.store.artifacts import Store
from pipelines.store.remote import StorageError

PACKING = {"precision": "fp16", "pictures": "png", "jpeg_quality": 95, "row_group_rows": 4}


def cut(data):
    return data[: len(data) // 2]


@pytest.fixture
def job(tmp_path, encoders):
    """Of pictures of 16 and 32, the latter whole, from ``source/``."""
    return Job(
        store=Store.at(str(tmp_path / "store")),
        pool="embeddings/tiny",
        source=Source(path=str(tmp_path / "source")),
        resolutions=(SIDE, 2 * SIDE),
        full=(2 * SIDE,),
        packing=PACKING,
        encoders_folder=None,
        encoders=encoders,
        threads=1,
        batch_tokens=64,
        clip_batch=4,
    )


@pytest.fixture
def shard(tmp_path):
    """``shard(table)`` → the only shard of the source, with these columns."""

    def make(**columns):
        (tmp_path / "source").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "source" / "a.parquet")
        [found] = list_shards(Source(path=str(tmp_path / "source")))
        return found

    return make


@pytest.fixture
def made(shard, tmp_path):
    """A shard of six rows, the last of them bad."""
    write_source(tmp_path / "source" / "a.parquet", 0, rows=6, image=cut)
    [found] = list_shards(Source(path=str(tmp_path / "source")))
    return found


def rows_of(job, shard):
    return pq.read_table(job.store.full(job.path(shard, "parquet"))).to_pylist()


def record_of(job, shard):
    return job.store.read_json(job.path(shard, "json"))


def test_stages_apart_and_in_one_actor_make_the_same_bytes(job, made, passed):
    apart, whole = (replace(job, pool=f"embeddings/{name}") for name in ("apart", "whole"))
    passed(made, [stage(apart) for stage in STAGES])
    passed(made, [AllStages(whole)])
    data = [j.store.read(j.path(made, "parquet")) for j in (apart, whole)]
    assert data[0] == data[1] and data[0]
    record = [record_of(j, made) for j in (apart, whole)]
    assert [sorted(f.pop("seconds")) for f in record] == [["clip", "decode", "t5"]] * 2
    assert [f.pop("path").rpartition("/")[0] for f in record] == [apart.pool, whole.pool]
    assert record[0] == record[1]


def test_neither_batches_nor_a_second_run_change_a_byte(job, made, passed):
    """How much an encoder is given at once is no part of the recipe, so it must not show."""
    for name, more in (("a", {}), ("b", {}), ("c", {"batch_tokens": 9999, "clip_batch": 64})):
        passed(made, [AllStages(replace(job, pool=f"embeddings/{name}", **more))])
    pool = [
        job.store.read(replace(job, pool=f"embeddings/{n}").path(made, "parquet")) for n in "ab"
    ]
    assert pool[0] == pool[1]


def test_batches_are_found_the_same_on_every_cpu(job, made, passed):
    """The row tells of them, whether given or found; the recipe does not."""
    given, found, few = (
        replace(job, pool=f"embeddings/{name}", batch_tokens=tokens, clip_batch=pictures)
        for name, tokens, pictures in (
            ("given", 8192, 64),
            ("found", "auto", "auto"),
            ("few", 16, 2),
        )
    )
    for one in (given, found, few):
        passed(made, [AllStages(one)])
    data = [j.store.read(j.path(made, "parquet")) for j in (given, found)]
    assert data[0] == data[1]
    metrics = {"clip": 8192, "clip_image": 64, "t5": 8192}
    assert record_of(given, made)["batches"] == record_of(found, made)["batches"] == metrics
    assert record_of(few, made)["batches"] == {"clip": 16, "clip_image": 2, "t5": 16}


def test_the_row_says_what_came_of_the_shard(job, made, passed):
    work = passed(made, [AllStages(job)])
    record, rows = record_of(job, made), rows_of(job, made)
    assert (record["read"], record["rows"]) == (6, 5)
    assert record["quarantined"] == {"image is damaged or cut short": 1} and not record["filtered"]
    [fault] = record["faults"]
    assert (fault["key"], fault["source"]) == ("a-5", "a.parquet")
    assert sorted(r["key"] for r in rows) == [f"a-{i}" for i in range(5)]
    assert record["captions"] == len({r["caption"] for r in rows})
    assert sum(record["tokens"]["t5"].values()) == 5
    assert record["usable"][str(2 * SIDE)] == sum(r["pixels_32"] is not None for r in rows)
    assert not work.rows and not work.pictures and not work.embeddings  # little goes back


def test_every_size_of_picture_is_where_it_is_large_enough(job, shard, passed):
    """Centre squares and whole pictures, never enlarged; those all stages can use come first."""
    rng = np.random.default_rng(0)
    sides = (SIDE, 2 * SIDE, SIDE - 1, 2 * SIDE + 9)
    found = shard(
        image=[picture(rng, s) for s in sides], caption=["a cat"] * 4, key=["16", "32", "15", "41"]
    )
    passed(found, [AllStages(job)])
    rows, record = rows_of(job, found), record_of(job, found)
    assert [r["key"] for r in rows] == ["32", "41", "16"]
    assert record["usable"] == {"16": 3, "32": 2}
    assert [r["pixels_32"] is None for r in rows] == [False, False, True]
    assert [r["pixels_32_height"] for r in rows] == [32, 32, None]
    assert all(r["pixels_32_width"] > 32 for r in rows[:2])
    assert record["filtered"] == {"image is too small": 1}
    assert not record["quarantined"] and not record["faults"]  # filtered rows are not quarantined


def test_a_picture_with_several_captions_is_decoded_once(job, shard, passed):
    """And is as many rows, but for the caption that is no text; the picture is read once."""
    rng = np.random.default_rng(0)
    found = shard(
        image=[picture(rng), picture(rng)],
        caption=[["a cat", "", "a dog"], ["two"]],
        key=["a", "b"],
    )
    work = passed(found, [Decode(job)])
    assert (len(work.pictures), len(work.rows), work.read) == (2, 3, 2)
    passed(found, [AllStages(job)])
    rows = {r["key"]: r for r in rows_of(job, found)}
    assert {k: r["caption"] for k, r in rows.items()} == {"a": "a cat", "a#1": "a dog", "b": "two"}
    assert rows["a"]["clip_image"] == rows["a#1"]["clip_image"] != rows["b"]["clip_image"]
    assert record_of(job, found)["quarantined"] == {"one of several captions is left out": 1}


def test_pairs_that_clip_finds_apart_are_dropped(job, made, passed):
    """With their embeddings: what is left belongs to the rows that are left."""
    passed(made, [AllStages(job)])
    before = {r["key"]: r for r in rows_of(job, made)}
    scores = sorted(r["score_clip"] for r in before.values())
    least = (scores[1] + scores[2]) / 2
    filters = job.source.filters.model_copy(update={"clip_score": least})
    strict = replace(
        job, pool="embeddings/strict", source=job.source.model_copy(update={"filters": filters})
    )
    passed(made, [AllStages(strict)])
    after = {r["key"]: r for r in rows_of(strict, made)}
    assert after == {k: r for k, r in before.items() if r["score_clip"] >= least}
    record = record_of(strict, made)
    assert len(after) == 3 and record["filtered"] == {"CLIP score is too low": 2}


def test_a_shard_of_no_good_row_is_done_too(job, shard, passed):
    """It has a row that says so, and no file of its own."""
    found = shard(image=[b"<html>", b""], caption=["a cat", "a dog"], key=["a", "b"])
    assert not passed(found, [AllStages(job)]).error
    assert Pool(job.store.root).files("parquet") == {}
    record = record_of(job, found)
    assert record["rows"] == 0 and len(record["faults"]) == 2 and job.is_done(found)
    assert [f["name"] for f in embed.completed(job, [found])] == [found.name]


def test_what_is_done_is_not_done_again(job, made, passed):
    """Ray repeats a task whose actor died just after the work: nothing is read, nothing written."""
    stages = [stage(job) for stage in STAGES]
    late = stages[:3]
    begun = passed(made, late)  # by an actor that was thought dead, and ends later
    assert begun.rows
    passed(made, stages)
    before = Pool(job.store.root).done()
    again = passed(made, stages)
    assert again.done and again.read == 0
    begun_again = stages[3]
    begun_again.run(begun)
    assert begun.done and not begun.rows
    assert Pool(job.store.root).done() == before and len(before) == 1


@pytest.mark.parametrize("ending", ["parquet", "json"])
def test_what_is_lost_or_cut_is_done_again(job, made, passed, ending):
    passed(made, [AllStages(job)])
    whole = job.store.read(job.path(made, "parquet"))
    for damage in ("lost", "cut") if ending == "parquet" else ("lost",):
        assert job.is_done(made) and embed.completed(job, [made])
        file = Pool(job.store.root).files(ending).popitem()[1]
        if damage == "cut":
            file.write_bytes(cut(file.read_bytes()))
        else:
            file.unlink()
        assert not job.is_done(made) and not list(embed.completed(job, [made]))
        passed(made, [AllStages(job)])
        assert job.store.read(job.path(made, "parquet")) == whole


def test_a_row_that_is_no_json_is_named(job, made, passed):
    passed(made, [AllStages(job)])
    job.store.write(job.path(made, "json"), b"{")
    with pytest.raises(ValueError, match=r"embeddings/tiny/.*json is damaged .*remove it"):
        list(embed.completed(job, [made]))


class Flaky:
    """A source whose connection breaks after two rows, some times."""

    def __init__(self, monkeypatch, times):
        self.left, self.read = times, sources.read_shard
        monkeypatch.setattr(sources, "read_shard", self)
        monkeypatch.setattr(remote, "FIRST_WAIT_S", 0)

    def __call__(self, source, shard):
        for i, found in enumerate(self.read(source, shard)):
            if i == 2 and self.left:
                self.left -= 1
                raise OSError("connection reset")
            yield found


def test_a_source_that_breaks_off_is_read_again_from_the_start(job, made, passed, monkeypatch):
    passed(made, [AllStages(replace(job, pool="embeddings/calm"))])
    Flaky(monkeypatch, 3)
    passed(made, [AllStages(job)])
    calm = job.store.read(replace(job, pool="embeddings/calm").path(made, "parquet"))
    assert job.store.read(job.path(made, "parquet")) == calm
    assert record_of(job, made)["read"] == 6


def test_a_source_that_stays_away_is_an_error_and_writes_nothing(job, made, passed, monkeypatch):
    Flaky(monkeypatch, 99)
    work = passed(made, [AllStages(job)])
    assert re.search(r"a\.parquet: \d attempts failed.*connection reset", str(work.failure))
    assert isinstance(work.failure, StorageError) and work.failure.passes
    assert not work.done and "write" not in work.seconds
    assert not Pool(job.store.root).folder.exists()


def test_encoders_that_cannot_be_loaded_are_a_mistake_in_words(job, made, passed, tmp_path):
    """It goes through the other stages untouched, and nothing is written."""
    empty = str(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    for role, other in (("t5", empty), ("clip", empty), ("clip", "nowhere/clip")):
        broken = replace(job, encoders={**job.encoders, role: other})
        work = passed(made, [AllStages(broken)])
        assert f"encoder {role} {other!r} cannot be loaded" in work.error
        assert f"`encoders.{role}`" in work.error
    assert not Pool(job.store.root).folder.exists()


def test_embeddings_are_the_encoders(job, made, passed):
    """Each row's, to the precision they are kept in."""
    import torch
    from PIL import Image

    from pipelines.data.pictures import for_clip
    from pipelines.models.encoders import load_clip, load_t5
    from pipelines.store import columns

    passed(made, [AllStages(job)])
    rows = rows_of(job, made)
    t5, clip = load_t5(job.encoders), load_clip(job.encoders)
    source = pq.read_table(made.url).to_pylist()
    pictures = {r["key"]: Image.open(io.BytesIO(r["image"])) for r in source[:5]}
    for row in rows:
        raw = np.frombuffer(row["t5"], np.uint8).reshape(row["t5_length"], -1)
        [expected] = t5.text([row["caption"]])
        torch.testing.assert_close(
            columns.unpacked(raw.copy(), "fp16").float(), expected, atol=2e-3, rtol=2e-3
        )
        raw = np.frombuffer(row["clip_image"], np.uint8)
        [expected] = clip.image([for_clip(pictures[row["key"]].convert("RGB"), 16)])
        torch.testing.assert_close(
            columns.unpacked(raw.copy(), "fp16").float(), expected, atol=2e-3, rtol=2e-3
        )


def test_a_row_whose_embedding_is_not_finite_is_quarantined(job, made, passed):
    """And named, with the embedding; the others of its shard are kept."""
    whole = AllStages(job)
    t5 = whole.stages[1].encoders["t5"][0]
    captions = pq.read_table(made.url)["caption"].to_pylist()[:5]
    ids = [set(t5.tokenizer(c).input_ids) for c in captions]
    [token, *_] = ids[2] - set().union(*ids[:2], *ids[3:])
    t5.model.shared.weight[token] = float("nan")
    passed(made, [whole])
    record = record_of(job, made)
    assert record["rows"] == 4
    assert record["quarantined"]["embedding is not finite"] == 1
    [fault] = [f for f in record["faults"] if f["reason"] == "embedding is not finite"]
    assert fault["detail"].startswith("t5, for ") and captions[2][:40] in fault["detail"]
    assert captions[2] not in [row["caption"] for row in rows_of(job, made)]


RUNNING = {s.name: {"actors": None, "gpus": 0} for s in STAGES}


def test_without_a_word_every_cpu_has_an_actor_that_does_it_all():
    for cpus, shards, actors in ((4, 9, 4), (4, 2, 2), (1, 9, 1)):
        expected = [(AllStages, {"actors": actors, "cpus": 1, "gpus": 0})]
        assert embed.actor_pools(RUNNING, cpus, shards) == expected


def test_pools_as_the_spec_says_fit_the_cpus():
    """One actor where it says nothing; together they take no more CPUs than there are."""
    asked = {**RUNNING, "decode": {"actors": 3, "gpus": 0}, "clip": {"actors": None, "gpus": 0.5}}
    for cpus in (1, 2, 64):
        found = embed.actor_pools(asked, cpus, 99)
        assert [stage for stage, _ in found] == [Decode, EncodeTexts, EncodePictures, Write]
        assert [pool["actors"] for _, pool in found] == [3, 1, 1, 1]
        assert [pool["gpus"] for _, pool in found] == [0, 0, 0.5, 0]
        assert sum(pool["actors"] * pool["cpus"] for _, pool in found) <= cpus + 1e-9
        assert max(pool["cpus"] for _, pool in found) <= 1
    only_gpus = {**RUNNING, "t5": {"actors": None, "gpus": 1}}
    assert len(embed.actor_pools(only_gpus, 2, 9)) == 4


def test_a_shard_says_of_its_encoders_what_the_spec_does(job, made, passed):
    """Or else training would refuse what it should read; a published name counts."""
    from pipelines.steps import embed_tally
    from pipelines.store.dataset import Version, encoders_from_spec

    passed(made, [AllStages(job)])
    tally = embed_tally.Tally(job.pool)
    for record in embed.completed(job, [made]):
        tally.add(record)
    version = Version.write(job.store, "nodes/embed/x", tally.table(), tally.header)
    version.check_encoders(encoders_from_spec(job.encoders))
    version.check_encoders(version.header.encoders)
    for other in ({"t5_dtype": "bfloat16"}, {"clip": "ViT-L-14"}):
        with pytest.raises(ValueError, match="embed again"):
            version.check_encoders(encoders_from_spec({**job.encoders, **other}))


def test_further_encoders_come_by_name_dimension_and_kind(made, job, encoders, passed):
    """What the spec names is in the shard, is what the encoder gives, and conditions a network."""
    from ediffi_core.encoders import T5, encode_prompts
    from pipelines.models.encoders import load_clip, load_extra_encoders, load_t5
    from pipelines.store.shards import Header

    t5 = T5(encoders["t5"])
    further = {
        "words": {"model": encoders["t5"], "dim": t5.dim, "kind": "sequence"},
        "gist": {"model": encoders["t5"], "dim": t5.dim, "kind": "pooled"},
    }
    both = replace(job, encoders={**encoders, "more": further})
    assert passed(made, [AllStages(both)]).error == ""
    path = both.store.full(both.path(made, "parquet"))
    header = Header.from_metadata(pq.read_schema(path).metadata)
    assert {e.name: (e.dim, e.kind) for e in header.embeddings}.items() >= {
        "words": (t5.dim, "sequence"),
        "gist": (t5.dim, "pooled"),
    }.items()
    assert header.encoders["gist"]["sha256"] == t5.sha256
    for row in rows_of(both, made):
        assert row["words"] == row["t5"]
        [mean] = t5.pooled([row["caption"]])
        kept = np.frombuffer(row["gist"], np.float16)
        np.testing.assert_allclose(kept, mean.numpy(), rtol=2e-3, atol=1e-4)
    cond = encode_prompts(
        load_t5(both.encoders),
        load_clip(both.encoders),
        ["a red two"],
        load_extra_encoders(both.encoders),
    )
    for spec in header.embeddings:
        held = cond.sequences if spec.kind == "sequence" else cond.pooled
        assert held[spec.name].shape[-1] == spec.dim


def test_a_further_encoder_of_another_width_is_refused(made, job, encoders, passed):
    wrong = {"words": {"model": encoders["t5"], "dim": 7, "kind": "sequence"}}
    work = passed(made, [AllStages(replace(job, encoders={**encoders, "more": wrong}))])
    assert "write `dim: " in work.error and "instead of 7" in work.error


@pytest.mark.slow
def test_pictures_whose_server_was_away_are_asked_for_again(job, shard, passed, monkeypatch):
    """The shard is no final one, the version made of it stays whole, and no dead host for ever
    brings its shard back."""
    from pipelines.data import shard_pool
    from pipelines.data.rows import Reason, RowError

    rng = np.random.default_rng(0)
    image, kept = picture(rng), picture(rng)
    away = True

    def fetched(address, most, hosts):
        if address.endswith("/1.png") and not away:
            return image
        if address.endswith("/2.png"):
            return kept
        raise RowError(Reason.IMAGE_AWAY, "HTTP 503")

    monkeypatch.setattr("pipelines.data.web.fetch", fetched)
    found = shard(
        image=["https://x/1.png", "https://x/2.png"], caption=["a cat", "a dog"], key=["a", "b"]
    )
    passed(found, [AllStages(job)])
    first = record_of(job, found)
    assert (first["rows"], first["away"], first["asked"]) == (1, 1, 1)
    assert first["quarantined"] == {"image's server is away": 1}
    assert not list(embed.completed(job, [found])) and not job.is_done(found)
    before = job.store.read(first["path"])
    assert job.store.read_json(first["path"].removesuffix("parquet") + "json") == first

    away = False
    passed(found, [AllStages(job)])
    second = record_of(job, found)
    assert (second["rows"], second.get("away")) == (2, None) and not second["faults"]
    assert [f["rows"] for f in embed.completed(job, [found])] == [2]
    assert job.store.read(first["path"]) == before and second["path"] != first["path"]

    dead = replace(job, pool="embeddings/dead")
    away = True
    for asked in range(1, shard_pool.MAX_ATTEMPTS + 1):
        assert not dead.is_done(found)
        passed(found, [AllStages(dead)])
        assert record_of(dead, found)["asked"] == asked
    assert dead.is_done(found)
