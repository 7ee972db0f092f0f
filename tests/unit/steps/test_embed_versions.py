"""Versions of a data set share a pool: changed rows are encoded, lost shards are restored."""

import re

import pytest
from embed_kit import NODE, Pool, embed, plan_of, write_encoders, write_source, write_spec

from pipelines.dag import plan as plans
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version

pytestmark = pytest.mark.usefixtures("here")


class Own:
    """A data set of four files of three rows, and the store it is embedded in."""

    def __init__(self, root, encoders):
        self.source, self.store, self.root = root / "source", Store.at(str(root / "store")), root
        self.encoders = encoders
        for i in range(4):
            write_source(self.source / f"{i}.parquet", i)
        self.pool = Pool(self.store.root)
        self.reading = {}

    @property
    def spec(self):
        return write_spec(self.root / "spec.yaml", self.source, self.encoders, None, **self.reading)

    def verdict(self):
        return plan_of(self.spec, self.store.root).verdicts[NODE]

    def embed(self):
        """→ the version, why it was made, and how many rows were encoded for it."""
        verdict, manifest = embed(self.spec, self.store.root)
        assert self.verdict().cached
        version = Version.open(self.store, verdict.folder)
        assert version.missing() == []
        return version, verdict.why, manifest["metrics"]["encoded_now"]

    def keys(self, version):
        """Read as training reads them."""
        import pyarrow.parquet as pq

        paths = [self.store.full(version.path(i)) for i in range(len(version))]
        return sorted(k for p in paths for k in pq.read_table(p)["key"].to_pylist())


@pytest.fixture
def own(tmp_path, encoders):
    return Own(tmp_path, encoders)


def paths(version):
    return {version.path(i) for i in range(len(version))}


def keys(*files, rows=3):
    return sorted(f"{f}-{i}" for f in files for i in range(rows))


@pytest.mark.slow
def test_an_added_file_alone_is_encoded(own):
    old, why, encoded = own.embed()
    assert (why, encoded) == ("never done here", 12)
    before = own.pool.done()
    write_source(own.source / "4.parquet", 4, rows=5)
    new, why, encoded = own.embed()
    assert re.fullmatch(r"its data changed \(4 shards, .* kB → 5 shards, .* kB\)", why)
    assert encoded == 5 and len(new) == 5
    assert paths(old) < paths(new)
    assert {k: v for k, v in own.pool.done().items() if k in before} == before
    assert own.keys(new) == sorted(keys(0, 1, 2, 3) + keys(4, rows=5))
    assert own.keys(old) == keys(0, 1, 2, 3) and old.missing() == []


def test_a_changed_file_alone_is_encoded_and_the_old_version_stays(own):
    old, *_ = own.embed()
    before, data = own.pool.done(), own.pool.bytes()
    write_source(own.source / "2.parquet", 99, caption=lambda _: "another caption")
    new, why, encoded = own.embed()
    assert "its data changed" in why and "identity" not in why
    assert encoded == 3 and len(new) == 4
    assert len(paths(old) & paths(new)) == 3 and len(paths(new) - paths(old)) == 1
    after = own.pool.done()
    assert {k: after[k] for k in before} == before and len(after) == 5
    assert {k: v for k, v in own.pool.bytes().items() if k in data} == data
    assert own.keys(new) == own.keys(old) == keys(0, 1, 2, 3)
    assert old.missing() == []


@pytest.mark.slow
def test_a_key_in_two_files_is_said_and_costs_no_row(own):
    """And counted anew for every version: the shards know nothing of each other."""
    own.embed()
    write_source(own.source / "more" / "0.parquet", 9)  # its rows are called 0-0, 0-1 and 0-2
    version, _, encoded = own.embed()
    assert encoded == 3 and own.keys(version) == sorted(keys(0, 1, 2, 3) + keys(0))
    verdict = own.verdict()
    assert verdict.manifest["metrics"]["repeated"] == 3
    found = own.store.read_json(f"{verdict.folder}/stats.json")["repeated"]
    assert sorted(e["key"] for e in found["examples"]) == keys(0)
    assert len({(e["first"], e["again"]) for e in found["examples"]}) == 1
    (own.source / "0.parquet").unlink()
    own.embed()
    assert own.verdict().manifest["metrics"]["repeated"] == 0


def test_without_a_file_nothing_is_encoded(own):
    old, *_ = own.embed()
    before = own.pool.done()
    (own.source / "1.parquet").unlink()
    new, _, encoded = own.embed()
    assert encoded == 0 and own.pool.done() == before
    assert paths(new) < paths(old) and own.keys(new) == keys(0, 2, 3)
    write_source(own.source / "1.parquet", 1)  # and back again: the first version, as it was
    verdict = own.verdict()
    assert verdict.cached and verdict.folder == old.folder


def test_a_touched_or_moved_data_set_is_the_same(own):
    own.embed()
    for file in own.source.iterdir():
        file.touch()
    assert own.verdict().cached
    own.source = own.source.rename(own.root / "elsewhere")
    assert own.verdict().cached


