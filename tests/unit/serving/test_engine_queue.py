"""Who is drawn when and with whom, and what those are told who are not."""

import asyncio

import ensemble_kit
import pytest
import serving_kit as kit
import torch

from pipelines.models.rows import Options
from pipelines.serving.errors import (
    DeadlineExceeded,
    DrawingFailed,
    NotReady,
    QueueFull,
    Refused,
)
from pipelines.serving.events import Finished, Queued, Step
from pipelines.serving.mailbox import ROOM

pytestmark = pytest.mark.slow  # the kit's store is made once, in half a second


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = ensemble_kit.make(tmp_path_factory.mktemp("store"))
    kit.promote(store)
    return store


def play(store, scene, *, steps=2, **changes):
    """Run a scene with an engine whose model is an easel."""
    settings = {"batching": {"pictures": 4, "wait_ms": 0.0}, **changes}

    async def scened():
        easel = kit.Easel(steps)
        async with kit.running(kit.serving(store, **settings), load=easel) as engine:
            try:
                return await scene(engine, easel)
            finally:
                easel.free()

    return asyncio.run(scened())


async def occupied(engine, easel):
    """An order at work, so that all others have to wait."""
    task = asyncio.ensure_future(kit.events(engine, kit.order("first")))
    await kit.begun(easel)
    return task


async def queued(engine, *orders):
    """Tasks of orders that wait, in this order."""
    tasks = []
    for order in orders:
        waiting = engine.queue.waiting + len(order.rows)
        tasks.append(asyncio.ensure_future(kit.events(engine, order)))
        await kit.until(lambda n=waiting: engine.queue.waiting == n)
    return tasks


def test_first_come_first_served(store):
    async def scene(engine, easel):
        tasks = [await occupied(engine, easel)]
        tasks += await queued(engine, *(kit.order(f"picture {i}") for i in range(5)))
        easel.free()
        found = await asyncio.gather(*tasks)
        assert [events[0] for events in found] == [Queued(ahead=i) for i in range(6)]
        return easel.calls

    calls = play(store, scene, batching={"pictures": 1, "wait_ms": 0.0})
    assert calls == [["first"], *([f"picture {i}"] for i in range(5))]


def test_a_batch_takes_pictures_of_its_first_ones_shape(store):
    async def scene(engine, easel):
        tasks = [await occupied(engine, easel)]
        other = Options(sampling='{"steps": 9}')
        tasks += await queued(
            engine,
            kit.order("a1", "a2"),
            kit.order("b1", options=other),
            kit.order("c1", stage="base"),
            kit.order("d1", attention=True),
            kit.order("b2", options=other, previews=True),
            kit.order("a3", "a4", "a5"),
        )
        easel.free()
        await asyncio.gather(*tasks)
        return easel.calls

    assert play(store, scene) == [
        ["first"],
        ["a1", "a2", "a3", "a4"],
        ["b1", "b2"],
        ["c1"],
        ["d1"],
        ["a5"],
    ]


def test_a_first_picture_waits_for_company(store):
    async def scene(engine, easel):
        easel.free()
        first = asyncio.ensure_future(kit.events(engine, kit.order("a")))
        await asyncio.sleep(0.1)
        await asyncio.gather(first, *(kit.events(engine, kit.order(name)) for name in "bcd"))
        return easel.calls

    assert play(store, scene, batching={"pictures": 4, "wait_ms": 10_000}) == [["a", "b", "c", "d"]]


def test_a_cancelled_picture_leaves_the_queue(store):
    async def scene(engine, easel):
        first = await occupied(engine, easel)
        gone, stays = await queued(engine, kit.order("gone"), kit.order("stays"))
        gone.cancel()
        await kit.until(lambda: engine.queue.waiting == 1)
        easel.free()
        await asyncio.gather(first, stays)
        assert gone.cancelled()
        return easel.calls, kit.counts(engine)

    assert play(store, scene) == (
        [["first"], ["stays"]],
        {"finished": 2.0, "cancelled": 1.0},
    )


def test_a_cancelled_picture_leaves_the_batch_at_work(store):
    async def scene(engine, easel):
        first = await occupied(engine, easel)
        gone, stays = await queued(engine, kit.order("gone"), kit.order("stays"))
        easel.allowed.release(2)
        await first
        await kit.begun(easel)
        gone.cancel()
        await asyncio.wait([gone])
        easel.free()
        assert isinstance((await stays)[-1], Finished)
        return easel.calls, easel.left

    calls, left = play(store, scene)
    assert calls == [["first"], ["gone", "stays"]] and set(left) == {"gone"}


def test_closing_the_iterator_ends_a_lone_picture_at_its_next_step(store):
    async def scene(engine, easel):
        events = engine.draw(kit.order("gone"))
        await anext(events)
        await kit.begun(easel)
        await events.aclose()
        easel.allowed.release(1)
        await kit.until(lambda: engine.queue.drawing == 0)
        return easel.left

    assert play(store, scene, steps=50) == ["gone"]


def test_a_deadline_ends_pictures_that_wait_and_those_at_work(store):
    async def scene(engine, easel):
        at_work = asyncio.ensure_future(kit.events(engine, kit.order("work", deadline_s=0.3)))
        await kit.begun(easel)
        (waits,) = await queued(engine, kit.order("waits", deadline_s=0.2))
        for task in (waits, at_work):
            with pytest.raises(DeadlineExceeded, match=r"not finished within 0\.[23] s"):
                await task
        easel.free()
        assert isinstance((await kit.events(engine, kit.order("later")))[-1], Finished)
        return easel.calls, kit.counts(engine)

    calls, outcomes = play(store, scene)
    assert calls == [["work"], ["later"]]
    assert outcomes == {"deadline": 2.0, "finished": 1.0}


