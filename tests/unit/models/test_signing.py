"""Champions are signed where there is a key; a needed signature is not skipped and not forged."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pipelines.lineage.lookup import find_model
from pipelines.models import champions, signing
from pipelines.models.champions import NotSigned
from pipelines.models.manifest import read_manifest
from pipelines.reports import champions as champions_view
from pipelines.store.artifacts import Store

A, B, C = (letter * 16 for letter in "abc")
WEIGHTS = "nodes/train/base/E0_0-t/ema.safetensors"


class Key:
    def __init__(self, private=None, encryption=None):
        private = private or Ed25519PrivateKey.generate()
        of = (Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
        self.pem = private.private_bytes(*of).decode()
        public = private.public_key()
        self.public = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv(signing.SIGNING_KEY, raising=False)
    monkeypatch.delenv(signing.TRUSTED_KEYS, raising=False)


@pytest.fixture
def keys(monkeypatch):
    """``keys(private, [public, …])`` sets the environment; None unsets a variable."""

    def give(private=None, trusted=None):
        given = {
            signing.SIGNING_KEY: private and private.pem,
            signing.TRUSTED_KEYS: trusted and "\n".join(key.public for key in trusted),
        }
        for name, value in given.items():
            monkeypatch.delenv(name, raising=False)
            if value:
                monkeypatch.setenv(name, value)

    return give


def folder(fingerprint):
    return f"nodes/promote/m-{fingerprint}"


def ensemble(store, fingerprint, **more):
    """A finished promote node, as its step and the commit leave it."""
    manifest = {
        "model": "m",
        "store": store.root,
        "stages": [{"name": "base", "experts": {"E0_0": [0.0, 1.0]}}],
        "weights": {"base/E0_0": {"path": WEIGHTS}},
        "encoders_folder": None,
        "encoders": {},
        "number": fingerprint,
        **more,
    }
    store.write_json(f"{folder(fingerprint)}/ensemble.json", manifest)
    store.commit(folder(fingerprint), ["ensemble.json"], {"settings": {}})


def offer(store, fingerprint, anew=False):
    entry = champions.Entry(
        fingerprint=fingerprint, folder=folder(fingerprint), why="finished", by="run m-1"
    )
    return champions.add_candidate(store, "m", entry, anew)


@pytest.fixture
def store(tmp_path):
    """A store with three candidates, the last of them the current one."""
    made = Store.at(str(tmp_path / "store"))
    made.write(WEIGHTS, b"weights")
    for fingerprint in (A, B, C):
        ensemble(made, fingerprint)
        offer(made, fingerprint)
    return made


def file_of(store, fingerprint):
    return f"{store.root}/{folder(fingerprint)}/ensemble.json"


WAYS = {
    "by name": lambda store: read_manifest(find_model("m@champion", store.root), store.root),
    "by path": lambda store: read_manifest(file_of(store, A), store.root),
}
each_way = pytest.mark.parametrize("load", WAYS.values(), ids=WAYS)


@each_way
def test_only_what_a_trusted_key_has_signed_is_loaded(store, keys, load):
    mine, other = Key(), Key()
    champions.promote(store, "m", A, "first")
    assert load(store)
    keys(trusted=[mine])
    with pytest.raises(NotSigned, match=r"ensemble\.json is not signed by any key"):
        load(store)
    keys(other)
    champions.promote(store, "m", A, "by a stranger")
    keys(trusted=[mine])
    with pytest.raises(NotSigned):
        load(store)
    keys(mine)
    champions.promote(store, "m", A, "by me")
    for trusted in ([mine], [other], [Key(), mine]):
        keys(trusted=trusted)
        assert load(store)


def registry(store, change):
    raw = store.read_json("registry/m.json")
    change(raw)
    store.write_json("registry/m.json", raw)


def of_another_ensemble(raw):
    raw["seals"][A]["signatures"] = raw["seals"][B]["signatures"]


def of_another_content(raw):
    raw["seals"][A]["sha256"] = raw["seals"][C]["sha256"]


def altered(raw):
    [(key, made)] = raw["seals"][A]["signatures"].items()
    raw["seals"][A]["signatures"] = {key: ("B" if made[0] == "A" else "A") + made[1:]}


def unreadable(raw):
    [key] = raw["seals"][A]["signatures"]
    raw["seals"][A]["signatures"] = {key: "ä", "": "", "AAAA": "AAAA"}


def removed(raw):
    raw["seals"] = {}


@each_way
@pytest.mark.parametrize(
    "change", [of_another_ensemble, of_another_content, altered, unreadable, removed]
)
def test_a_forged_signature_is_refused(store, keys, load, change):
    mine = Key()
    keys(mine)
    champions.promote(store, "m", B, "first")
    champions.promote(store, "m", A, "second")
    keys(trusted=[mine])
    assert load(store)
    registry(store, change)
    with pytest.raises(ValueError, match=r"not signed|not what was registered"):
        load(store)


def test_a_signature_counts_for_its_model_alone(store, keys):
    mine = Key()
    keys(mine)
    champions.promote(store, "m", A, "first")
    keys(trusted=[mine])
    store.write("registry/n.json", store.read("registry/m.json"))
    with pytest.raises(NotSigned):
        champions.check(store, "n", store.read(f"{folder(A)}/ensemble.json"), "here")


def test_an_ensemble_that_was_changed_with_its_node_s_manifest_is_refused(store):
    """Whoever changes one can change the other: only the registry knows better."""
    champions.promote(store, "m", A, "first")
    ensemble(store, A, weights={"base/E0_0": {"path": WEIGHTS, "sha256": "0" * 64}})
    for load in WAYS.values():
        with pytest.raises(ValueError, match="is not what was registered"):
            load(store)
    for change in (lambda: champions.promote(store, "m", A, "x"), lambda: go_back(store)):
        with pytest.raises(ValueError, match="is not what was registered"):
            change()


def go_back(store):
    champions.promote(store, "m", B, "second")
    return champions.roll_back(store, "m")


def test_a_node_that_is_made_again_is_sealed_anew_and_loses_its_signature(store, keys):
    mine = Key()
    keys(mine)
    champions.promote(store, "m", A, "first")
    ensemble(store, A, number="another")
    offer(store, B)
    with pytest.raises(ValueError, match="is not what was registered"):
        offer(store, A) and find_model("m@champion", store.root)  # a run that reuses it
    offer(store, A, anew=True)
    assert find_model("m@champion", store.root)
    assert champions.read(store, "m").signers("m", A) == set()
    keys(trusted=[mine])
    with pytest.raises(NotSigned):
        find_model("m@champion", store.root)


def test_ensembles_of_earlier_releases_load_and_are_not_counted_as_verified(store):
    champions.promote(store, "m", A, "first")

    def shown():
        book = champions.read(store, "m")
        found = champions_view.data(store, "m", book)["versions"]
        return {v["fingerprint"]: v["verified"] for v in found}

    assert shown() == {A: True, B: True, C: True}
    registry(store, lambda raw: raw["seals"].pop(A))
    assert find_model("m@champion", store.root) and shown() == {A: False, B: True, C: True}
    registry(store, lambda raw: raw.pop("seals"))
    assert find_model("m@champion", store.root) and set(shown().values()) == {False}


def test_a_rollback_keeps_the_signature_or_makes_one(store, keys):
    mine = Key()
    champions.promote(store, "m", A, "before there were keys")
    keys(mine)
    champions.promote(store, "m", B, "second")
    champions.promote(store, "m", C, "third")
    keys(trusted=[mine])  # without the private key
    champions.roll_back(store, "m")
    assert find_model("m@champion", store.root) == store.local(f"{folder(B)}/ensemble.json")
    before = store.read("registry/m.json")
    with pytest.raises(NotSigned, match="aaaaaaaa has no signature"):
        champions.roll_back(store, "m")
    assert store.read("registry/m.json") == before
    keys(mine, [mine])
    champions.roll_back(store, "m")
    keys(trusted=[mine])
    assert find_model("m@champion", store.root)


def test_a_run_without_the_key_does_not_replace_a_signed_champion(store, keys):
    keys(Key())
    champions.promote(store, "m", A, "first")
    keys()
    with pytest.raises(NotSigned, match="the champion is signed and bbbbbbbb is not"):
        champions.promote(store, "m", B, "better", by="run m-2", instead_of=A)
    assert champions.promote(store, "m", B, "I want it").champion.fingerprint == B


def test_where_keys_are_trusted_nothing_unsigned_becomes_champion(store, keys):
    mine = Key()
    for private in (None, Key()):
        keys(private, [mine])
        for by in ("run m-1", "promote"):
            with pytest.raises(NotSigned, match=signing.SIGNING_KEY):
                champions.promote(store, "m", A, "first", by=by)
    assert champions.read(store, "m").champion is None


def test_a_key_is_rotated_by_promoting_the_champion_again(store, keys):
    old, new = Key(), Key()
    keys(old, [old])
    before = champions.promote(store, "m", A, "first")
    keys(new, [old, new])
    after = champions.promote(store, "m", A, "again")
    assert after.history == before.history and after.champion == before.champion
    assert len(after.signers("m", A)) == 2
    assert champions.promote(store, "m", A, "once more") == after
    keys(trusted=[new])
    assert find_model("m@champion", store.root)


@pytest.mark.parametrize("as_file", [True, False])
def test_keys_are_files_or_texts_and_replicas_get_the_text(store, tmp_path, monkeypatch, as_file):
    mine = Key()
    public = f"# of the trainers\n{mine.public}# of nobody\n{Key().public}"
    for name, text in ((signing.SIGNING_KEY, mine.pem), (signing.TRUSTED_KEYS, public)):
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(name, str(tmp_path / name) if as_file else text)
    champions.promote(store, "m", A, "first")
    assert find_model("m@champion", store.root)
    sent = signing.for_replicas()
    assert (
        list(sent) == [signing.TRUSTED_KEYS] and mine.public.strip() in sent[signing.TRUSTED_KEYS]
    )
    assert "PRIVATE" not in json.dumps(sent)


def wrong(kind):
    return {
        "empty": "",
        "no file": "/nowhere/key.pem",
        "a folder": "/",
        "no key": "-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----",
        "rsa": Key(generate_private_key(65537, 2048)).public,
        "private": Key().pem,
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "no file", "a folder", "no key", "rsa", "private"])
def test_wrong_trusted_keys_let_nothing_pass(store, monkeypatch, kind):
    champions.promote(store, "m", A, "first")
    monkeypatch.setenv(signing.TRUSTED_KEYS, wrong(kind))
    with pytest.raises(ValueError, match=signing.TRUSTED_KEYS) as error:
        find_model("m@champion", store.root)
    assert "hunter2" not in str(error.value) and "BEGIN" not in str(error.value)


def test_a_wrong_private_key_is_an_error_that_does_not_show_it(store, monkeypatch):
    locked = Key(encryption=BestAvailableEncryption(b"hunter2")).pem
    for given in ("", "/nowhere", locked, Key().public, "-----BEGIN PRIVATE KEY-----\nhunter2"):
        monkeypatch.setenv(signing.SIGNING_KEY, given)
        with pytest.raises(ValueError, match=signing.SIGNING_KEY) as error:
            champions.promote(store, "m", A, "first")
        assert "hunter2" not in str(error.value) and "BEGIN" not in str(error.value)
    assert champions.read(store, "m").champion is None
