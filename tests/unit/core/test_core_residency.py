"""One swapped network matches resident experts; weights are prefetched, and failures are safe."""

import threading

import pytest
import torch

from ediffi_core.checkpoint import Card, read, to_bytes
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.guidance import guided
from ediffi_core.noise import Interval, NoiseDistribution, edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.residency import SwappedEnsemble
from ediffi_core.sampling import SOLVERS
from ediffi_core.tree import intervals_of

NOISE = NoiseDistribution()
NAMES = ["E9_511", "M_C", "E3_0"]
INTERVALS = intervals_of(NAMES)
HIGH, MIDDLE, LOW = (torch.tensor(s, dtype=torch.float64) for s in (20.0, 1.0, 0.01))


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def loader(weights, calls, name):
    def load():
        calls.append(name)
        return weights

    return load


@pytest.fixture
def swapped(make_net):
    """``swapped({name: seed})`` → an ensemble in one network, and the names in loading order."""

    def make(seeds, **options):
        calls = []
        weights = {n: Denoiser(make_net(seed)).state_dict() for n, seed in seeds.items()}
        load = {n: loader(weights[n], calls, n) for n in seeds}
        slot = Denoiser(make_net(99))
        return SwappedEnsemble(slot, INTERVALS, load, NOISE, **options), calls

    return make


@pytest.fixture
def resident(make_net):
    def make(seeds):
        experts = [Expert(n, INTERVALS[n], Denoiser(make_net(s))) for n, s in seeds.items()]
        return Ensemble(experts, NOISE)

    return make


SAME, OTHER = dict.fromkeys(NAMES, 0), {n: i for i, n in enumerate(NAMES)}


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_it_samples_as_resident_experts_do_bit_for_bit(
    solver, scale, x, swapped, resident, make_net, make_cond
):
    def sample(denoiser):
        with torch.inference_mode():
            return SOLVERS[solver](guided(denoiser, make_cond(2), scale), 80 * x, edm_grid(9))

    assert torch.equal(sample(swapped(SAME)[0]), sample(Denoiser(make_net(0))))
    ensemble, calls = swapped(OTHER)
    expected = sample(resident(OTHER))
    assert torch.equal(sample(ensemble), expected)
    assert calls == NAMES  # each once, from high noise to low
    assert torch.equal(sample(ensemble), expected)  # and again from the top
    assert not torch.equal(expected, sample(resident(SAME)))


def test_experts_in_files_give_the_same(tmp_path, x, config, resident, make_net, make_cond):
    for name, seed in OTHER.items():
        card = Card(
            expert=name,
            interval=INTERVALS[name],
            noise=NOISE,
            sigma_data=0.5,
            network=config,
            images=1,
            averaged=True,
            parent=None,
        )
        data, _ = to_bytes(Denoiser(make_net(seed)).state_dict(), card)
        (tmp_path / name).write_bytes(data)
    load = {n: lambda n=n: read(tmp_path / n)[0] for n in NAMES}
    ensemble = SwappedEnsemble(Denoiser(make_net(99)), INTERVALS, load, NOISE)
    for _ in range(2):
        found, expected = (
            SOLVERS["deis3"](guided(e, make_cond(2), 2.0), 80 * x, edm_grid(9))
            for e in (ensemble, resident(OTHER))
        )
        assert torch.equal(found, expected)
    (tmp_path / "E3_0").write_bytes(b"torn")
    ensemble(x, MIDDLE, make_cond(2))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        ensemble(x, LOW, make_cond(2))


def test_the_next_expert_is_read_before_it_is_asked_for(x, swapped, make_cond):
    ensemble, calls = swapped(OTHER)
    arrived = threading.Event()
    at_once = ensemble.load["M_C"]
    ensemble.load["M_C"] = lambda: (at_once(), arrived.set())[0]
    assert calls == []
    ensemble(x, HIGH, make_cond(2))
    assert arrived.wait(60)
    assert calls == ["E9_511", "M_C"]
    assert ensemble.loaded == "E9_511"
    ensemble(x, MIDDLE, make_cond(2))
    ensemble(x, MIDDLE, make_cond(2))
    assert calls.count("M_C") == 1


