"""Write ``infra/sbom/``: what the two locks pin, as CycloneDX in JSON.

The tools are CycloneDX's own for Python and npm's. What changes with every call, and the addresses
of registries, are left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ROOT / "pipelines/demo/packages"
OUT = Path(__file__).parent / "sbom"


def python(tool: str) -> Any:
    """What ``requirements.lock`` pins.

    Args:
        tool: ``cyclonedx-py``.
    """
    options = ["--pyproject", "pyproject.toml", "--output-reproducible", "requirements.lock"]
    done = subprocess.run(
        [tool, "requirements", *options], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def npm(tool: str, version: str) -> Any:
    """What ``package-lock.json`` of the demo's drawings pins.

    Args:
        tool: ``npm``.
        version: The project's, since npm describes no package without one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PACKAGES / name, scratch)
        subprocess.run([tool, "pkg", "set", f"version={version}"], cwd=scratch, check=True)
        options = ["--sbom-format", "cyclonedx", "--package-lock-only"]
        done = subprocess.run(
            [tool, "sbom", *options], cwd=scratch, stdout=subprocess.PIPE, check=True
        )
    found = json.loads(done.stdout)
    found["metadata"]["component"]["name"] = "ediffi-demo-emoji"  # npm names the folder
    return found


def lasting(document: Any) -> Any:
    """A document without what changes with every call, and without addresses of registries."""
    document.pop("serialNumber", None)
    document["metadata"].pop("timestamp", None)
    for component in document["components"]:
        component.pop("externalReferences", None)
    return document


def main(cyclonedx: str, npm_tool: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    OUT.mkdir(exist_ok=True)
    for name, document in {"python": python(cyclonedx), "npm": npm(npm_tool, version)}.items():
        text = json.dumps(lasting(document), indent=1)
        (OUT / f"{name}.cdx.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
