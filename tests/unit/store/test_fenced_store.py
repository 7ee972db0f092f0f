"""Only a folder's owner writes into it; temporary files and ages by the clock of the store."""

import os
import pickle

import pytest

from pipelines.store import compare_and_swap, scratch
from pipelines.store.age import age_s
from pipelines.store.artifacts import MANIFEST, Store
from pipelines.store.fenced import FencedStore, OwnerChanged
from pipelines.store.scratch import is_abandoned, temp_suffix

NODE, RECORD = "nodes/train/a-1", "leases/nodes/train/a-1.json"


@pytest.fixture
def store(folder_or_bucket):
    return folder_or_bucket


def owned(store, by="alpha.1.aaaa", **more):
    """The store of the driver alpha, after the record came to name an owner."""
    store.write_json(RECORD, {"owner": by, "released": False, **more})
    mine = FencedStore(store.root, folder=NODE, record=RECORD, owner="alpha.1.aaaa")
    return pickle.loads(pickle.dumps(mine))


def test_the_owner_writes_and_another_does_not(store):
    mine = owned(store)
    mine.write(f"{NODE}/a", b"one")
    mine.write(f"{NODE}/a", b"two")
    mine.remove(f"{NODE}/none")
    owned(store, "beta.2.bbbb")
    for write in (
        lambda: mine.write(f"{NODE}/a", b"three"),
        lambda: mine.write(f"{NODE}/new", b"three"),
        lambda: mine.remove(f"{NODE}/a"),
        lambda: mine.remove_folder(NODE),
    ):
        with pytest.raises(OwnerChanged, match="another driver has taken over nodes/train/a-1"):
            write()
    mine.write("elsewhere", b"free")
    assert set(store.files(NODE)) == {"a"} and store.read(f"{NODE}/a") == b"two"


@pytest.mark.parametrize("record", [b"{half", None])
def test_without_a_sound_record_nobody_owns_it(store, record):
    mine = owned(store)
    if record is None:
        store.remove(RECORD)
    else:
        store.write(RECORD, record)
    with pytest.raises(OwnerChanged):
        mine.write(f"{NODE}/a", b"one")


def test_once_it_is_sealed_only_the_manifest_is_written(store):
    mine = owned(store, sealed="{}")
    with pytest.raises(OwnerChanged, match="is finished already"):
        mine.write(f"{NODE}/a", b"one")
    mine.write(f"{NODE}/{MANIFEST}", b"{}")


def test_a_writer_paused_after_its_check_does_not_overwrite(s3, tmp_path, monkeypatch):
    store = Store.at(f"s3://bucket/{tmp_path.name}/store")
    mine, put = owned(store), compare_and_swap.put_if

    def taken_over_before(*args):
        monkeypatch.setattr("pipelines.store.fenced.put_if", put)
        owned(store, "beta.2.bbbb")
        store.write(f"{NODE}/a", b"the successor's")
        return put(*args)

    monkeypatch.setattr("pipelines.store.fenced.put_if", taken_over_before)
    with pytest.raises(OwnerChanged):
        mine.write(f"{NODE}/a", b"late")
    assert store.read(f"{NODE}/a") == b"the successor's"


def test_a_process_paused_amid_a_swap_holds_up_the_writers_of_that_record_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(compare_and_swap, "LOCK_TIMEOUT_S", 0.05)
    store = Store.at(str(tmp_path))
    mine, other = owned(store), "leases/other.json"
    nothing = compare_and_swap.read_snapshot(store, other)
    with compare_and_swap.locked(store, RECORD):
        assert compare_and_swap.compare_and_swap(store, other, nothing, b"{}")
        with pytest.raises(TimeoutError, match=r"\.lock has been locked for .* s; a process that"):
            mine.write(f"{NODE}/a", b"one")
    mine.write(f"{NODE}/a", b"one")


@pytest.mark.slow
def test_a_large_object_is_replaced_in_parts_under_the_same_condition(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_and_swap, "ONE_PUT", 1000)
    monkeypatch.setattr(compare_and_swap, "PART", 5 * 2**20)
    store = Store.at(f"s3://bucket/{tmp_path.name}/store")
    large = bytes(range(256)) * 24_000
    store.write("a", b"before")
    tag = compare_and_swap.tag_of(store, "a")
    sent, call = [], store.fs.call_s3
    monkeypatch.setattr(
        store.fs, "call_s3", lambda name, **args: sent.append((name, args)) or call(name, **args)
    )
    assert compare_and_swap.put_if(store, "a", tag, large) and store.read("a") == large
    # moto does not check this condition of the last request, Amazon S3 does.
    [(_, last)] = [(name, args) for name, args in sent if name == "complete_multipart_upload"]
    assert last["IfMatch"] == tag and len(last["MultipartUpload"]["Parts"]) == 2


def test_ages_are_told_by_the_stores_clock(store, monkeypatch):
    store.write("a", b"")
    monkeypatch.setattr(scratch.time, "time", lambda: 1e6)
    assert age_s(store, "a") < 60 and age_s(store, "none") is None


def test_temporary_files_are_judged_by_the_folders_clock_and_their_own_namespace(
    tmp_path, monkeypatch
):
    here = tmp_path / f".a{temp_suffix()}.tmp"
    with monkeypatch.context() as patch:
        patch.setattr(scratch, "namespace_digest", lambda: "00000000")
        suffix = temp_suffix().replace(f".{os.getpid()}.", ".4194305.")
    elsewhere = tmp_path / f".a{suffix}.tmp"
    for file in (here, elsewhere):
        file.touch()
    now = scratch.folder_time(tmp_path)
    assert not is_abandoned(here, now + 2 * scratch.A_DAY_S)
    assert not is_abandoned(elsewhere, now), "its process is one of another namespace"
    assert is_abandoned(elsewhere, now + 2 * scratch.A_DAY_S)
    monkeypatch.setattr(scratch.time, "time", lambda: now + 1e6)
    Store(str(tmp_path)).sweep()
    assert elsewhere.exists()