def test_the_next_expert_is_read_while_another_thread_works(x, swapped, make_cond):
    """The current expert runs before the loader of the next one returns."""
    ensemble, _ = swapped(OTHER)
    release, load = threading.Event(), ensemble.load["M_C"]
    ensemble.load["M_C"] = lambda: (release.wait(60), load())[1]
    for _ in range(3):
        ensemble(x, HIGH, make_cond(2))
    release.set()
    assert ensemble(x, MIDDLE, make_cond(2)).isfinite().all()
    assert ensemble.loaded == "M_C"


def test_any_order_of_noise_gives_the_right_expert(x, swapped, resident, make_cond):
    (ensemble, _), expected, cond = swapped(OTHER), resident(OTHER), make_cond(2)
    order = (LOW, HIGH, LOW, MIDDLE, HIGH, MIDDLE, LOW, LOW)
    for sigma in order:
        assert torch.equal(ensemble(x, sigma, cond), expected(x, sigma, cond))
    mixed = torch.stack([HIGH, LOW])
    assert torch.equal(ensemble(x, mixed, cond), expected(x, mixed, cond))


def test_a_loader_that_fails_leaves_the_expert_before_it(x, swapped, resident, make_cond):
    (ensemble, _), cond = swapped(OTHER), make_cond(2)
    good = ensemble.load["M_C"]

    def fail():
        raise OSError("gone")

    ensemble.load["M_C"] = fail
    before = ensemble(x, HIGH, cond)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            ensemble(x, MIDDLE, cond)
        assert torch.equal(ensemble(x, HIGH, cond), before)
    ensemble.load["M_C"] = good
    assert torch.equal(ensemble(x, MIDDLE, cond), resident(OTHER)(x, MIDDLE, cond))


def test_a_copy_that_fails_half_way_is_not_taken_for_an_expert(
    x, swapped, resident, make_cond, monkeypatch
):
    (ensemble, _), cond = swapped(OTHER), make_cond(2)
    expected = resident(OTHER)
    ensemble(x, HIGH, cond)
    copy_, done = torch.Tensor.copy_, []

    def failing(self, *args, **kwargs):
        done.append(self)
        if len(done) == 5:
            raise RuntimeError("out of memory")
        return copy_(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(torch.Tensor, "copy_", failing)
        ensemble(x, MIDDLE, cond)
    assert ensemble.loaded is None
    for sigma in (HIGH, MIDDLE):  # neither is answered from the half-filled network
        assert torch.equal(ensemble(x, sigma, cond), expected(x, sigma, cond))


def shorn(weights):
    return dict(list(weights.items())[1:])


def widened(weights):
    name = next(iter(weights))
    return {**weights, name: torch.cat([weights[name]] * 2)}


@pytest.mark.parametrize("change", [shorn, widened, lambda w: {**w, "more": torch.ones(1)}])
def test_another_architecture_is_refused_and_touches_nothing(change, x, swapped, make_cond):
    (ensemble, _), cond = swapped(OTHER), make_cond(2)
    load = ensemble.load["M_C"]
    ensemble.load["M_C"] = lambda: change(load())
    before = ensemble(x, HIGH, cond)
    with pytest.raises(
        ValueError, match=r"expert M_C differs from the others in architecture .* `all`"
    ):
        ensemble(x, MIDDLE, cond)
    assert torch.equal(ensemble(x, HIGH, cond), before)


def test_every_expert_needs_a_loader_and_p_sigma_a_cover(make_net):
    slot = Denoiser(make_net())
    with pytest.raises(ValueError, match="no loader for the weights of E3_0, M_C"):
        SwappedEnsemble(slot, INTERVALS, {"E9_511": dict}, NOISE)
    with pytest.raises(ValueError, match="no expert covers"):
        SwappedEnsemble(slot, {"E1_0": Interval(0, 0.5)}, {"E1_0": dict}, NOISE)


def test_it_holds_one_network_and_tells_who_worked(x, swapped, make_net, make_cond):
    told = []
    ensemble, _ = swapped(OTHER, on_route=told.append)
    assert sum(p.numel() for p in ensemble.parameters()) == sum(
        p.numel() for p in make_net().parameters()
    )
    for sigma in (HIGH, MIDDLE, LOW):
        ensemble(x, sigma, make_cond(2))
    assert [(r.expert, r.sigma) for r in told] == [("E9_511", 20), ("M_C", 1), ("E3_0", 0.01)]
    assert all(r.seconds > 0 for r in told)
