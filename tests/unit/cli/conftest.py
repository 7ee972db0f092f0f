"""Fixtures: the verb ``evaluate`` in this process, and a terminal to answer at."""

import os
import pty
import sys

import pytest

from pipelines import cli
from pipelines.evaluation import worker
from pipelines.lineage import curves as mlflow_curves


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """``evaluate(store, …)`` → (exit code, stdout, stderr), with a report in ``tmp_path``.

    MLflow is left out.
    """
    monkeypatch.setattr(mlflow_curves, "record", lambda *given: "sqlite:///a.db")

    def call(store, *args):
        every = ["evaluate", *map(str, args), "--storage", store.root, "-o", tmp_path / "report"]
        monkeypatch.setattr(sys, "argv", ["ediffi", *map(str, every)])
        monkeypatch.delenv("EDIFFI_DEBUG", raising=False)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def drawn(monkeypatch):
    """How many pictures each call has drawn."""
    counts = []
    original = worker.draw

    def counted(stages, cond, **how):
        counts.append(len(cond))
        return original(stages, cond, **how)

    monkeypatch.setattr(worker, "draw", counted)
    return counts


@pytest.fixture
def terminal(monkeypatch):
    """``terminal(answers)`` types at a terminal, where this process then asks and reads."""
    screen, keys = pty.openpty()
    with os.fdopen(keys) as stdin, os.fdopen(os.dup(keys), "w") as stderr:

        def type_in(answers=""):
            monkeypatch.setattr(sys, "stdin", stdin)  # in the test: pytest sets its own before it
            monkeypatch.setattr(sys, "stderr", stderr)
            os.write(screen, answers.encode())

        yield type_in
        monkeypatch.undo()
    os.close(screen)
