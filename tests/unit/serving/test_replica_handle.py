"""Orders handed to replicas: what is lost with one is drawn by another, and nothing twice."""

import asyncio
import base64
from contextlib import aclosing

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from pipelines.models.metadata import ModelId
from pipelines.models.rows import Options, Row
from pipelines.serving.engine import ModelInfo, Order, Status
from pipelines.serving.errors import (
    DeadlineExceeded,
    DrawingFailed,
    NotReady,
    QueueFull,
    UnknownModel,
)
from pipelines.serving.events import Finished, Queued, Started
from pipelines.serving.handle import ATTEMPTS, HandleEngine

MODEL = ModelId(name="tiny", manifest="0" * 64)


class Replicas:
    """A deployment's handle; of every call, a script says what becomes of it.

    A replica tells that the order is queued and started, and finishes picture after picture. A
    script is the number of pictures after which it dies, an error that it raises, or None.
    """

    def __init__(self, *scripts):
        self.scripts, self.orders, self.cancelled = list(scripts), [], 0
        self.draw = self

    def options(self, **options):
        assert options == {"stream": True}
        return self

    def remote(self, order):
        self.orders.append(order)
        return Answer(self, order, self.scripts.pop(0) if self.scripts else None)


class Answer:
    def __init__(self, replicas, order, script):
        self.replicas, self.events = replicas, self.told(order, script)

    async def told(self, order, script):
        if isinstance(script, Exception):
            raise script
        yield Queued(ahead=0)
        for i, row in enumerate(order.rows):
            if script == i:
                raise ActorDiedError()
            if script == "waits":
                await asyncio.sleep(1000)
            yield Started(picture=i, model=MODEL, batch=len(order.rows))
            yield Finished(
                picture=i,
                png=base64.b64encode(row.prompt.encode()).decode(),
                model=MODEL,
                prompt=row.prompt,
                seed=row.seed,
                number=row.number,
                seconds=0.1,
                waited=0.0,
            )
        if isinstance(script, UnknownModel):
            yield script

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.events)

    def cancel(self):
        self.replicas.cancelled += 1


def order(count, **more):
    rows = [Row(prompt=f"picture {i}", seed=i, paint=(), options=Options()) for i in range(count)]
    return Order(rows=rows, **more)


def drawn(replicas, asked):
    async def all_events():
        return [event async for event in HandleEngine(replicas).draw(asked)]

    return asyncio.run(all_events())


@pytest.mark.parametrize(
    "deaths", [(), (0,), (2,), (4,), (1, 1, 1), (0, 0, 0)], ids=lambda d: f"dies after {d}"
)
def test_every_picture_is_finished_once_whatever_dies(deaths):
    replicas = Replicas(*deaths)
    events = drawn(replicas, order(5))
    finished = [e for e in events if isinstance(e, Finished)]
    assert [(e.picture, e.prompt) for e in finished] == [(i, f"picture {i}") for i in range(5)]
    assert len(replicas.orders) == len(deaths) + 1
    assert [len(o.rows) for o in replicas.orders] == [
        5 - sum(deaths[:i]) for i in range(len(deaths) + 1)
    ]


def test_all_events_name_the_picture_by_its_number_in_the_request():
    events = drawn(Replicas(2), order(4))
    last = [e.picture for e in events if isinstance(e, Started)][-2:]
    assert last == [2, 3]


def test_a_replica_that_dies_with_all_done_is_not_missed():
    class LastWords(Answer):
        async def told(self, order, script):
            async for event in super().told(order, None):
                yield event
            raise ActorDiedError()

    class Dying(Replicas):
        def remote(self, order):
            self.orders.append(order)
            return LastWords(self, order, None)

    replicas = Dying()
    assert sum(isinstance(e, Finished) for e in drawn(replicas, order(2))) == 2
    assert len(replicas.orders) == 1


def test_an_order_that_kills_every_replica_is_given_up():
    replicas = Replicas(*[0] * 10)
    with pytest.raises(DrawingFailed, match="fewer or smaller"):
        drawn(replicas, order(1))
    assert len(replicas.orders) == ATTEMPTS


def test_a_refusal_reaches_the_caller_as_it_is():
    class Told(Answer):
        async def told(self, order, script):
            yield script

    class Refusing(Replicas):
        def remote(self, order):
            return Told(self, order, QueueFull("full", retry_after_s=7.0))

    with pytest.raises(QueueFull) as refused:
        drawn(Refusing(), order(1))
    assert (refused.value.message, refused.value.retry_after_s) == ("full", 7.0)


def test_a_full_queue_of_serve_s_own_says_when_to_come_again():
    full = BackPressureError(num_queued_requests=3, max_queued_requests=3)
    with pytest.raises(QueueFull) as refused:
        drawn(Replicas(full), order(1))
    assert refused.value.status == 429 and refused.value.retry_after_s > 0


