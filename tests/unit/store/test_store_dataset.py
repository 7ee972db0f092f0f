"""A version: a list of shards in a pool, that knows what is missing and who embedded it."""

from dataclasses import replace

import pytest
from tiny_shards import ENCODERS, header, made_rows

from pipelines.spec.encoders import Encoders
from pipelines.store.dataset import Version, encoders_from_spec


def test_a_version_opens_as_it_was_written(store, version):
    found = Version.open(store, version.folder)
    assert found.header == version.header
    assert found.table.equals(version.table)
    assert found.usable(4).tolist() == [11, 3, 8, 1, 14]
    assert found.usable(8).tolist() == [9, 2, 8, 1, 11]
    assert len(found) == 5


def test_a_version_is_in_the_order_of_names_whoever_was_first(store, version):
    other = Version.write(store, "nodes/embed/v2", version.table[::-1], version.header)
    assert other.table.equals(version.table)


def test_what_is_missing_is_found_by_size(store, tmp_path, version):
    assert version.missing() == []
    (tmp_path / version.path(1)).unlink()
    torn = tmp_path / version.path(3)
    torn.write_bytes(torn.read_bytes()[:-1])
    assert version.missing() == ["0001", "0003"]


def test_the_pool_is_listed_once_however_many_shards(store, version, monkeypatch):
    calls = []
    files = type(store).files
    monkeypatch.setattr(
        type(store), "files", lambda self, folder: calls.append(folder) or files(self, folder)
    )
    version.missing()
    assert calls == ["embeddings/tiny"]


def test_other_encoders_are_both_named(version):
    version.check_encoders(ENCODERS)
    other = {"t5": {"name": "t5-xxl", "sha256": "cd" * 32, "dtype": "bfloat16"}}
    with pytest.raises(ValueError, match=r"t5-tiny \(sha256 abab.*not by t5-xxl \(sha256 cdcd"):
        version.check_encoders(other)
    with pytest.raises(ValueError, match=r"clip \(none\), not by ViT"):
        version.check_encoders({"clip": {"name": "ViT", "sha256": "ef", "dtype": "float32"}})


def test_weights_tell_encoders_apart_where_they_are_known(version):
    """Their folder may have moved; what they were computed in counts all the same."""
    moved = {role: {**e, "name": f"/elsewhere/{role}"} for role, e in ENCODERS.items()}
    version.check_encoders(moved)
    version.check_encoders({"t5": {"name": "t5-tiny"}})
    for change in ({"sha256": "cd" * 32}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="embedded by t5 t5-tiny"):
            version.check_encoders({"t5": {**ENCODERS["t5"], **change}})
    with pytest.raises(ValueError, match=r"not by t5-xxl \(float32\); embed again"):
        version.check_encoders({"t5": {"name": "t5-xxl", "dtype": "float32"}})


def embedded_by(version, **clip):
    header = replace(version.header, encoders={"clip": {**CLIP, **clip}})
    return replace(version, header=header)


CLIP = {"name": "ViT-L-14", "sha256": "ab" * 32, "dtype": "float32"}
QUICK = {"activation": "QuickGELU of its tag", "how": "QuickGELU, 77 tokens"}


@pytest.mark.parametrize("known", ["name", "sha256"])
def test_equal_weights_with_another_activation_are_not_mixed(version, known):
    """Shards that say nothing had the activation of the model's configuration."""
    old, new = embedded_by(version), embedded_by(version, **QUICK)
    want = {known: CLIP[known], "dtype": "float32"}
    old.check_encoders({"clip": want})
    new.check_encoders({"clip": want | {"activation": QUICK["activation"]}})
    for shards, other in ((old, QUICK), (new, {})):
        with pytest.raises(ValueError, match=r"QuickGELU of its tag.*embed again"):
            shards.check_encoders({"clip": want | other})


def test_how_an_encoder_works_counts_where_both_say_it(version):
    old, new = embedded_by(version), embedded_by(version, how="GELU, 77 tokens")
    old.check_encoders(new.header.encoders)
    new.check_encoders(old.header.encoders)
    for how in ("GELU, 20 tokens", "QuickGELU, 77 tokens"):
        with pytest.raises(ValueError, match=rf"GELU, 77 tokens.*not by.*{how}"):
            new.check_encoders({"clip": {**CLIP, "how": how}})
    # A folder whose configuration says QuickGELU, beside a name whose tag does: the same.
    named = embedded_by(version, **QUICK)
    named.check_encoders({"clip": {**CLIP, "name": "/a/folder", "how": QUICK["how"]}})


def test_what_a_spec_names_is_what_a_header_must_say(tmp_path):
    """As the embedding job names it: by name where it has one, and by its type."""
    spec = Encoders(t5_dtype="bfloat16", more={"byt5": {"model": "google/byt5-small", "dim": 8}})
    assert encoders_from_spec(spec.model_dump()) == {
        "t5": {"name": "google/t5-v1_1-xxl", "dtype": "bfloat16"},
        "clip": {"name": "ViT-L-14", "dtype": "float32", "activation": "QuickGELU of its tag"},
        "byt5": {"name": "google/byt5-small", "dtype": "float32"},
    }
    assert encoders_from_spec({"t5": str(tmp_path), "more": {}}) == {"t5": {"dtype": "float32"}}
    assert encoders_from_spec({"more": {}}) == {}  # made ones


def test_reasons_are_counted_over_all_shards(store, version):
    entries = version.table.to_pylist()
    for entry, reasons in zip(entries, ({"caption is empty": 2}, {}, {"caption is empty": 1})):
        entry["quarantined"] = reasons
    shards = [
        {k: v for k, v in e.items() if k not in ("filtered", "quarantined")}
        | {"quarantined": e["quarantined"] if isinstance(e["quarantined"], dict) else {}}
        | {"usable": {4: e["usable_4"], 8: e["usable_8"]}}
        for e in entries
    ]
    found = Version.write(store, "nodes/embed/v3", shards, version.header)
    assert found.counts("quarantined") == {"caption is empty": 3}
    assert found.counts("filtered") == {}


def test_no_version_is_one_sentence(store, make_version):
    with pytest.raises(ValueError, match=r"there is no .*dataset.parquet; run its embed node"):
        Version.open(store, "nowhere")
    store.write("odd/dataset.parquet", b"PAR1 not really")
    with pytest.raises(ValueError, match=r"odd/dataset.parquet cannot be read"):
        Version.open(store, "odd")
    with pytest.raises(ValueError, match="no shards"):
        make_version([])
    one = make_version([made_rows(2)], header())
    with pytest.raises(ValueError, match="shard 0000 twice"):
        Version.write(store, "x", one.table.take([0, 0]), one.header)
