"""Painted attention follows the paper's formula; phrases match tokens or fail clearly."""

import dataclasses
import math

import pytest
import torch

from ediffi_core.conditioning import Paint
from ediffi_core.control import (
    Phrase,
    TokenSpans,
    paint_with_words,
    tokens_of,
)
from ediffi_core.guidance import guided
from ediffi_core.precond import Denoiser
from ediffi_core.unet.attention import CrossAttention, score_max, score_std

SIGMA = torch.tensor(3.0, dtype=torch.float64)


def spans(text, length=None):
    """One token per word, then an end token."""
    found, at = [], 0
    for word in text.split():
        start = text.index(word, at)
        found.append((start, at := start + len(word)))
    return TokenSpans(text, [*found[:length], (0, 0)])


def mask(rows=slice(None), columns=slice(None), size=(4, 4)):
    out = torch.zeros(size)
    out[rows, columns] = 1
    return out


LEFT, TOP = mask(columns=slice(0, 2)), mask(rows=slice(0, 1))
PROMPT = spans("a red three and a blue three")


def painted(phrases, prompts=None):
    return paint_with_words(phrases, {"t5": prompts or [PROMPT] * len(phrases)})


def test_a_phrase_paints_its_tokens_everywhere_it_stands():
    paint = painted([[Phrase("three", LEFT, strength=0.3)]])
    assert paint.weight == "max"
    assert paint.maps["t5"].shape == (1, 8, 4, 4)
    for token in range(8):
        expected = 0.3 * LEFT if token in (2, 6) else torch.zeros(4, 4)
        assert torch.equal(paint.maps["t5"][0, token], expected)


@pytest.mark.parametrize(
    ("text", "occurrence", "tokens"),
    [
        ("three", None, [2, 6]),
        ("three", 0, [2]),
        ("three", 1, [6]),
        ("red three", None, [1, 2]),
        ("  RED\n three ", None, [1, 2]),
        ("a", None, [0, 4]),  # not the a of "and"
        ("a blue three", 0, [4, 5, 6]),
    ],
)
def test_tokens_of_a_phrase(text, occurrence, tokens):
    assert tokens_of(Phrase(text, LEFT, occurrence=occurrence), PROMPT, "t5") == tokens


def test_every_piece_of_a_word_is_painted():
    """Tokens may share characters or split words; every overlapping token counts."""
    prompt = TokenSpans(
        "a giraffe, ok", [(0, 0), (0, 1), (2, 5), (5, 9), (9, 10), (11, 13), (0, 0)]
    )
    assert tokens_of(Phrase("giraffe", LEFT), prompt, "clip_text") == [2, 3]
    assert tokens_of(Phrase("giraffe,", LEFT), prompt, "clip_text") == [2, 3, 4]


def test_overlapping_phrases_add_their_strengths():
    phrases = [Phrase("red three", LEFT, 0.3), Phrase("three", TOP, 0.2, occurrence=0)]
    maps = painted([phrases]).maps["t5"][0]
    torch.testing.assert_close(maps[2], 0.3 * LEFT + 0.2 * TOP)
    torch.testing.assert_close(maps[1], 0.3 * LEFT)


def test_every_encoder_gets_its_own_columns_and_every_picture_its_own_paint():
    other = TokenSpans("a three", [(0, 0), (0, 1), (2, 4), (4, 7), (0, 0)])
    paint = paint_with_words(
        [[], [Phrase("three", LEFT, 1.0)]],
        {"t5": [PROMPT, spans("a three")], "clip_text": [other, other]},
        weight="std",
    )
    assert paint.weight == "std"
    assert paint.maps["t5"].shape == (2, 8, 4, 4)
    assert not paint.maps["t5"][0].any()
    assert paint.maps["t5"][1].any(dim=(1, 2)).nonzero().flatten().tolist() == [1]
    assert paint.maps["clip_text"][1].any(dim=(1, 2)).nonzero().flatten().tolist() == [2, 3]


NAN = torch.full((4, 4), torch.nan)


