"""The engine draws what the model draws, whoever asks beside."""

import asyncio

import ensemble_kit
import numpy as np
import pytest
import serving_kit as kit

from pipelines.models.text_to_image import TextToImage
from pipelines.serving.events import Finished, Queued, Started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = ensemble_kit.make(tmp_path_factory.mktemp("store"))
    kit.promote(store)
    return store


def test_a_picture_is_the_models_own(store):
    async def asked():
        async with kit.running(kit.serving(store)) as engine:
            return await kit.events(engine, kit.order("a frog", seed=3)), await engine.status()

    (queued, started, *_, finished), status = asyncio.run(asked())
    assert queued == Queued(ahead=0) and isinstance(started, Started)
    assert isinstance(finished, Finished) and finished.seed == 3
    assert finished.model == started.model and finished.model.version == 1
    model = TextToImage.load(store.local(f"{ensemble_kit.FOLDER}/ensemble.json"))
    (expected,) = model.sample(["a frog"], seed=[3])
    assert np.array_equal(kit.pixels(finished.png), expected)
    (served,) = status.models
    assert (served.aliases, served.loaded) == (["champion", "candidate"], True)
    assert [e.name for s in served.stages for e in s.experts] == ["E1_1", "E1_0", "E0_0"]
