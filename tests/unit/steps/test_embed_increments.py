"""Rows are encoded only once, even if they move to other files."""

import csv
import io
import json
import random
import tarfile

import embed_kit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_kit import NODE, WORDS, Pool, embed, picture, plan_of, write_spec

from pipelines.data import row_reuse
from pipelines.data.formats import folder
from pipelines.store import columns
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version
from pipelines.store.shards import pixels_column

pytestmark = pytest.mark.usefixtures("here")

ROWS = 48
ROUNDING = {"fp16": 2**-9, "bf16": 2**-6, "int8": 4 / 127}
"""A step or two of what each precision can say of the tiny encoders' values."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(folder, "SHARD_PICTURES", 16)


def pairs(count, seed=0):
    """Key → picture and caption, of which no two are alike."""
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    return {
        f"{seed}-{i:04d}": (picture(rng), " ".join(draw.choices(WORDS, k=draw.randint(1, 8))))
        for i in range(count)
    }


def as_text(home, rows):
    for key, (image, caption) in rows.items():
        (home / f"{key}.png").write_bytes(image)
        (home / f"{key}.txt").write_text(caption)


def as_csv(home, rows):
    with (home / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "text"])
        writer.writerows((f"{key}.png", caption) for key, (_, caption) in rows.items())
    for key, (image, _) in rows.items():
        (home / f"{key}.png").write_bytes(image)


def as_jsonl(home, rows):
    lines = [json.dumps({"file": f"{key}.png", "text": text}) for key, (_, text) in rows.items()]
    (home / "captions.jsonl").write_text("\n".join(lines))
    for key, (image, _) in rows.items():
        (home / f"{key}.png").write_bytes(image)


def as_parquet(home, rows):
    images, captions = ([row[i] for row in rows.values()] for i in (0, 1))
    table = {"key": list(rows), "image": images, "caption": captions}
    pq.write_table(pa.table(table), home / "a.parquet", row_group_size=10)


def as_parts(home, rows):
    """As Spark does: in files of new names, in another order."""
    few = list(rows.items())
    random.Random(len(few)).shuffle(few)
    for i in range(3):
        part = dict(few[i::3])
        (home / f"part-{i}").mkdir()
        as_parquet(home / f"part-{i}", part)
        (home / f"part-{i}" / "a.parquet").rename(home / f"part-{i}-{len(few):x}.parquet")
        (home / f"part-{i}").rmdir()


def as_tar(home, rows):
    with tarfile.open(home / "a.tar", "w") as tar:
        for key, (image, caption) in rows.items():
            for name, data in ((f"{key}.png", image), (f"{key}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


class Own:
    """A data set that is written anew, and the store it is embedded in."""

    def __init__(self, root, encoders, write=as_parquet, **packing):
        self.root, self.encoders, self.write, self.packing = root, encoders, write, packing
        self.store, self.reading = Store.at(str(root / "store")), {}

    def spec(self, rows):
        source = self.root / "source"
        source.mkdir(exist_ok=True)
        for file in source.iterdir():
            file.unlink()
        self.write(source, rows)
        return write_spec(
            self.root / "spec.yaml", source, self.encoders, self.packing, **self.reading
        )

    def embed(self, rows, store=None):
        """→ the version and the node's numbers."""
        store = store or self.store
        verdict, manifest = embed(self.spec(rows), store.root)
        version = Version.open(store, verdict.folder)
        assert version.missing() == []
        return version, manifest["metrics"]

    def planned(self, rows):
        """What the plan says of embedding them."""
        from pipelines.dag import sources
        from pipelines.planning import embedding
        from pipelines.spec.loading import load

        spec = self.spec(rows)
        found = sources.identify_all(load(spec))
        return embedding.estimate(plan_of(spec, self.store.root), self.store, found)[NODE]

    def anew(self, rows):
        """The same in an empty store."""
        return self.embed(rows, Store.at(str(self.root / f"anew-{random.getrandbits(32)}")))[0]


def table(version):
    """All rows of a version, shard by shard."""
    paths = [version.store.full(version.path(i)) for i in range(len(version))]
    return pa.concat_tables([pq.read_table(path) for path in paths])


