"""The SBOM lists what the locks pin, and an audit that could not ask does not pass."""

import json
import re
import subprocess

import pytest
from manifests import ROOT

SBOM = ROOT / "infra/sbom"


def document(name):
    return json.loads((SBOM / f"{name}.cdx.json").read_text())


def listed(name):
    components = document(name)["components"]
    found = {(c["name"], c["version"]) for c in components}
    assert len(found) == len(components)
    return found


def test_the_sbom_of_python_is_the_lock():
    """After `make lock`, `make sbom` makes it anew."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [re.split("[ ;]", line)[0] for line in lines if line and line[0] not in " #-"]
    assert len(pins) > 100
    assert listed("python") == {tuple(pin.split("==")) for pin in pins}


def test_the_sbom_of_npm_is_the_lock():
    lock = json.loads((ROOT / "pipelines/demo/packages/package-lock.json").read_text())
    pins = {path.rpartition("node_modules/")[2]: p for path, p in lock["packages"].items() if path}
    assert listed("npm") == {(name, p["version"]) for name, p in pins.items()}
    assert all(c["hashes"] for c in document("npm")["components"])


@pytest.mark.parametrize("name", ["python", "npm"])
def test_the_sbom_is_cyclonedx_with_purls_and_nothing_of_the_machine(name):
    found = document(name)
    assert found["bomFormat"] == "CycloneDX" and found["metadata"]["component"]["version"]
    kind = {"python": "pypi", "npm": "npm"}[name]
    for component in found["components"]:
        assert re.fullmatch(rf"pkg:{kind}/\S+@\S+", component["purl"])
        assert "externalReferences" not in component
    assert not {"serialNumber"} & set(found) and "timestamp" not in found["metadata"]


TABLE = "Name Version ID Fix Versions\\n---- ------- -- ------------\\nidna 3.6 CVE-1 3.7"
SKIPPED = "ERROR:pip_audit._cli:idna: Dependency not found on PyPI and could not be audited"
UNREACHABLE = "Traceback (most recent call last):\\nrequests.exceptions.ProxyError: no way out"


@pytest.mark.parametrize(
    ("does", "code", "out", "err"),
    [
        ("echo 'No known vulnerabilities found' >&2", 0, "no known holes", ""),
        (f"printf '{TABLE}\\n'; exit 1", 1, "CVE-1", ""),
        (f"printf '{UNREACHABLE}\\n' >&2; exit 1", 2, "", "ProxyError: no way out"),
        (f"echo '{SKIPPED}' >&2; exit 1", 2, "", "could not be audited"),
        ("exit 127", 2, "", "not audited"),
    ],
    ids=["sound", "hole", "unreachable", "unknown", "broken"],
)
def test_an_audit_tells_holes_from_questions_without_answer(tmp_path, does, code, out, err):
    """By how pip-audit 2.10 behaves; it must be asked strictly, or it passes what it skips."""
    tool = tmp_path / "pip-audit"
    tool.write_text(f'#!/bin/sh\ncase " $* " in *" --strict "*) ;; *) exit 0;; esac\n{does}\n')
    tool.chmod(0o755)
    script = ["sh", "infra/audit.sh", tool]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert out in done.stdout and err in done.stderr
    assert bool(done.stdout) == bool(out) and len(done.stderr.splitlines()) == bool(err)
