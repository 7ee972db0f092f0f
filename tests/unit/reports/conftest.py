"""Fixture: a finished tree."""

import pytest
from tree_kit import demo_tree


@pytest.fixture
def tree(tmp_path):
    return demo_tree(tmp_path / "none")