def test_the_service_limits_deadlines(store):
    async def scene(engine, easel):
        with pytest.raises(DeadlineExceeded, match=r"within 0\.1 s"):
            await kit.events(engine, kit.order("long", deadline_s=1e6))

    play(store, scene, queue={"deadline_s": 0.1})


def test_a_full_queue_says_when_to_come_again(store):
    async def scene(engine, easel):
        first = await occupied(engine, easel)
        tasks = await queued(engine, kit.order("a", "b", "c"))
        with pytest.raises(QueueFull, match="3 pictures wait, and 4 may") as full:
            await kit.events(engine, kit.order("d", "e"))
        assert full.value.retry_after_s == 1.0
        engine.queue.took(60.0, 3)
        with pytest.raises(QueueFull) as full:
            await kit.events(engine, kit.order("d", "e"))
        assert full.value.retry_after_s == pytest.approx(60.0)
        with pytest.raises(Refused, match="ask for 4 at most") as never:
            await kit.events(engine, kit.order(*"abcde"))
        assert never.value.status == 400
        easel.free()
        await asyncio.gather(first, *tasks)
        return kit.counts(engine)

    outcomes = play(store, scene, queue={"pictures": 4})
    assert outcomes == {"finished": 4.0, "refused": 9.0}


def test_one_pictures_error_is_not_anothers(store):
    async def scene(engine, easel):
        easel.fails = lambda prompts: KeyError("secret") if "bad" in prompts else None
        first = await occupied(engine, easel)
        tasks = await queued(engine, kit.order("a"), kit.order("bad", "b"), kit.order("c"))
        easel.free()
        await first
        good, mixed, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(good[-1], Finished) and isinstance(also_good[-1], Finished)
        assert isinstance(mixed, DrawingFailed) and "secret" not in mixed.message
        return easel.calls, kit.counts(engine)

    calls, outcomes = play(store, scene)
    assert calls == [["first"], ["a", "bad", "b", "c"], ["a"], ["bad"], ["b"], ["c"]]
    assert outcomes == {"finished": 4.0, "failed": 1.0}


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, ValueError])
def test_the_log_has_no_text_of_a_picture_that_could_not_be_drawn(store, caplog, kind):
    async def scene(engine, easel):
        easel.fails = lambda prompts: kind(f"{prompts[0]!r} is odd")
        easel.free()
        with pytest.raises(DrawingFailed):
            await kit.events(engine, kit.order("my own words"))

    play(store, scene)
    assert "drawing failed" in caplog.text and kind.__name__ in caplog.text
    assert "my own words" not in caplog.text


def test_an_orders_other_pictures_are_told_before_its_error(store):
    async def scene(engine, easel):
        easel.fails = lambda prompts: ValueError("not finite") if "bad" in prompts else None
        easel.free()
        told = []
        with pytest.raises(DrawingFailed, match="not finite"):
            async for event in engine.draw(kit.order("bad", "good")):
                told.append(event)
        assert [e.prompt for e in told if isinstance(e, Finished)] == ["good"]

    play(store, scene)


def test_too_little_memory_halves_batches_from_then_on(store):
    async def scene(engine, easel):
        lack = torch.OutOfMemoryError("CUDA out of memory")
        easel.fails = lambda prompts: lack if len(prompts) > 2 else None
        easel.free()
        for _ in range(2):
            await kit.events(engine, kit.order(*"abcd"))
        return [len(prompts) for prompts in easel.calls], kit.counts(engine)

    sizes, outcomes = play(store, scene)
    assert sizes == [4, 2, 2, 2, 2] and outcomes == {"finished": 8.0}


def test_a_slow_reader_holds_up_nobody_and_misses_only_steps(store):
    async def scene(engine, easel):
        easel.free()
        slow = engine.draw(kit.order("slow", previews=True))
        await anext(slow)
        await kit.until(lambda: kit.counts(engine) == {"finished": 1.0})
        await kit.events(engine, kit.order("quick"))
        return [event async for event in slow]

    events = play(store, scene, steps=5 * ROOM)
    steps = [event.step for event in events if isinstance(event, Step)]
    assert steps == list(range(4 * ROOM, 5 * ROOM))
    assert isinstance(events[-1], Finished) and all(e.preview for e in events if e in steps)


def test_closing_finishes_what_was_asked_for_and_takes_no_more(store):
    async def scene(engine, easel):
        first = await occupied(engine, easel)
        (waits,) = await queued(engine, kit.order("waits"))
        closing = asyncio.ensure_future(engine.close())
        await kit.until(lambda: engine._is_closing)
        with pytest.raises(NotReady, match="ending"):
            await kit.events(engine, kit.order("late"))
        assert not (await engine.status()).ready
        easel.free()
        for events in await asyncio.gather(first, waits):
            assert isinstance(events[-1], Finished)
        await closing

    play(store, scene)


def test_closing_refuses_what_takes_too_long(store):
    async def scene(engine, easel):
        tasks = [await occupied(engine, easel), *await queued(engine, kit.order("waits"))]
        closing = asyncio.ensure_future(engine.close(0.05))
        for task in tasks:
            with pytest.raises(NotReady, match="ending"):
                await task
        easel.free()
        await closing
        return kit.counts(engine)

    assert play(store, scene) == {"refused": 2.0}


def test_a_dead_thread_refuses_its_orders_and_is_noticed(store):
    async def scene(engine, easel):
        engine.check()
        easel.fails = lambda prompts: SystemExit()
        easel.free()
        with pytest.raises(NotReady):
            await kit.events(engine, kit.order("last"))
        await kit.until(lambda: not engine._thread.is_alive())
        with pytest.raises(RuntimeError, match="died"):
            engine.check()

    play(store, scene)
