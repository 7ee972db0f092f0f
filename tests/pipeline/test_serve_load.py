"""A service on Ray under load: kills, cancellations and a new champion lose no picture."""

import asyncio
import random
from functools import partial

import ensemble_kit
import load_kit
import pytest

MB = 2**20
REQUESTS, CALLERS, CANCELLED = 200, 8, 20


@pytest.mark.soak
def test_a_load_of_trouble_loses_nothing(tmp_path):
    ensemble_kit.make(tmp_path / "source")
    store = load_kit.own_store(tmp_path / "source", tmp_path / "store", ensemble_kit.NAME)
    settings = {"replicas": {"min": 2, "max": 2}, "refresh_s": 0.5}
    with load_kit.service(
        ensemble_kit.NAME, store, tmp_path / "service", on_ray=True, **settings
    ) as service:
        asked = load_kit.bodies(ensemble_kit.CAPTIONS, REQUESTS)
        kill = partial(load_kit.kill_painter, service)
        outcome = asyncio.run(
            load_kit.load(
                service,
                asked,
                callers=CALLERS,
                cancelled=random.Random(0).sample(range(REQUESTS), CANCELLED),
                at={40: kill, 60: service.promote_next, 120: kill},
            )
        )
        assert outcome.lost(asked) == []
        assert len(outcome.cancelled) == CANCELLED
        assert load_kit.check_bits(service, asked, outcome, 20) == 20
        assert load_kit.NEXT in outcome.drawn_by()
        bad = load_kit.bad_requests(ensemble_kit.CAPTIONS[0], 200)
        asyncio.run(load_kit.send_bad(service, bad))
        before = service.resident_bytes()
        statuses = asyncio.run(load_kit.send_bad(service, bad))
        assert sum(statuses.values()) == 200
        assert service.resident_bytes() - before < 50 * MB