@pytest.mark.slow
def test_a_bad_row_put_right_is_encoded_alone(own):
    write_source(own.source / "3.parquet", 3, image=halved)
    old, _, encoded = own.embed()
    assert encoded == 11 and old.counts("quarantined") == {"image is damaged or cut short": 1}
    write_source(own.source / "3.parquet", 3)
    new, _, encoded = own.embed()
    assert encoded == 1 and new.counts("quarantined") == {}


@pytest.mark.slow
@pytest.mark.parametrize("other", ["encoder", "filter"])
def test_another_encoder_or_filter_makes_a_pool_of_its_own(own, other, encoders, tmp_path):
    old, *_ = own.embed()
    if other == "encoder":
        own.encoders = {**own.encoders, "t5": write_encoders(tmp_path / "other", seed=1)["t5"]}
    else:
        own.reading = {"filters": {"caption_characters": {"max": 40}}}
    new, why, _ = own.embed()
    assert ("encoders.t5" if other == "encoder" else "caption_characters") in why
    pools = [{p.rpartition("/")[0] for p in paths(v)} for v in (old, new)]
    assert len(pools[0]) == len(pools[1]) == 1 and pools[0] != pools[1]
    assert old.missing() == [] and own.keys(old) == keys(0, 1, 2, 3)
    own.encoders, own.reading = encoders, {}
    assert own.verdict().cached and own.verdict().folder == old.folder


def halved(data):
    return data[: len(data) // 2]


def lose(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lose, cut])
@pytest.mark.parametrize(
    ("many", "why"), [(1, "1 of 4 shards is lost"), (3, "3 of 4 shards are lost")]
)
def test_lost_shards_are_noticed_and_they_alone_restored(own, damage, many, why):
    version, *_ = own.embed()
    before, data = own.pool.done(), own.pool.bytes()
    lost = dict(sorted(own.pool.files("parquet").items())[:many])
    for path in lost.values():
        damage(path)
    verdict = own.verdict()
    assert (verdict.cached, verdict.why) == (False, why)
    assert verdict.folder == version.folder  # the same result: what reads it need not run
    _, said, encoded = own.embed()
    assert (said, encoded) == (why, 3 * many)
    assert own.pool.bytes() == data
    kept = {k for k in before if f"{k}.parquet" not in lost}
    assert {k: own.pool.done()[k] for k in kept} == {k: before[k] for k in kept}


def test_a_lost_row_beside_a_shard_reruns_nothing(own):
    """It says that a shard is done while it is made; a version has all that it says."""
    own.embed()
    for path in own.pool.files("json").values():
        path.unlink()
    assert own.verdict().cached


@pytest.mark.slow
def test_a_damaged_version_is_made_again_of_the_shards_that_are_there(own):
    version, *_ = own.embed()
    before = own.pool.done()
    file = own.root / "store" / version.folder / "dataset.parquet"
    whole = file.read_bytes()
    file.write_bytes(bytes(len(whole)))
    assert own.verdict().why == "its list of shards is damaged"
    _, _, encoded = own.embed()
    assert encoded == 0 and file.read_bytes() == whole and own.pool.done() == before


@pytest.mark.slow
def test_a_plan_lists_each_pool_once(own, monkeypatch):
    """Both splits read it; with a million shards a listing takes a while."""
    from lone_kit import LoneRunner

    from pipelines.dag import sources
    from pipelines.spec.loading import load

    plan = plan_of(own.spec, own.store.root)
    runner = LoneRunner(plan, own.store)
    for split in ("train", "validation"):
        runner.run_node(plan.verdicts[f"embed/{split}"])
    listed = []
    real = Store.files
    monkeypatch.setattr(Store, "files", lambda s, folder: listed.append(folder) or real(s, folder))
    spec = load(own.spec)
    found = plans.make(spec, own.store, sources.identify_all(spec)).verdicts
    assert found[NODE].cached and found["embed/validation"].cached
    [pool] = [folder for folder in listed if folder.startswith("embeddings/")]
    assert pool == found[NODE].manifest["info"]["pool"]


def test_data_that_changes_under_a_run_is_refused(own):
    """The plan named another content than there is: what would come is not what it says."""
    from lone_kit import LoneRunner

    plan = plan_of(own.spec, own.store.root)
    write_source(own.source / "0.parquet", 50)
    with pytest.raises(ValueError, match="changed while the pipeline ran; run it again"):
        LoneRunner(plan, own.store).run_node(plan.verdicts[NODE])
    assert not own.pool.folder.exists()


def test_a_file_that_arrives_under_a_run_is_left_for_the_next(own):
    from lone_kit import LoneRunner

    from pipelines.runs.continued import keep_listings

    plan = plan_of(own.spec, own.store.root)
    keep_listings(plan, own.store)
    there = len(list(own.source.iterdir()))
    write_source(own.source / "later.parquet", 60)
    runner = LoneRunner(plan, own.store)
    assert runner.run_node(plan.verdicts[NODE])["metrics"]["shards"] == there
    assert not own.verdict().cached  # the next plan takes it


def test_data_of_no_use_is_a_mistake_that_says_where_to_look(own):
    for file in own.source.iterdir():
        write_source(file, int(file.stem), rows=1, image=halved)
    with pytest.raises(ValueError, match=r"no row of .* \(4 × image is damaged.*`faults` in"):
        embed(own.spec, own.store.root)
    assert not own.verdict().cached
