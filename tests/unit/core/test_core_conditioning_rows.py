"""Slicing, concatenating, moving and nulling rows of a conditioning."""

import dataclasses

import pytest
import torch

from ediffi_core.conditioning import Conditioning, Paint


def tensors(cond):
    """All tensors of a conditioning, by kind and name."""
    paint = {} if cond.paint is None else cond.paint.maps
    kinds = {"s": cond.sequences, "m": cond.masks, "p": cond.pooled, "paint": paint}
    found = {(kind, name): t for kind, of in kinds.items() for name, t in of.items()}
    return found if cond.low_res is None else {**found, "low_res": cond.low_res}


def same(a, b):
    assert tensors(a).keys() == tensors(b).keys()
    assert all(torch.equal(t, tensors(b)[k]) for k, t in tensors(a).items())
    assert (a.paint and a.paint.weight) == (b.paint and b.paint.weight)


def painted(cond, *names, weight="max"):
    maps = {k: torch.rand(len(cond), cond.sequences[k].shape[1], 4, 4) for k in names}
    return dataclasses.replace(cond, paint=Paint(maps, weight))


@pytest.fixture
def full(make_cond):
    return painted(make_cond(5, low_res=4), "t5", "clip_text", weight="std")


def test_slicing_and_stacking_are_inverses(full):
    parts = [full[:2], full[torch.tensor([2])], full[torch.tensor([False] * 3 + [True] * 2)]]
    assert [len(p) for p in parts] == [2, 1, 2]
    same(Conditioning.cat(parts), full)


def test_map_reaches_every_tensor(full):
    seen = []
    mapped = full.map(lambda t: (seen.append(t), t.clone())[1])
    same(mapped, full)
    assert {id(t) for t in seen} == {id(t) for t in tensors(full).values()}
    assert mapped.paint.weight == "std"
    assert all(t.device.type == "meta" for t in tensors(full.to("meta")).values())
    assert full.to("meta").device.type == "meta"
    assert full.device.type == "cpu"


def test_painted_and_unpainted_rows_stack(make_cond):
    """Rows without paint get zeros, also for sequences that only other rows paint."""
    a, b, c = (make_cond(2, seed=i) for i in range(3))
    a, c = painted(a, "t5"), painted(c, "clip_text")
    stacked = Conditioning.cat([b, a, c])
    maps = stacked.paint.maps
    assert set(maps) == {"t5", "clip_text"}
    assert torch.equal(maps["t5"][2:4], a.paint.maps["t5"])
    assert not maps["t5"][[0, 1, 4, 5]].any()
    assert torch.equal(maps["clip_text"][4:], c.paint.maps["clip_text"])
    assert not maps["clip_text"][:4].any()
    for name in ("t5", "clip_text"):
        both = [p.sequences[name] for p in (b, a, c)]
        assert torch.equal(stacked.sequences[name], torch.cat(both))
    assert Conditioning.cat([b, b]).paint is None


def test_a_painted_batch_answers_as_its_parts_do(make_net, make_cond):
    net = make_net()
    a, b = painted(make_cond(2), "t5", "clip_text"), make_cond(2, seed=1)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    together = net(torch.cat([x, x]), torch.zeros(4), Conditioning.cat([a, b]))
    apart = torch.cat([net(x, torch.zeros(2), p) for p in (a, b)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_null_keeps_the_small_picture_alone(full):
    null = full.null()
    assert null.paint is None
    assert torch.equal(null.low_res, full.low_res)
    for kind in ("sequences", "masks", "pooled"):
        for name, value in getattr(full, kind).items():
            assert getattr(null, kind)[name].shape == value.shape
            assert not getattr(null, kind)[name].any()


def test_dropping_embeddings_keeps_paint_and_picture(full, config):
    kept = full.keep({"t5": torch.zeros(5, dtype=torch.bool)}, config.embeddings)
    assert kept.low_res is full.low_res
    assert kept.paint is full.paint
    assert not kept.masks["t5"].any()


def test_batches_that_do_not_stack_are_refused(make_cond):
    with pytest.raises(ValueError, match="for some rows only; set it for all or none"):
        Conditioning.cat([make_cond(1, low_res=4), make_cond(1)])
    paints = [painted(make_cond(1), "t5", weight=w) for w in ("max", "std")]
    with pytest.raises(ValueError, match="weight max and std in one batch"):
        Conditioning.cat(paints)


def test_rows_are_counted_by_whatever_there_is():
    assert len(Conditioning(low_res=torch.zeros(3, 3, 4, 4))) == 3
    assert len(Conditioning(pooled={"a": torch.zeros(2, 4)})) == 2
    for what in (len, lambda c: c.device):
        with pytest.raises(ValueError, match="empty conditioning"):
            what(Conditioning())