@pytest.mark.parametrize(
    ("phrases", "text"),
    [
        ([Phrase("green", LEFT)], "phrase 'green' is not in the prompt 'a red three and"),
        ([Phrase("thre", LEFT)], "phrase 'thre' is not in the prompt"),
        ([Phrase(" ", LEFT)], "painted phrase is empty"),
        ([Phrase("red", torch.zeros(4, 4))], "mask of 'red' is empty: it paints nowhere"),
        ([Phrase("red", LEFT[None])], r"mask of 'red' has shape \[1, 4, 4\]; give \[height, width"),
        ([Phrase("red", 255 * LEFT)], r"mask of 'red' has values outside \[0, 1\]"),
        ([Phrase("red", NAN)], r"mask of 'red' has values outside \[0, 1\]"),
        ([Phrase("red", LEFT), Phrase("blue", mask(size=(4, 5)))], r"masks differ in size"),
        ([Phrase("three", LEFT, occurrence=2)], r"occurrence 2 of 'three'.* has 2 \(counted from"),
        ([Phrase("three", LEFT, occurrence=-1)], "occurrence -1 of 'three'"),
        ([], "nothing is painted"),
    ],
)
def test_mistakes_are_named(phrases, text):
    with pytest.raises(ValueError, match=text):
        painted([phrases])


def test_a_phrase_beyond_the_tokens_is_named():
    short = [spans(PROMPT.text, length=4)]
    with pytest.raises(ValueError, match="'blue' lies beyond the 5 tokens that t5 reads"):
        painted([[Phrase("blue", LEFT)]], short)
    with pytest.raises(ValueError, match="'three' lies beyond"):
        painted([[Phrase("three", LEFT, occurrence=1)]], short)
    assert painted([[Phrase("three", LEFT)]], short).maps["t5"].any()


def test_prompts_must_be_there_and_match_the_pictures():
    with pytest.raises(ValueError, match="1 prompts, but phrases for 2 pictures"):
        painted([[Phrase("red", LEFT)], []], [PROMPT])
    with pytest.raises(ValueError, match="need the prompts"):
        paint_with_words([[Phrase("red", LEFT)]], {})


def test_a_phrase_is_cleaned_as_its_prompt_was(clip):
    """CLIP's tokenizer normalises quotes and spaces, so phrases are normalised too."""
    prompt = "the  cat\u2019s &amp; dog\u2019s hats"
    (read,) = clip.spans([prompt])
    for phrase in ("cat\u2019s", "cat's", "cat\u2019s &amp; dog\u2019s", "Hats"):
        tokens = tokens_of(Phrase(phrase, LEFT), read, "clip_text")
        assert "".join(read.text[slice(*read.spans[t])] for t in tokens) in (
            "cat's",
            "cat's&dog's",
            "hats",
        )


# What the network makes of it. make_cond's rows have five token places a sequence.


