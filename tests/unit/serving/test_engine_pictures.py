"""The engine draws what the model draws, whoever asks beside, and tells how."""

import asyncio
import random

import ensemble_kit
import numpy as np
import pytest
import serving_kit as kit

from ediffi_core.control import Phrase
from pipelines.models.attention import WordAttention
from pipelines.models.painting import box_mask
from pipelines.models.rows import Options, Row
from pipelines.models.text_to_image import TextToImage
from pipelines.serving.engine import Order
from pipelines.serving.errors import Refused
from pipelines.serving.events import Attention, Finished, Queued, Started, Step

pytestmark = pytest.mark.slow

PROMPTS = ["a frog", "a rocket", "a frog and a rocket, on a pink background"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = ensemble_kit.make(tmp_path_factory.mktemp("store"))
    kit.promote(store)
    return store


@pytest.fixture(scope="module")
def model(store):
    return TextToImage.load(store.local(f"{ensemble_kit.FOLDER}/ensemble.json"))


def play(store, scene, **changes):
    async def scened():
        async with kit.running(kit.serving(store, **changes)) as engine:
            return await scene(engine)

    return asyncio.run(scened())


def test_a_picture_is_the_models_own_in_any_company(store, model):
    async def scene(engine):
        orders = [kit.order(prompt, seed=i) for i, prompt in enumerate(PROMPTS * 2)]
        return await asyncio.gather(*(kit.events(engine, order) for order in orders))

    batching = {"pictures": 4, "wait_ms": 1000.0}
    found = play(store, scene, batching=batching)
    assert {e.batch for events in found for e in events if isinstance(e, Started)} - {1}
    for seed, (prompt, events) in enumerate(zip(PROMPTS * 2, found)):
        (expected,) = model.sample([prompt], seed=[seed])
        assert np.array_equal(kit.pixels(events[-1].png), expected)


def test_an_order_is_told_of_every_step_and_who_did_it(store):
    async def scene(engine):
        return await kit.events(engine, kit.order("a frog", previews=True)), await engine.status()

    (queued, started, *steps, finished), status = play(store, scene)
    assert queued == Queued(ahead=0) and isinstance(started, Started) and started.batch == 1
    assert isinstance(finished, Finished) and finished.model == started.model
    assert finished.model.version == 1 and finished.seconds > finished.waited >= 0
    assert [(s.stage, s.step, s.steps) for s in steps] == [
        (stage, step, 4) for stage in ("base", "sr16") for step in range(4)
    ]
    assert all(isinstance(s, Step) and s.sigma > 0 for s in steps)
    assert [kit.pixels(s.preview).shape[0] for s in steps] == [8] * 4 + [16] * 4
    (served,) = status.models
    assert (served.aliases, served.loaded) == (["champion", "candidate"], True)
    assert [e.name for s in served.stages for e in s.experts] == ["E1_1", "E1_0", "E0_0"]
    for step in steps:
        experts = {e.name: e for s in served.stages if s.name == step.stage for e in s.experts}
        low, high = experts[step.expert].sigma
        assert low <= step.sigma < high


def test_attention_is_told_before_its_picture_and_is_the_models_own(store, model):
    async def scene(engine):
        orders = [kit.order(p, seed=i, attention=True) for i, p in enumerate([*PROMPTS, "…"])]
        return await asyncio.gather(*(kit.events(engine, order) for order in orders))

    found = play(store, scene, batching={"pictures": 4, "wait_ms": 1000.0})
    for seed, events in enumerate(found):
        *_, told, finished = events
        own = WordAttention()
        (expected,) = model.sample([finished.prompt], seed=[seed], attention=own)
        row = own.of(0)
        assert isinstance(told, Attention) and told.picture == 0
        assert np.array_equal(kit.pixels(finished.png), expected)
        assert (told.words, told.spans) == (row.words, row.spans)
        assert len(told.ranges) == len(row.ranges) > 0
        for words, measured in zip(told.ranges, row.ranges):
            assert (words.stage, words.experts) == (measured.stage, measured.experts)
            assert words.shares == pytest.approx(measured.shares.tolist(), rel=1e-4)
            maps = [kit.pixels(each) for each in words.maps]
            assert len(maps) == len(row.words)
            if maps:
                scaled = 255 * measured.maps / measured.maps.max()
                assert np.abs(np.stack(maps) - scaled).max() <= 0.51


def test_pictures_of_a_smaller_stage_are_smaller(store):
    async def scene(engine):
        return await kit.pictures(engine, kit.order("a frog", stage="base"))

    (picture,) = play(store, scene)
    assert picture.shape == (8, 8, 3)


def test_a_bad_request_is_its_own_callers_error(store, model):
    painted = Row(
        prompt="a frog",
        seed=0,
        paint=[Phrase("a whale", box_mask([0, 0, 0.5, 1]), 0.4)],
        options=Options(is_painted=True),
    )
    right = Row(prompt="a whale and a frog", seed=1, paint=painted.paint, options=painted.options)
    orders = [Order(rows=[painted]), Order(rows=[right]), kit.order("a frog", stage="sr999")]

    async def scene(engine):
        tasks = (kit.events(engine, order) for order in orders)
        return await asyncio.gather(*tasks, return_exceptions=True)

    wrong, fine, nowhere = play(store, scene, batching={"pictures": 2, "wait_ms": 1000.0})
    assert type(wrong) is Refused and wrong.status == 400 and "a whale" in wrong.message
    assert type(nowhere) is Refused and "there is no stage 'sr999'" in nowhere.message
    (expected,) = model.sample([right.prompt], seed=[1], paint=[right.paint])
    assert np.array_equal(kit.pixels(fine[-1].png), expected)


def test_200_orders_of_which_some_are_cancelled(store, model):
    chance = random.Random(0)
    plan = [(chance.choice(PROMPTS), chance.random(), chance.random() < 0.3) for _ in range(200)]

    async def scene(engine):
        before = asyncio.all_tasks()

        async def asked(seed, prompt, delay):
            await asyncio.sleep(delay)
            return (await kit.events(engine, kit.order(prompt, seed=seed, stage="base")))[-1]

        tasks = [asyncio.ensure_future(asked(i, p, d)) for i, (p, d, _) in enumerate(plan)]
        for task, (_, delay, is_cancelled) in zip(tasks, plan):
            if is_cancelled:
                asyncio.get_running_loop().call_later(delay + chance.random() / 2, task.cancel)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await kit.until(lambda: not (engine.queue.waiting or engine.queue.drawing))
        assert asyncio.all_tasks() == before
        return found, kit.counts(engine)

    found, outcomes = play(store, scene, queue={"pictures": 200}, batching={"pictures": 32})
    for seed, (result, (_, _, is_cancelled)) in enumerate(zip(found, plan)):
        if isinstance(result, asyncio.CancelledError):
            assert is_cancelled
        else:
            assert isinstance(result, Finished) and result.seed == seed
    assert outcomes["cancelled"] > 0 and set(outcomes) == {"finished", "cancelled"}
    for event in (e for e in found[:20] if isinstance(e, Finished)):
        (expected,) = model.sample([event.prompt], seed=[event.seed], up_to="base")
        assert np.array_equal(kit.pixels(event.png), expected)


def test_attention_changes_no_picture(store):
    async def scene(engine):
        orders = [kit.order(PROMPTS[0], attention=True), kit.order(PROMPTS[0])]
        return await asyncio.gather(*(kit.events(engine, order) for order in orders))

    shown, without = play(store, scene)
    assert [e for e in shown if isinstance(e, Attention)]
    assert not [e for e in without if isinstance(e, Attention)]
    assert shown[-1].png == without[-1].png
