"""Ensembles from the files of their experts."""

import weakref
from dataclasses import replace
from functools import partial

import pytest
from cards import card

from ediffi_core.conditioning import EmbeddingSpec
from ediffi_core.loading import RESIDENCIES, Source, build_ensemble
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNetConfig

CONFIG = UNetConfig(
    resolution=4,
    channels=8,
    channel_mult=(1,),
    blocks=1,
    head_channels=8,
    embeddings=(EmbeddingSpec(name="label", dim=2, kind="pooled"),),
)
QUARTERS = {f"E2_{i}": Interval(i / 4, (i + 1) / 4) for i in range(4)}


def read(name, interval, alive, most, config=CONFIG):
    """A file's content; notes the most files that are in memory at once."""
    weights = {k: v.clone() for k, v in Denoiser.of(config, 0.5).state_dict().items()}
    alive.extend(weakref.ref(v) for v in weights.values())
    most.append(sum(ref() is not None for ref in alive) / len(weights))
    return weights, card(name, interval, config)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_one_file_at_a_time_is_in_memory_unless_all_should_be(residency):
    alive, most = [], []
    sources = {n: Source(n, i, partial(read, n, i, alive, most)) for n, i in QUARTERS.items()}
    ensemble = build_ensemble(sources, residency)
    assert [expert.name for expert in ensemble.experts] == list(QUARTERS)
    assert max(most) == (4 if residency == "current" else 1)


def test_a_file_that_slots_share_is_read_once():
    alive, most, whole = [], [], Interval(0.0, 1.0)
    one = partial(read, "E0_0", whole, alive, most)
    ensemble = build_ensemble({n: Source("same", i, one) for n, i in QUARTERS.items()})
    assert len(most) == 1 and len({id(expert.denoiser) for expert in ensemble.experts}) == 1


def test_experts_that_differ_are_refused():
    wider = replace(CONFIG, channels=16)
    sources = {
        n: Source(n, i, partial(read, n, i, [], [], wider if n == "E2_3" else CONFIG))
        for n, i in QUARTERS.items()
    }
    with pytest.raises(ValueError, match="E2_0, E2_1, E2_2, E2_3 differ in noise distribution"):
        build_ensemble(sources)
