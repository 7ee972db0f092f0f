"""The simulator: rules that hold for random graphs, and schedules worked out by hand."""

import random

import pytest

from pipelines.dag import scheduling
from pipelines.planning.simulate import Task, simulate

CAPACITY = {"big": 8, "small": 3}


def randomly(seed, count=25):
    """A random DAG; one task in five needs no GPU, and some take no time."""
    dice = random.Random(seed)
    tasks = []
    for i in range(count):
        group = dice.choice(["big", "big", "small", "small", ""])
        tasks.append(
            Task(
                name=f"t{i}",
                seconds=dice.choice([0.0, 1.0, dice.uniform(0.1, 9)]),
                needs=[f"t{n}" for n in range(i) if dice.random() < 0.12],
                group=group,
                gang=dice.randint(1, CAPACITY[group]) if group else 0,
                path_length=dice.random(),
            )
        )
    return tasks


@pytest.mark.parametrize("seed", range(60))
def test_a_schedule_keeps_to_the_rules(seed):
    tasks = randomly(seed)
    found = simulate(tasks, CAPACITY)
    assert found.starts.keys() == {t.name for t in tasks}
    for t in tasks:
        assert all(found.end(n) <= found.starts[t.name] for n in t.needs)
    for group, size in CAPACITY.items():
        mine = [t for t in tasks if t.group == group and t.seconds]
        for moment in {found.starts[t.name] for t in mine}:
            held = [t.gang for t in mine if found.starts[t.name] <= moment < found.end(t.name)]
            assert sum(held) <= size
        assert -1e-9 <= found.idle(group) <= 1
    assert found.makespan >= found.bound - 1e-9
    # Graham: list scheduling never waits without cause, so all is done within the sum.
    assert found.makespan <= sum(t.seconds for t in tasks) + 1e-9
    assert found.critical_seconds == pytest.approx(longest(tasks))
    pairs = zip(found.critical, found.critical[1:])
    assert all(a in found.tasks[b].needs for a, b in pairs)


def longest(tasks):
    """The critical path, computed in the given order instead of the simulator's way."""
    until = {}
    for t in tasks:
        until[t.name] = t.seconds + max((until[n] for n in t.needs), default=0.0)
    return max(until.values())


def test_a_task_starts_at_once_or_when_another_ends():
    for seed in range(30):
        tasks = randomly(seed)
        found = simulate(tasks, CAPACITY)
        ends = {found.end(t.name) for t in tasks}
        assert all(found.starts[t.name] in ends | {0.0} for t in tasks)


def test_the_longest_path_goes_first():
    """Two trees share a group: the longer path starts, the other waits for its gang."""
    tasks = [
        Task(name="short", seconds=1, group="g", gang=4, path_length=1),
        Task(name="long", seconds=5, group="g", gang=4, path_length=9),
        Task(name="after", seconds=5, needs=["long"], group="g", gang=4, path_length=4),
    ]
    found = simulate(tasks, {"g": 4})
    assert dict(found.starts) == {"long": 0, "after": 5, "short": 10}
    assert (found.makespan, found.bound, found.above, found.idle("g")) == (11, 11, 0, 0)
    assert found.critical == ["long", "after"]


def test_a_small_task_does_not_overtake_a_waiting_gang():
    """As in a run, which does not know durations: GPUs that the gang waits for are reserved."""
    tasks = [
        Task(name="now", seconds=4, group="g", gang=2, path_length=3),
        Task(name="gang", seconds=1, group="g", gang=3, path_length=2),
        Task(name="small", seconds=2, group="g", gang=1, path_length=1),
    ]
    found = simulate(tasks, {"g": 3})
    assert dict(found.starts) == {"now": 0, "gang": 4, "small": 5}
    assert found.idle("g") == pytest.approx(1 - (8 + 3 + 2) / 21)


def test_groups_work_side_by_side_and_what_needs_no_gpu_beside_all():
    tasks = [
        Task(name="a", seconds=3, group="x", gang=1),
        Task(name="b", seconds=4, group="y", gang=2),
        Task(name="c", seconds=5),
    ]
    found = simulate(tasks, {"x": 1, "y": 2})
    assert found.makespan == 5 and set(found.starts.values()) == {0}


def test_a_gang_that_never_fits_is_named():
    with pytest.raises(ValueError, match="train/base/E0_0 needs 9 of a100 at once, which has 8"):
        simulate([Task(name="train/base/E0_0", seconds=1, group="a100", gang=9)], {"a100": 8})


def test_a_circle_is_named():
    tasks = [Task(name="a", seconds=1, needs=["b"]), Task(name="b", seconds=1, needs=["a"])]
    with pytest.raises(ValueError, match="a, b wait for each other"):
        simulate(tasks, {})


def test_nothing_to_do_takes_no_time():
    found = simulate([], {"g": 1})
    assert (found.makespan, found.bound, found.above, found.idle("g"), found.critical) == (
        (0, 0, 0, 0, [])
    )


def test_priority_comes_before_path_length():
    tasks = [
        Task(name="long", seconds=9, group="g", gang=1, path_length=9),
        Task(name="wanted", seconds=1, group="g", gang=1, path_length=1, priority=1),
    ]
    assert dict(simulate(tasks, {"g": 1}).starts) == {"wanted": 0, "long": 1}


def test_a_long_chain_may_be_given_in_any_order():
    chain = [
        Task(name=f"t{i}", seconds=1.0, needs=[f"t{i - 1}"] if i else [], group="big", gang=1)
        for i in range(2000)
    ]
    found = simulate(chain[::-1], CAPACITY)
    assert found.makespan == found.critical_seconds == 2000.0
    assert list(found.critical) == [t.name for t in chain]


def test_work_grows_with_the_number_of_tasks_and_not_with_its_square(monkeypatch):
    looked_at = []

    def fits(resources, free):
        looked_at.append(resources)
        return scheduling_fits(resources, free)

    scheduling_fits = scheduling.fits
    monkeypatch.setattr(scheduling, "fits", fits)
    for count in (500, 1000):
        looked_at.clear()
        tasks = [Task(name=str(i), seconds=1.0 + i, group="big", gang=1) for i in range(count)]
        assert len(simulate(tasks, CAPACITY).starts) == count
        assert len(looked_at) <= 3 * count
