"""A service follows its model's name, loses nothing over it, and keeps a model that draws."""

import asyncio
import math
import shutil
import threading

import ensemble_kit
import numpy as np
import pytest
import serving_kit as kit

from pipelines.models.text_to_image import TextToImage
from pipelines.serving.errors import NotReady, UnknownModel
from pipelines.serving.events import Finished
from pipelines.serving.local import LocalEngine
from pipelines.store.artifacts import Store

pytestmark = pytest.mark.slow

NEWER, NEWEST = "f" * 16, "e" * 16


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    store = ensemble_kit.make(tmp_path_factory.mktemp("store"))
    kit.promote(store)
    return store


@pytest.fixture
def store(original, tmp_path):
    shutil.copytree(original.root, tmp_path / "store")
    return Store.at(str(tmp_path / "store"))


def own_picture(store, fingerprint, prompt, seed):
    model = TextToImage.load(store.local(f"nodes/promote/tiny-{fingerprint}/ensemble.json"))
    return model.sample([prompt], seed=[seed])[0]


async def drawn_by(engine, **more):
    found = await kit.events(engine, kit.order("a frog", **more))
    assert isinstance(found[-1], Finished)
    return found[-1].model.fingerprint


def test_no_order_is_lost_while_the_champion_changes(store):
    async def scene():
        async with kit.running(kit.serving(store)) as engine:

            async def asked(i):
                await asyncio.sleep(0.02 * i)
                return (await kit.events(engine, kit.order("a frog", seed=i)))[-1]

            tasks = [asyncio.ensure_future(asked(i)) for i in range(20)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(kit.newer, store, NEWER, 2.0)
            kit.promote(store, NEWER)
            await kit.until(lambda: engine.models.label("served") == "tiny@2")
            late = await kit.events(engine, kit.order("a frog", seed=99))
            return [*await asyncio.gather(*tasks), late[-1]]

    found = asyncio.run(scene())
    assert [event.seed for event in found] == [*range(20), 99]
    assert found[0].model.fingerprint == ensemble_kit.FINGERPRINT
    assert found[-1].model.fingerprint == NEWER
    for event in (found[0], found[-1]):
        expected = own_picture(store, event.model.fingerprint, "a frog", event.seed)
        assert np.array_equal(kit.pixels(event.png), expected)


def test_a_thread_that_loaded_a_model_does_not_outlive_it(store):
    """OpenMP workers of a living thread halve the speed of the one that draws."""
    threads = []

    def load(*where):
        threads.append(threading.current_thread())
        return TextToImage.load(*where)

    async def scene():
        async with kit.running(kit.serving(store), load=load) as engine:
            await drawn_by(engine)
            assert threads[0] is not engine.models._thread and not threads[0].is_alive()

    asyncio.run(scene())


def damaged(file):
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("factor", "spoil", "reason"),
    [
        (2.0, damaged, "is damaged"),
        (2.0, lambda file: file.unlink(), "not a readable checkpoint"),
        (math.nan, lambda file: None, "not finite"),
    ],
)
def test_a_broken_champion_is_not_switched_to(store, factor, spoil, reason):
    good = []

    async def scene():
        async with kit.running(kit.serving(store)) as engine:
            spoil(kit.newer(store, NEWER, factor))
            kit.promote(store, NEWER)
            await kit.until(lambda: engine.models.trouble)
            status = await engine.status()
            assert reason in status.trouble and status.ready
            good.append(await drawn_by(engine))
            assert 'model_switches_total{outcome="refused"} 1.0' in engine.prometheus()
            kit.newer(store, NEWEST, 3.0)
            kit.promote(store, NEWEST)
            await kit.until(lambda: engine.models.trouble is None)
            good.append(await drawn_by(engine))

    asyncio.run(scene())
    assert good == [ensemble_kit.FINGERPRINT, NEWEST]


def test_a_broken_model_is_tried_again_after_a_while_or_a_change_of_the_registry(store):
    async def scene():
        async with kit.running(kit.serving(store, refresh_s=0.02)) as engine:
            tries, load = [], engine.models._load

            def counted(place, *more):
                tries.append(place)
                raise ValueError("broken")

            engine.models._load = counted
            kit.newer(store, NEWER, 2.0)
            kit.promote(store, NEWER)
            await kit.until(lambda: tries)
            began = asyncio.get_running_loop().time()
            await kit.until(lambda: len(tries) == 2)
            assert asyncio.get_running_loop().time() - began > 9 * 0.02
            engine.models._load = load
            await kit.until(lambda: engine.models.label("served") == "tiny@2")
            return await drawn_by(engine)

    assert asyncio.run(scene()) == NEWER


def test_a_model_that_does_not_load_is_an_error_at_the_start(store):
    damaged(store.local("nodes/train/base/E1_1.safetensors"))

    async def scene():
        engine = LocalEngine(kit.serving(store))
        with pytest.raises(ValueError, match="is damaged"):
            await engine.load()
        with pytest.raises(NotReady):
            await kit.events(engine, kit.order("a frog"))
        await engine.close(0)

    asyncio.run(scene())
    with pytest.raises(ValueError, match="neither an ensemble"):
        LocalEngine(kit.serving(store, model="another"))


@pytest.mark.parametrize("models", [1, 2])
def test_champion_and_candidate_side_by_side(store, models):
    kit.newer(store, NEWER, 2.0)

    async def scene():
        async with kit.running(kit.serving(store, models=models)) as engine:
            listed = (await engine.status()).models
            assert [(m.name, m.aliases, m.loaded) for m in listed] == [
                ("tiny@champion", ["champion"], True),
                ("candidate", ["candidate"], False),
            ]
            for _ in range(2):
                assert await drawn_by(engine, model="candidate") == NEWER
                assert await drawn_by(engine, model="champion") == ensemble_kit.FINGERPRINT
            assert await drawn_by(engine, model="tiny@candidate") == NEWER
            assert sum(m.loaded for m in (await engine.status()).models) == models
            with pytest.raises(UnknownModel, match="ask for 'tiny@champion', 'champion' or"):
                await kit.events(engine, kit.order("a frog", model="dall-e"))

    asyncio.run(scene())


def test_a_broken_candidate_is_refused_and_the_champion_draws_on(store):
    file = kit.newer(store, NEWER, 2.0)
    damaged(file)

    async def scene():
        async with kit.running(kit.serving(store)) as engine:
            for _ in range(2):
                with pytest.raises(NotReady, match="'candidate' cannot be loaded") as refused:
                    await kit.events(engine, kit.order("a frog", model="candidate"))
                assert refused.value.retry_after_s == pytest.approx(0.5)
            return await drawn_by(engine)

    assert asyncio.run(scene()) == ensemble_kit.FINGERPRINT
