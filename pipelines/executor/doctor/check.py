"""A check's result, and what is checked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store

ANSWER_S = 5.0
"""How long a server may take to answer."""

Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    level: Level
    found: str
    """What was found."""

    remedy: str = ""
    """What to do about a warning or a fault."""


Checks = Iterator[Check]


@dataclass(frozen=True)
class Subject:
    """What is checked."""

    root: str
    """The store's folder or URL."""

    spec: Spec | None = None

    @property
    def store(self) -> Store:
        return Store.at(self.root)


def connect(host: str, port: int) -> None:
    """OSError if nothing listens there."""
    socket.create_connection((host, port), timeout=ANSWER_S).close()


def reason(error: BaseException) -> str:
    """Why a connection failed, in a few words."""
    inner = getattr(error, "reason", error)
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return " ".join(str(text).split())[:200].lower()