def test_a_deployment_that_serve_has_given_up_says_when_to_come_again():
    """Serve itself would answer 503 without a Retry-After."""
    gone = DeploymentUnavailableError(DeploymentID("Painter", "ediffi"))
    with pytest.raises(NotReady) as refused:
        drawn(Replicas(gone), order(1))
    assert refused.value.status == 503 and refused.value.retry_after_s > 0
    [status] = statuses(Answers(gone))
    assert not status.ready


def test_a_caller_who_goes_away_ends_the_drawing():
    async def first_event(replicas):
        async with aclosing(HandleEngine(replicas).draw(order(3))) as events:
            async for event in events:
                return event

    async def cancelled(replicas):
        task = asyncio.create_task(first_picture(replicas))
        while not replicas.orders:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def first_picture(replicas):
        async for event in HandleEngine(replicas).draw(order(1)):
            if isinstance(event, Finished):
                return event

    closed, waiting = Replicas(), Replicas("waits")
    assert asyncio.run(first_event(closed)) == Queued(ahead=0)
    asyncio.run(cancelled(waiting))
    assert closed.cancelled == waiting.cancelled == 1


def test_a_replica_that_never_answers_is_given_up_at_the_deadline(monkeypatch):
    monkeypatch.setattr("pipelines.serving.handle.REPLICA_GRACE_S", 0.0)
    replicas = Replicas("waits")
    with pytest.raises(DeadlineExceeded):
        drawn(replicas, order(1, deadline_s=0.05))
    assert replicas.cancelled == 1


def test_a_second_replica_gets_the_time_that_is_left():
    replicas = Replicas(0)
    drawn(replicas, order(1, deadline_s=60.0))
    first, second = (o.deadline_s for o in replicas.orders)
    assert second < first <= 60.0


# -- status --------------------------------------------------------------------------------------


READY = Status(ready=True, waiting=2, drawing=1, models=[])


class Answers:
    """A deployment whose replicas answer so, call after call; an error is raised."""

    def __init__(self, *calls):
        self.calls, self.asked = list(calls), 0

    def broadcast(self, method):
        assert method == "status"
        self.asked += 1
        return self

    async def results_async(self, **options):
        await asyncio.sleep(0)
        answers = self.calls.pop(0)
        if isinstance(answers, Exception):
            raise answers
        return answers


def statuses(answers, times=1):
    async def ask():
        engine = HandleEngine(answers)
        return [await engine.status() for _ in range(times)]

    return asyncio.run(ask())


def test_the_status_is_that_of_all_replicas():
    new = Status(ready=False, waiting=0, drawing=0, models=[], trouble="version 3 does not load")
    [found] = statuses(Answers([READY, READY, new, ActorDiedError()]))
    assert (found.ready, found.waiting, found.drawing) == (True, 4, 2)
    assert found.trouble == "version 3 does not load"


def info(version):
    identity = ModelId(name="tiny", manifest=str(version) * 64, version=version)
    return ModelInfo(name="tiny", id=identity, aliases=[], stages=[], loaded=True)


def test_replicas_that_change_to_a_newer_model_name_both_the_ready_ones_first():
    loading = Status(ready=False, waiting=0, drawing=0, models=[info(3)])
    old = READY.model_copy(update={"models": [info(1)]})
    new = READY.model_copy(update={"models": [info(2), info(1)]})
    [found] = statuses(Answers([loading, old, new]))
    assert [model.id.version for model in found.models] == [1, 2, 3]


def test_a_picture_of_a_newer_model_has_the_replicas_asked_anew():
    class Changing(Replicas, Answers):
        def __init__(self, *calls):
            Replicas.__init__(self)
            Answers.__init__(self, *calls)

    async def ask(engine):
        await engine.status()
        async for _ in engine.draw(order(1)):
            pass
        return await engine.status()

    replicas = Changing([READY], [READY.model_copy(update={"waiting": 0})])
    assert asyncio.run(ask(HandleEngine(replicas))).waiting == 0


@pytest.mark.parametrize("answers", [[], [ActorDiedError()], TimeoutError()])
def test_without_an_answer_it_is_not_ready(answers):
    [found] = statuses(Answers(answers))
    assert found.ready is False


def test_many_requests_at_once_ask_the_replicas_once():
    async def ask(engine):
        return await asyncio.gather(*(engine.status() for _ in range(50)))

    answers = Answers([READY])
    assert asyncio.run(ask(HandleEngine(answers))) == [READY] * 50
    assert answers.asked == 1


@pytest.mark.parametrize("silence", [[], [ActorDiedError()], TimeoutError()])
def test_requests_wait_for_replicas_that_are_replaced(silence, monkeypatch):
    """The last status holds for a while, and not for ever."""
    monkeypatch.setattr("pipelines.serving.handle.STATUS_AGE_S", -1.0)
    assert statuses(Answers([READY], silence, silence), 3) == [READY] * 3
    monkeypatch.setattr("pipelines.serving.handle.STATUS_HOLDS_S", -1.0)
    assert [s.ready for s in statuses(Answers([READY], silence), 2)] == [True, False]
