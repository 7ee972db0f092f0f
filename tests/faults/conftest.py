"""Brings the pipeline tests' kit and their shared smoke run."""

from pathlib import Path

import pytest
from kit import smoke  # noqa: F401


def pytest_collection_modifyitems(items):
    """A busy machine may take long over a pipeline that is run and killed."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(1800))
