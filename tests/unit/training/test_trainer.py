"""Which of Ray Train's processes a training starts."""

import pytest
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipelines.training.trainer import RayTrainer

CLEANER, DATA = "PlacementGroupCleanerCallback", "DatasetsCallback"


def callbacks(trainer):
    return {type(c).__name__ for c in trainer(lambda: None)._create_default_callbacks()}


@pytest.fixture
def whole(monkeypatch):
    """The callbacks of Ray Train itself, which a new version may name otherwise."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = callbacks(DataParallelTrainer)
    assert {CLEANER, DATA} < found
    return found


def test_no_training_asks_another_cluster_whether_its_controller_lives(whole):
    assert callbacks(RayTrainer) == whole - {CLEANER, DATA}


def test_on_a_cluster_its_dashboard_is_asked(whole, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert callbacks(RayTrainer) == whole - {DATA}