def paint_of(rows=3, strength=0.4, weight="max", side=4):
    """Random maps of both sequences; row 1 is unpainted."""
    generator = torch.Generator().manual_seed(5)
    maps = {
        k: strength * (torch.rand(rows, 5, side, side, generator=generator) > 0.5)
        for k in ("clip_text", "t5")
    }
    for m in maps.values():
        m[1] = 0
    return Paint(maps, weight)


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weight", ["max", "std"])
def test_painted_attention_is_the_formula(weight, make_net, make_cond):
    """softmax((Q Kᵀ + w A)/√d) V, w = w' log(1 + σ) max(Q Kᵀ), as loops in float64."""
    net = make_net()
    (layer,) = [m for m in net.stages[2].modules() if isinstance(m, CrossAttention)]
    cond = dataclasses.replace(make_cond(), paint=paint_of(weight=weight, side=4))
    sigma = torch.tensor([0.1, 2.0, 50.0], dtype=torch.float64)
    tokens, _ = net.projection(cond, torch.log(sigma) / 4)
    x = torch.randn(3, 16, 4, 4)
    found = layer(x, tokens) - x

    q, k, v = (t.double() for t in (layer.queries(x), *layer.keys_values(tokens.values)))
    maps = torch.zeros(3, 12, 4, 4, dtype=torch.float64)  # null, 5 CLIP text, 5 T5, CLIP image
    maps[:, 1:6], maps[:, 6:11] = cond.paint.maps["clip_text"], cond.paint.maps["t5"]
    for n in range(3):
        kept = tokens.mask[n].nonzero().flatten().tolist()
        heads = []
        for h in range(q.shape[1]):
            scores = [[float(q[n, h, i] @ k[n, h, j]) for j in kept] for i in range(16)]
            every = [s for row in scores for s in row]
            mean = sum(every) / len(every)
            std = math.sqrt(sum((s - mean) ** 2 for s in every) / len(every))
            w = math.log(1 + float(sigma[n])) * (max(every) if weight == "max" else std)
            rows = []
            for i in range(16):
                a = [float(maps[n, j, i // 4, i % 4]) for j in kept]
                logits = [(s + w * m) / math.sqrt(q.shape[3]) for s, m in zip(scores[i], a)]
                top = max(logits)
                shares = [math.exp(z - top) for z in logits]
                rows.append(sum(s / sum(shares) * v[n, h, j] for s, j in zip(shares, kept)))
            heads.append(torch.stack(rows))
        expected = layer.out(torch.cat(heads, dim=1).float()).T.unflatten(1, (4, 4))
        torch.testing.assert_close(found[n], expected, rtol=1e-5, atol=1e-6)


def test_an_unpainted_picture_in_a_painted_batch_is_unchanged(x, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond()
    plain = denoiser(x, SIGMA, cond)
    found = denoiser(x, SIGMA, dataclasses.replace(cond, paint=paint_of()))
    assert torch.equal(found[1], plain[1])
    assert (found - plain)[[0, 2]].abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_painting_with_no_strength_is_not_painting(x, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond()
    nothing = dataclasses.replace(cond, paint=paint_of(strength=0.0))
    torch.testing.assert_close(denoiser(x, SIGMA, nothing), denoiser(x, SIGMA, cond))


def test_a_painted_picture_does_not_depend_on_its_batch(x, make_net, make_cond):
    denoiser = Denoiser(make_net())
    cond = dataclasses.replace(make_cond(), paint=paint_of())
    alone = [denoiser(x[[i]], SIGMA, cond[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), denoiser(x, SIGMA, cond), rtol=1e-4, atol=1e-5)


def test_null_and_image_tokens_are_never_painted(make_net, make_cond):
    maps = {**paint_of().maps, "clip_image": torch.ones(3, 1, 4, 4), "null": torch.ones(3, 1, 4, 4)}
    cond = dataclasses.replace(make_cond(), paint=Paint(maps))
    tokens, _ = make_net().projection(cond, torch.zeros(3))
    assert not tokens.paint.maps.maps[:, [0, 11]].any()
    assert torch.equal(tokens.paint.maps.maps[:, 1:6], maps["clip_text"])
    assert torch.equal(tokens.paint.maps.maps[:, 6:11], maps["t5"])


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        ({"T5": (3, 5)}, "T5 is painted, but the sequences this network reads are clip_text, t5"),
        ({}, "nothing is painted, but"),
        ({"t5": (3, 4)}, r"paint of t5 is for \[3, 4\] rows and tokens, the conditioning has"),
        ({"t5": (1, 5)}, r"paint of t5 is for \[1, 5\] rows"),
    ],
)
def test_paint_that_does_not_fit_the_network_is_refused(maps, text, x, make_net, make_cond):
    paint = Paint({k: torch.ones(*size, 4, 4) for k, size in maps.items()})
    with pytest.raises(ValueError, match=text):
        Denoiser(make_net())(x, SIGMA, dataclasses.replace(make_cond(), paint=paint))


def test_paint_is_laid_out_anew_for_another_network_and_size(config, make_net, make_cond):
    """One Paint for several networks and sizes: its cache must not be mixed up."""
    text_only = dataclasses.replace(config, embeddings=config.embeddings[:1])
    cond = dataclasses.replace(make_cond(), paint=paint_of())
    for net in (make_net(), make_net(config=text_only), make_net(1)):
        for side in (8, 16, 8):
            x = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
            fresh = dataclasses.replace(make_cond(), paint=paint_of())
            found, expected = (Denoiser(net)(x, SIGMA, c) for c in (cond, fresh))
            assert torch.equal(found, expected)
    assert not dataclasses.replace(cond.paint).token_maps
    assert not cond[:2].paint.token_maps


@pytest.mark.parametrize("batched", [True, False])
def test_guidance_paints_the_conditional_branch_only(batched, x, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond()
    cond = dataclasses.replace(cond, paint=paint_of())
    assert cond.null().paint is None
    with_text = denoiser(x, SIGMA, cond)
    without = denoiser(x, SIGMA, make_cond().null())
    found = guided(denoiser, cond, 2.0, batched=batched)(x, SIGMA)
    torch.testing.assert_close(found, 3 * with_text - 2 * without, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight", ["max", "std"])
def test_paint_never_pushes_its_words_away(weight):
    """With negative scores, their maximum times a mask would suppress painted words."""
    torch.manual_seed(0)
    q, k = torch.rand(1, 2, 4, 3), -torch.rand(1, 2, 5, 3)
    valid = torch.tensor([[[True, True, True, True, False]]])
    assert float((q @ k.transpose(2, 3)).max()) < 0
    height = {"max": score_max, "std": score_std}[weight](q, k, valid)
    assert height.shape == (1, 2)
    assert bool((height >= 0).all())
    assert bool((height == 0).all()) == (weight == "max")
