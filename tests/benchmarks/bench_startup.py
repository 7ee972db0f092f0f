"""How long the verbs take that only read: here, and at an earlier commit.

    python tests/benchmarks/bench_startup.py [--store FOLDER] [--against COMMIT] [--rounds N]

Without a finished demo (``make demo``), ``status`` is left out and ``plan`` finds nothing done.
Measures user and system CPU time, which load on the machine changes less than elapsed time.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import report

ROOT = Path(__file__).parents[2]
DEMO = "pipelines/specs/demo.yaml"
VERBS = {
    "--help": ["--help"],
    "status": ["status"],
    "status SPEC": ["status", DEMO],
    "models": ["models"],
    "jobs --help": ["jobs", "--help"],
    "plan SPEC": ["plan", DEMO],
}


def seconds(tree: Path, words: list[str], store: Path) -> float:
    """CPU seconds of one call of ``ediffi`` from a source tree."""
    if "--help" not in words:
        words = [*words, "--storage", str(store)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"ediffi {' '.join(words)}: {done.stdout}{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The tree of a commit, in a folder that is removed afterwards."""
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        subprocess.run([*git, "worktree", "add", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)


def medians(trees: dict[str, Path], store: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Verb → tree → median CPU seconds; every round runs all trees in turn."""
    found: dict[str, dict[str, float]] = {}
    for verb, words in VERBS.items():
        if "status" in words and not (store / "executions").is_dir():
            continue
        runs: dict[str, list[float]] = {name: [] for name in trees}
        for turn in range(rounds + 1):
            for name, tree in trees.items():
                taken = seconds(tree, words, store)
                if turn:  # the first one compiles the sources
                    runs[name].append(taken)
        found[verb] = {name: statistics.median(all_) for name, all_ in runs.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Start-up of the verbs that only read")
    parser.add_argument("--store", type=Path, default=ROOT / "ediffi-store", help="a done demo's")
    parser.add_argument("--against", metavar="COMMIT", default="e4fedab", help="compare with this")
    parser.add_argument("--rounds", type=int, default=5)
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest  # the report has options of its own
    with checked_out(given.against) as before:
        trees = {given.against: before, "here": ROOT}
        found = medians(trees, given.store.absolute(), given.rounds)
    done = (given.store / "executions").is_dir()
    report(
        "Start-up of the verbs that only read",
        [
            f"User and system CPU seconds, median of {given.rounds} rounds in turn; the spec is "
            f"the demo's, {'finished' if done else 'not begun'}.",
            "",
            f"| `ediffi` | {given.against} | here |",
            "|---|---:|---:|",
            *(f"| {v} | {t[given.against]:.2f} | {t['here']:.2f} |" for v, t in found.items()),
        ],
    )


if __name__ == "__main__":
    main()
