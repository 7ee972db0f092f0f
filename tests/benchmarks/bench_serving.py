"""The service on loopback: throughput by batches, latency, and what a load of trouble loses.

``--engine local`` leaves Ray out, and with it the kills of replicas. Pictures are drawn with one
thread, here and there, so that one of two cores is left for HTTP and for Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from harness import report

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/kits")]

import load_kit  # noqa: E402
from load_kit import Service  # noqa: E402

PROMPTS = [
    "a frog on a pink background",
    "a rocket",
    "a frog and a rocket",
    "a red apple on a green background",
]
CALLERS = 8
MB = 2**20


def throughput(service: Service, count: int) -> list[str]:
    """Callers that share batches, against one request after another."""
    rows = []
    asyncio.run(load_kit.load(service, load_kit.bodies(PROMPTS, CALLERS), callers=CALLERS))
    rates = {}
    for callers in (1, CALLERS):
        asked = load_kit.bodies(PROMPTS, count)
        outcome = asyncio.run(load_kit.load(service, asked, callers=callers))
        assert not outcome.lost(asked), outcome.lost(asked)
        rates[callers] = count / outcome.seconds
        rows.append(
            f"| {callers} | {rates[callers]:.2f} | {outcome.percentile(50):.2f} s | "
            f"{outcome.percentile(95):.2f} s |"
        )
    return [
        f"{count} pictures a row, one a request:",
        "",
        "| callers | pictures/s | p50 | p95 |",
        "|---|---|---|---|",
        *rows,
        "",
        f"{CALLERS} callers get {rates[CALLERS] / rates[1]:.2f} times the pictures of one.",
    ]


def latency(service: Service, fingerprint: str, rounds: int) -> str:
    """A lone request beside a call in this process, in turn, both on as many threads."""
    model = service.ensemble(fingerprint)
    first, whole, inside = [], [], []

    async def served(body: load_kit.Body) -> tuple[float, float]:
        async with load_kit.client(service) as http:
            return await load_kit.times_of(http, body)

    for i, body in enumerate(load_kit.bodies(PROMPTS, rounds + 1, first=1000)):
        preview, picture = asyncio.run(served(body))
        start = time.perf_counter()
        model.sample([body["prompt"]], seed=[body["seed"]])
        if i:  # the first pays for caches
            first.append(preview)
            whole.append(picture)
            inside.append(time.perf_counter() - start)
    a, b, c = map(statistics.median, (first, whole, inside))
    return (
        f"A lone request with previews, medians of {rounds} in turn: the first preview after "
        f"{a:.3f} s, the picture after {b:.3f} s; `TextToImage.sample` in process {c:.3f} s."
    )


def trouble(service: Service, count: int, *, kills: int) -> list[str]:
    """Cancellations, kills and a new champion amid requests; then pictures are compared."""
    asked = load_kit.bodies(PROMPTS, count, first=5000)
    cancelled = random.Random(1).sample(range(count), max(1, count * 30 // 500))
    at = {count * 3 // 4: service.promote_next}
    at |= {count * (k + 1) // 4: partial(load_kit.kill_painter, service) for k in range(kills)}
    outcome = asyncio.run(
        load_kit.load(service, asked, callers=CALLERS, cancelled=cancelled, at=at)
    )
    lost = outcome.lost(asked)
    same = load_kit.check_bits(service, asked, outcome, 20)
    models = ", ".join(f"{n} by {name[:8]}" for name, n in outcome.drawn_by().items())
    return [
        f"{count} requests of {CALLERS} callers with {len(outcome.cancelled)} cancellations, "
        f"{kills} kills of a replica and a change of champion, in {outcome.seconds:.0f} s: "
        f"{len(outcome.answers) - len(lost)} pictures ({models}), {len(lost)} lost; {same} of them "
        "compared with `TextToImage.sample`, all bit-equal.",
        *(f"- lost: {why}" for why in lost),
    ]


def refusals(service: Service, count: int) -> str:
    """Bad requests, twice as many as are measured: the first half pays for caches."""
    requests = load_kit.bad_requests(PROMPTS[0], count)
    asyncio.run(load_kit.send_bad(service, requests))
    before = service.resident_bytes()
    statuses = asyncio.run(load_kit.send_bad(service, requests))
    after = service.resident_bytes()
    told = ", ".join(
        f"{n} × {status or 'closed amid a body beyond the limit'}"
        for status, n in sorted(statuses.items())
    )
    return (
        f"{count} bad requests, after as many before: {told}; resident memory of the service's "
        f"processes {before / MB:.0f} → {after / MB:.0f} MB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("ray", "local"), default="ray")
    parser.add_argument("--model", default="emoji-scenes")
    parser.add_argument("--store", type=Path, default=ROOT / "ediffi-store", help="a done demo's")
    parser.add_argument("--requests", type=int, default=500, help="of the load with trouble")
    parser.add_argument("--pictures", type=int, default=64, help="of a row of throughput")
    parser.add_argument("--rounds", type=int, default=10, help="of a lone request")
    given, rest = parser.parse_known_args()
    sys.argv[1:] = rest  # the report has options of its own
    on_ray = given.engine == "ray"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = load_kit.own_store(given.store, folder / "store", given.model)
        now = load_kit.champion_of(store, given.model)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the service
        torch.set_num_threads(1)
        one = {"batching": {"pictures": CALLERS}}
        start = partial(load_kit.service, given.model, store, on_ray=on_ray)
        with start(folder=folder / "one", **one) as service:
            fast = throughput(service, given.pictures)
            lone = latency(service, now, rounds=given.rounds)
            refused = refusals(service, 200)
        two = {"replicas": {"min": 2, "max": 2}, "refresh_s": 1.0}
        with start(folder=folder / "two", **two) as service:
            hard = trouble(service, given.requests, kills=2 if on_ray else 0)
    kind = "Ray Serve" if on_ray else "one process"
    lines = [f"`{given.model}` by {kind}, one thread. {fast[0]}", *fast[1:], ""]
    several = ["With two replicas: " + hard[0], *hard[1:]] if on_ray else hard
    report("Serving", [*lines, lone, "", refused, "", *several])


if __name__ == "__main__":
    main()
