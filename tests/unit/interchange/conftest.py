"""A tiny ensemble, and the folder that it is exported to."""

from pathlib import Path

import ensemble_kit
import pytest

from pipelines.interchange.export import export
from pipelines.store.artifacts import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    return ensemble_kit.make(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def manifest(store) -> Path:
    return Path(store.full(f"{ensemble_kit.FOLDER}/ensemble.json"))


@pytest.fixture(scope="session")
def exported(manifest, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(manifest, folder)
    return folder
