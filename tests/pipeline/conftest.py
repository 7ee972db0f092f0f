"""The shared smoke run; a busy machine may take long over it."""

from pathlib import Path

import pytest
from kit import smoke  # noqa: F401


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(1800))
