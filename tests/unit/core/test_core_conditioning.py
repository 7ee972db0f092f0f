"""Padding has no effect, absent embeddings leave no trace, dropout is independent."""

import dataclasses
from itertools import combinations

import pytest
import torch

from ediffi_core.conditioning import Conditioning, EmbeddingSpec, Projection, draw_keep

GROUPS = ("clip_text", "t5", "clip_image")


def run(net, cond):
    """The network on fixed images and noise levels, so that only the conditioning varies."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(cond), 3, 8, 8, generator=generator)
    c_noise = torch.linspace(-1, 1, len(cond))
    return net(x, c_noise, cond)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def replace(cond, **changes):
    return dataclasses.replace(cond, **changes)


def test_every_embedding_is_read(make_net, make_cond):
    """Precondition of the tests below: embeddings and tokens change the output."""
    net, cond = make_net(), make_cond()
    base = run(net, cond)
    for name in cond.sequences:
        changed = {k: v.clone() for k, v in cond.sequences.items()}
        changed[name][:, 0, :3] += 1
        assert (run(net, replace(cond, sequences=changed)) - base).abs().max() > 1e-3
    for name in cond.pooled:
        changed = {**cond.pooled, name: cond.pooled[name].flip(1)}
        assert (run(net, replace(cond, pooled=changed)) - base).abs().max() > 1e-3


def test_padding_is_never_attended(make_net, make_cond):
    net, cond = make_net(), make_cond()
    base = run(net, cond)
    garbage = {
        k: torch.where(cond.masks[k][..., None], v, 100 * torch.randn_like(v))
        for k, v in cond.sequences.items()
    }
    close(run(net, replace(cond, sequences=garbage)), base)
    longer = Conditioning(
        {k: torch.nn.functional.pad(v, (0, 0, 0, 9), value=7.0) for k, v in garbage.items()},
        {k: torch.nn.functional.pad(v, (0, 9)) for k, v in cond.masks.items()},
        cond.pooled,
    )
    close(run(net, longer), base)


def test_a_row_does_not_depend_on_its_batch(make_net, make_cond):
    net, cond = make_net(), make_cond()
    generator = torch.Generator().manual_seed(2)
    x, c_noise = torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([-1.0, 0, 1])
    together = net(x, c_noise, cond)
    apart = [net(x[i : i + 1], c_noise[i : i + 1], cond[i : i + 1]) for i in range(3)]
    close(torch.cat(apart), together)


def absent(cond, group):
    """The same batch without the embeddings of ``group``: one zero token, masked out."""
    sequences, masks, pooled = dict(cond.sequences), dict(cond.masks), dict(cond.pooled)
    if group in sequences:
        sequences[group] = torch.zeros(len(cond), 1, sequences[group].shape[2])
        masks[group] = torch.zeros(len(cond), 1, dtype=torch.bool)
    for name in pooled:
        if name.startswith(group):
            pooled[name] = torch.zeros_like(pooled[name])
    return Conditioning(sequences, masks, pooled)


@pytest.mark.parametrize("group", GROUPS)
def test_a_dropped_embedding_equals_an_absent_one(group, make_net, make_cond, config):
    net, cond = make_net(), make_cond()
    kept = torch.tensor([True, False, True])
    dropped = run(net, cond.keep({group: kept}, config.embeddings))
    close(dropped[kept], run(net, cond)[kept])
    close(dropped[~kept], run(net, absent(cond, group))[~kept])
    assert (dropped - run(net, cond))[~kept].abs().max() > 1e-3


def test_all_dropped_is_null(make_net, make_cond, config):
    cond = make_cond()
    none = dict.fromkeys(GROUPS, torch.zeros(3, dtype=torch.bool))
    dropped, null = cond.keep(none, config.embeddings), cond.null()
    for kind in ("sequences", "masks", "pooled"):
        for name, value in getattr(null, kind).items():
            assert torch.equal(getattr(dropped, kind)[name], value)
            assert not value.any()
    out = run(make_net(), null)
    assert out.isfinite().all()
    for group in GROUPS:
        cond = absent(cond, group)
    close(run(make_net(), cond), out)


def test_dropping_leaves_the_original_alone(make_cond, config):
    cond, again = make_cond(), make_cond()
    cond.keep(dict.fromkeys(GROUPS, torch.zeros(3, dtype=torch.bool)), config.embeddings)
    for kind in ("sequences", "masks", "pooled"):
        for name, value in getattr(again, kind).items():
            assert torch.equal(getattr(cond, kind)[name], value)


def test_slicing_and_stacking_are_inverses(make_cond):
    cond = make_cond(5)
    again = Conditioning.cat([cond[:2], cond[torch.tensor([2])], cond[3:]])
    assert len(cond) == len(again) == 5
    for kind in ("sequences", "masks", "pooled"):
        for name, value in getattr(cond, kind).items():
            assert torch.equal(getattr(again, kind)[name], value)


def test_zero_vectors_stay_zero_through_the_projection(config):
    projection = Projection(config.embeddings, 12, 32)
    null = Conditioning(
        {"clip_text": torch.zeros(2, 3, 6), "t5": torch.zeros(2, 4, 8)},
        {"clip_text": torch.zeros(2, 3, dtype=torch.bool), "t5": torch.zeros(2, 4) > 0},
        {"clip_text_pooled": torch.zeros(2, 6), "clip_image": torch.zeros(2, 6)},
    )
    tokens, pooled = projection(null, torch.zeros(2))
    assert tokens.values.shape == (2, 1 + 3 + 4 + 1, 12)
    assert tokens.mask.tolist() == [[True] + [False] * 8] * 2
    assert torch.equal(tokens.values[:, 0], projection.null_token.expand(2, -1))
    assert not tokens.values[:, 1:].any()
    assert tokens.paint is None
    assert not pooled.any()


def test_small_pooled_vectors_are_read_as_well_as_large_ones(make_net, make_cond):
    """The scale of an embedding, such as CLIP's small entries, must not matter."""
    net, cond = make_net(), make_cond()
    scaled = replace(cond, pooled={k: 30 * v for k, v in cond.pooled.items()})
    torch.testing.assert_close(run(net, scaled), run(net, cond), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["sequence", "pooled", "attended"])
