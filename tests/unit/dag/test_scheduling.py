"""Which nodes start: by priority, with all their resources or not at all, and none starves."""

import random

from plan_kit import spec

from pipelines.dag import plan
from pipelines.dag.scheduling import Candidate, fits, startable, subtract
from pipelines.store.artifacts import Store


def node(id, cpus=1, gpus=0, **more):
    return Candidate(id=id, resources={"cpus": cpus, "gpus": gpus}, **more)


def started(ready, cpus=4, gpus=0):
    return [c.id for c in startable(ready, {"cpus": cpus, "gpus": gpus})]


def test_the_longest_path_goes_first_and_priority_before_it():
    ready = [node("short", path_length=1), node("long", path_length=9), node("urgent", priority=1)]
    assert started(ready) == ["urgent", "long", "short"]
    assert started(ready, cpus=1) == ["urgent"]
    assert started([node("a"), node("b")], cpus=1) == ["a"]


def test_a_gang_starts_whole_or_not_at_all():
    assert started([node("gang", cpus=4)], cpus=3) == []
    assert started([node("gang", cpus=4, gpus=2)], cpus=4, gpus=1) == []
    assert started([node("gang", cpus=4, gpus=2)], cpus=4, gpus=2) == ["gang"]
    thirds = [node(str(i), gpus=0.1, cpus=0) for i in range(10)]
    assert len(started(thirds, gpus=1)) == 10


def test_smaller_ones_behind_it_get_only_what_it_does_not_need():
    wide = node("wide", cpus=4, path_length=9)
    assert started([wide, node("small")], cpus=3) == []
    needs_gpus = node("wide", cpus=1, gpus=2, path_length=9)
    assert started([needs_gpus, node("a"), node("b")], cpus=2, gpus=1) == ["a"]
    assert started([needs_gpus, node("gpu", gpus=1)], cpus=4, gpus=1) == []


def plainly(ready, free):
    """The rule as it is written down: every candidate in its turn."""
    found = []
    for candidate in sorted(ready, key=lambda c: (-c.priority, -c.path_length)):
        if fits(candidate.resources, free):
            found.append(candidate)
        free = subtract(free, candidate.resources)
    return found


def test_the_choice_is_that_of_the_plain_rule():
    for seed in range(300):
        rng = random.Random(seed)
        free = {"cpus": rng.choice([0, 3, 8]), "gpus": rng.choice([0, 0.5, 4])}
        ready = [
            node(
                str(i),
                cpus=rng.choice([0, 1, 1, 4]),
                gpus=rng.choice([0, 0, 0.1, 0.25, 2]),
                priority=rng.randint(0, 1),
                path_length=rng.randint(0, 3),
            )
            for i in range(rng.randint(0, 60))
        ]
        assert startable(ready, free) == plainly(ready, free)


def test_a_wide_node_starts_though_small_ones_keep_coming():
    """Small nodes run for two rounds and there are always more of them, so that without a
    reservation at least one would be running at any time."""
    at_work, waiting, rounds = {}, [], 0
    wide = node("wide", cpus=4, path_length=1)
    while wide.id not in at_work:
        assert rounds < 10, "the wide node starves"
        at_work = {i: (held, left - 1) for i, (held, left) in at_work.items() if left > 1}
        waiting += [node(f"small{rounds}-{i}") for i in range(4)]
        free = {"cpus": 4}
        for held, _ in at_work.values():
            free = subtract(free, held)
        for chosen in startable([*waiting, *([wide] if rounds else [])], free):
            at_work[chosen.id] = (chosen.resources, 2)
            waiting = [c for c in waiting if c.id != chosen.id]
        rounds += 1


def test_resources_are_never_overcommitted_and_everything_runs():
    """Random nodes that each fit the machine, of two resources, ending in any order."""
    for seed in range(200):
        rng = random.Random(seed)
        total = {"cpus": rng.randint(1, 8), "gpus": rng.randint(0, 4)}
        waiting = [
            node(
                str(i),
                cpus=rng.randint(0, total["cpus"]),
                gpus=rng.randint(0, total["gpus"]),
                path_length=rng.random(),
                priority=rng.randint(0, 2),
            )
            for i in range(20)
        ]
        at_work = []
        while waiting or at_work:
            held = {kind: sum(c.resources[kind] for c in at_work) for kind in total}
            for chosen in startable(waiting, subtract(total, held)):
                waiting.remove(chosen)
                at_work.append(chosen)
                held = {kind: n + chosen.resources[kind] for kind, n in held.items()}
            assert fits(held, total)
            assert at_work, "nothing runs, and nothing starts"
            at_work.pop(rng.randrange(len(at_work)))


def test_an_embedding_takes_no_more_cpus_than_it_has_shards(tmp_path):
    def many(raw):
        raw["cpus"] = 8
        raw["data"]["train"]["shards"], raw["data"]["validation"]["shards"] = 16, 1

    nodes = plan.make(spec(many), Store.at(str(tmp_path)), {}).verdicts
    assert nodes["embed/train"].node.cpus == 8
    assert nodes["embed/validation"].node.cpus == 1