def assert_same(one, other):
    """Byte for byte, but for the embeddings' last bits: those are their batch's."""
    left, right = table(one), table(other)
    assert one.table["name"].equals(other.table["name"])
    embeddings = {e.name: e for e in one.header.embeddings}
    assert one.header == other.header and left.column_names == right.column_names
    for name in left.column_names:
        if name == "score_clip":
            np.testing.assert_allclose(left[name], right[name], atol=1e-5)
        elif name not in embeddings:
            assert left[name].equals(right[name]), name
        else:
            packing, kind = one.header.packing, embeddings[name].kind
            precision = packing.precision if kind == "sequence" else packing.pooled
            width = columns.token_bytes(embeddings[name].dim, precision)
            raw = [b"".join(of[name].to_pylist()) for of in (left, right)]
            rows = [np.frombuffer(bytearray(r), np.uint8).reshape(-1, width) for r in raw]
            values = [columns.unpacked(r, precision).float() for r in rows]
            np.testing.assert_allclose(*values, rtol=ROUNDING[precision], atol=ROUNDING[precision])


def grown(rows):
    """One picture other, one caption, one key, one pair removed, and a sixth new."""
    picture, caption, key, _, *rest = rows
    [other] = pairs(1, seed=7).values()
    return {
        picture: (other[0], rows[picture][1]),
        caption: (rows[caption][0], "a caption of its own"),
        f"{key}-renamed": rows[key],
        **{key: rows[key] for key in rest},
        **pairs(len(rows) // 6, seed=8),
    }


@pytest.mark.slow
@pytest.mark.parametrize("write", [as_text, as_csv, as_jsonl, as_parquet, as_parts, as_tar])
def test_of_a_data_set_that_grew_only_what_is_new_is_encoded(write, encoders, tmp_path):
    own, rows = Own(tmp_path, encoders, write), pairs(ROWS)
    _, metrics = own.embed(rows)
    assert (metrics["rows"], metrics["encoded_now"], metrics["copied_now"]) == (ROWS, ROWS, 0)
    plan = own.planned(grown(rows))
    version, metrics = own.embed(grown(rows))
    assert (metrics["rows"], metrics["encoded_now"]) == (ROWS - 1 + ROWS // 6, 2 + ROWS // 6)
    assert (plan["pairs"], plan["copied"]) == (metrics["encoded_now"], metrics["copied_now"])
    keys = table(version)["key"].to_pylist()
    assert len(set(keys)) == len(keys) and sum("renamed" in key for key in keys) == 1
    assert_same(version, own.anew(grown(rows)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "packing",
    [
        {"precision": "int8", "pictures": "jpeg", "row_group_rows": 3},
        {"precision": "bf16", "pictures": "png"},
    ],
)
def test_what_is_packed_is_copied_as_it_is(packing, encoders, tmp_path):
    """JPEG, or bytes of int8, packed a second time would be others."""
    own, rows = Own(tmp_path, encoders, **packing), pairs(ROWS)
    before = {r["key"]: r for r in table(own.embed(rows)[0]).to_pylist()}
    more = {**pairs(5, seed=3), **rows}
    version, metrics = own.embed(more)
    assert metrics["encoded_now"] == 5
    after = {r["key"]: r for r in table(version).to_pylist()}
    assert {key: after[key] for key in before} == before
    assert_same(version, own.anew(more))


@pytest.mark.slow
def test_what_packing_changed_is_told_of_copies_too(encoders, tmp_path):
    own, rows = Own(tmp_path, encoders, precision="int8"), pairs(ROWS)
    own.embed(rows)
    more = {**rows, **pairs(2, seed=3)}
    metrics = [
        v.store.read_json(f"{v.folder}/stats.json") for v in (own.embed(more)[0], own.anew(more))
    ]
    assert metrics[0]["rms_error"] == pytest.approx(metrics[1]["rms_error"], rel=1e-4)
    assert (
        metrics[0]["tokens"] == metrics[1]["tokens"]
        and metrics[0]["captions"] == metrics[1]["captions"]
    )


@pytest.mark.slow
def test_pairs_that_clip_found_apart_are_not_encoded_again(encoders, tmp_path):
    """They are in no shard; a filter that drops half would have half encoded at every growth."""
    own, rows = Own(tmp_path, encoders), pairs(ROWS)
    scores = sorted(table(own.embed(rows)[0])["score_clip"].to_pylist())
    own.reading = {"filters": {"clip_score": (scores[ROWS // 2 - 1] + scores[ROWS // 2]) / 2}}
    version, metrics = own.embed(rows)
    assert (metrics["rows"], metrics["filtered"], metrics["encoded_now"]) == (
        ROWS // 2,
        ROWS // 2,
        ROWS,
    )
    more = {**rows, **pairs(1, seed=3)}
    version, metrics = own.embed(more)
    assert metrics["encoded_now"] == 1 and metrics["copied_now"] == ROWS // 2
    assert metrics["filtered"] in (ROWS // 2, ROWS // 2 + 1)
    assert_same(version, own.anew(more))
    _, metrics = own.embed({**more, **pairs(1, seed=4)})  # nor the time after
    assert metrics["encoded_now"] == 1


@pytest.mark.slow
def test_of_several_captions_the_new_one_alone_is_encoded(encoders, tmp_path):
    def write(home, rows):
        table = {"key": list(rows), "image": [i for i, _ in rows.values()]}
        table["caption"] = [list(texts) for _, texts in rows.values()]
        pq.write_table(pa.table(table), home / "a.parquet")

    own = Own(tmp_path, encoders, write)
    rows = {key: (image, [text, "two cat"]) for key, (image, text) in pairs(6).items()}
    assert own.embed(rows)[1]["encoded_now"] == 12
    key = next(iter(rows))
    later = {**rows, key: (rows[key][0], ["blue dog", *rows[key][1]])}
    version, metrics = own.embed(later)
    assert (metrics["rows"], metrics["encoded_now"]) == (13, 1)
    assert_same(version, own.anew(later))


@pytest.mark.slow
def test_stages_that_a_picture_is_too_small_for_stay_empty(encoders, tmp_path, monkeypatch):
    import yaml

    own = Own(tmp_path, encoders)
    spec = own.spec

    def with_two_stages(rows):
        path = spec(rows)
        raw = yaml.safe_load(path.read_text())
        raw["stages"]["sr32"] = yaml.safe_load(embed_kit.SMOKE.read_text())["stages"]["sr32"]
        path.write_text(yaml.safe_dump(raw))
        return path

    monkeypatch.setattr(own, "spec", with_two_stages)
    rows = pairs(ROWS)
    version, _ = own.embed(rows)
    assert 0 < version.usable(32).sum() < ROWS
    more = {**rows, **pairs(3, seed=3)}
    version, metrics = own.embed(more)
    assert metrics["encoded_now"] == 3
    assert_same(version, own.anew(more))
    assert pixels_column(32) in table(version).column_names


def harmed(path, change):
    path.write_bytes(change(path.read_bytes()))


def flipped(data):
    """In the middle, where the values are: the same size, another content."""
    at = len(data) // 2
    return data[:at] + bytes(b ^ 255 for b in data[at : at + 8]) + data[at + 8 :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "change"),
    [
        ("parquet", flipped),
        ("parquet", lambda data: data[:-1]),
        ("parquet", None),
        ("json", None),
        ("rows", None),
        ("rows", lambda data: data[: len(data) // 2]),
    ],
)
def test_what_is_damaged_is_not_copied(ending, change, encoders, tmp_path):
    """It is encoded, as if it had never been."""
    own, rows = Own(tmp_path, encoders), pairs(12)
    own.embed(rows)
    [path] = Pool(own.store.root).files(ending).values()
    harmed(path, change) if change else path.unlink()
    more = {**rows, **pairs(1, seed=3)}
    version, metrics = own.embed(more)
    assert (metrics["rows"], metrics["encoded_now"]) == (13, 13)
    assert_same(version, own.anew(more))


@pytest.mark.slow
def test_a_store_of_before_is_read_and_grown(encoders, tmp_path):
    """Shards had no contents beside them: they are used whole, and what changes is made anew."""
    own, rows = Own(tmp_path, encoders, as_parts), pairs(12)
    own.embed(rows)
    for path in Pool(own.store.root).files("rows").values():
        path.unlink()
    assert plan_of(own.spec(rows), own.store.root).verdicts[NODE].cached
    more = {**rows, **pairs(1, seed=3)}
    _, metrics = own.embed(more)
    assert metrics["encoded_now"] == 13


@pytest.mark.slow
def test_a_killed_jobs_successor_copies_the_same(encoders, tmp_path, monkeypatch):
    """What the first got done is not done again, and the rest comes out as if it had gone on."""
    from pipelines.steps import embed as step

    own, rows = Own(tmp_path, encoders, as_text), pairs(ROWS)
    own.embed(rows)
    later, run = grown(rows), step.run
    later |= {key: (rows[key][0], "a caption of its own") for key in list(rows)[5::9]}

    def killed(job, todo, *rest):
        assert len(todo) > 2
        yield from run(job, todo[:2], *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            own.embed(later)
    done = Pool(own.store.root).done()
    version, _ = own.embed(later)
    assert {name: Pool(own.store.root).done()[name] for name in done} == done
    undisturbed = Own(tmp_path / "other", encoders, as_text)
    (tmp_path / "other").mkdir()
    undisturbed.embed(rows)
    other, _ = undisturbed.embed(later)
    names = version.table["name"].to_pylist()
    for i, name in enumerate(names):
        assert version.store.read(version.path(i)) == other.store.read(other.path(i)), name


def test_weights_that_changed_under_their_name_are_not_mixed(encoders, tmp_path, monkeypatch):
    """Nothing tells the plan, and a shard of both would be of neither."""
    from ediffi_core.encoders import FrozenEncoder

    own, rows = Own(tmp_path, encoders), pairs(6)
    own.embed(rows)
    monkeypatch.setattr(FrozenEncoder, "sha256", "f" * 64)
    with pytest.raises(ValueError, match=r"now has sha256 ffffffffffff .*to embed all again"):
        own.embed({**rows, **pairs(1, seed=3)})


@pytest.mark.slow
def test_an_index_too_small_for_all_rows_still_finds_their_shards(encoders, tmp_path, monkeypatch):
    """Of files that all have new names, so that nothing else leads to them."""

    def write(home, rows):
        few = list(rows.items())
        for i in range(0, len(few), 12):
            as_parquet(home, dict(few[i : i + 12]))
            (home / "a.parquet").rename(home / f"{len(few)}-{i}.parquet")

    monkeypatch.setattr(row_reuse, "MAX_INDEXED_ROWS", ROWS // 2)
    own, rows = Own(tmp_path, encoders, write), pairs(ROWS)
    own.embed(rows)
    _, metrics = own.embed({**rows, **pairs(2, seed=3)})
    assert metrics["encoded_now"] == 2 and metrics["copied_now"] == ROWS


@pytest.mark.parametrize("most", [5, 64, 10**6])
def test_the_index_knows_where_what_it_has_lies(most, monkeypatch):
    monkeypatch.setattr(row_reuse, "MAX_INDEXED_ROWS", most)
    draw = random.Random(0)
    shards = [[draw.randbytes(16) for _ in range(draw.randint(0, 40))] for _ in range(12)]
    prefixes = [
        np.frombuffer(b"".join(c[:8] for c in contents), ">u8").astype(np.uint64)
        for contents in shards
    ]
    found = row_reuse.ReuseIndex({}, [str(i) for i in range(12)], *row_reuse._index(iter(prefixes)))
    rows = sum(map(len, shards))
    assert len(found.prefixes) <= most and found.is_sampled == (rows > most)
    for i, contents in enumerate(shards):
        for content in contents:
            assert found.shards_with(content) in ([str(i)], [] if found.is_sampled else [str(i)])
    assert found.shards_with(draw.randbytes(16)) == []


@pytest.mark.parametrize("rows", [[0], [4, 3, 11], list(range(12))])
def test_rows_are_copied_from_a_bucket_as_from_a_disk(rows, encoders, tmp_path):
    """In any order, from any of the row groups."""
    import fsspec

    own = Own(tmp_path, encoders, row_group_rows=5)
    version, _ = own.embed(pairs(12))
    memory = fsspec.filesystem("memory")
    memory.put(own.store.root, "/copies", recursive=True)
    try:
        for store in (own.store, Store.at("memory://copies")):
            header, found = row_reuse._rows(store, version.path(0), rows)
            assert header == version.header and found.equals(table(version).take(rows))
            contents = row_reuse.RowsSidecar.read(store, version.path(0))
            assert len(contents.contents) == 12
        with pytest.raises(FileNotFoundError):
            row_reuse._rows(Store.at("memory://nowhere"), version.path(0), rows)
    finally:
        memory.rm("/copies", recursive=True)