def test_a_new_encoder_is_one_more_spec(kind, config, make_net, make_cond):
    """A new embedding needs only an EmbeddingSpec."""
    spec = EmbeddingSpec(
        name="dino",
        dim=5,
        kind="sequence" if kind == "sequence" else "pooled",
        attended=kind == "attended",
    )
    wider = dataclasses.replace(config, embeddings=(*config.embeddings, spec))
    assert type(wider).from_dict(wider.to_dict()) == wider
    net, old = make_net(config=wider), make_net()
    extra = {k: v for k, v in net.state_dict().items() if "dino" not in k}
    old.load_state_dict(extra)

    cond = make_cond()
    vectors = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3))
    if kind == "sequence":
        full = Conditioning(
            {**cond.sequences, "dino": vectors},
            {**cond.masks, "dino": torch.ones(3, 4, dtype=torch.bool)},
            cond.pooled,
        )
    else:
        full = replace(cond, pooled={**cond.pooled, "dino": vectors[:, 0]})
    assert (run(net, full) - run(old, cond)).abs().max() > 1e-3
    kept = {"dino": torch.zeros(3, dtype=torch.bool)}
    close(run(net, full.keep(kept, wider.embeddings)), run(old, cond))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dim": 0, "kind": "pooled"}, "'x' needs dim >= 1"),
        ({"dim": 4, "kind": "tokens"}, "kind 'sequence' or 'pooled'.*'tokens'"),
    ],
)
def test_impossible_embeddings_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        EmbeddingSpec(name="x", **arguments)


DROP = {"t5": 0.1, "clip_text": 0.25, "clip_image": 0.5}


def test_dropout_keeps_what_it_promises_independently():
    n = 100_000
    kept = draw_keep(0, torch.arange(n), DROP, all_p=0)
    assert set(kept) == set(DROP)

    def near(found, p):
        assert abs(found.double().mean() - p) < 4.5 * (p * (1 - p) / n) ** 0.5

    for group, p in DROP.items():
        near(kept[group], 1 - p)
    for a, b in combinations(DROP, 2):
        near(kept[a] & kept[b], (1 - DROP[a]) * (1 - DROP[b]))
    near(~kept["t5"] & ~kept["clip_text"] & ~kept["clip_image"], 0.1 * 0.25 * 0.5)


def test_all_at_once_comes_on_top():
    n, all_p = 100_000, 0.1
    kept = draw_keep(0, torch.arange(n), DROP, all_p=all_p)
    for group, p in DROP.items():
        assert kept[group].double().mean() == pytest.approx((1 - all_p) * (1 - p), abs=0.007)
    none = ~kept["t5"] & ~kept["clip_text"] & ~kept["clip_image"]
    expected = all_p + (1 - all_p) * 0.1 * 0.25 * 0.5
    assert none.double().mean() == pytest.approx(expected, abs=0.005)


def test_dropout_is_a_function_of_the_index_and_of_the_group_s_name():
    index = torch.arange(500)
    kept = draw_keep(0, index, DROP, all_p=0.1)
    halves = [draw_keep(0, part, DROP, all_p=0.1) for part in index.split(123)]
    shuffled = draw_keep(0, index, dict(reversed(DROP.items())), all_p=0.1)
    for group in DROP:
        assert torch.equal(torch.cat([h[group] for h in halves]), kept[group])
        assert torch.equal(shuffled[group], kept[group])
    always = draw_keep(0, index, dict.fromkeys(DROP, 0.0), all_p=0)
    never = draw_keep(0, index, dict.fromkeys(DROP, 1.0), all_p=0)
    assert all(v.all() for v in always.values())
    assert not any(v.any() for v in never.values())
