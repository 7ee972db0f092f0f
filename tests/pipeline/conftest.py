"""The shared smoke run; a busy machine may take long over it."""

import pytest
from kit import smoke  # noqa: F401


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in ("pipeline", "faults"):
            item.add_marker(pytest.mark.timeout(1800))
