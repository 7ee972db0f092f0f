"""Token spans: the text under a word's tokens is that word."""

import re

import pytest
import torch

from ediffi_core.control import Phrase, paint_with_words
from ediffi_core.encoders import CLIP, encode_prompts

PROMPTS = [
    "a red three",
    "A  Red\tthree, a BLUE three; (and three-fold!)",
    "",
    "naïve café — crème brûlée",
    "ein süßer Bär über dem Fluß",
    "красный кот и синий кот",
    "日本の 赤い 猫",
    "two 🦒🦒 and one 🐈",
    "it's the cat's 1234 toys &amp; 5.5% more",
    "  leading and trailing  ",
    "a “quoted” word, ﬁne",
    " ".join(f"word{i}" for i in range(300)),
    "<end_of_text> is text </s>, too",
]


@pytest.fixture(scope="module", params=["t5", "clip"])
def encoder(request, t5, clip):
    return {"t5": t5, "clip": clip}[request.param]


def lengths(encoder, prompts):
    found = encoder.text(prompts)
    return [len(s) for s in (found[0] if isinstance(encoder, CLIP) else found)]


def test_a_span_for_every_token(encoder):
    found = encoder.spans(PROMPTS)
    assert [len(f.spans) for f in found] == lengths(encoder, PROMPTS)
    for prompt, (text, spans, _) in zip(PROMPTS, found, strict=True):
        assert spans[-1] == (0, 0)  # the end token
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        starts = [start for start, end in spans if end]
        assert starts == sorted(starts)
        assert encoder.spans([prompt])[0][:2] == (text, spans)


@pytest.mark.parametrize("prompt", PROMPTS[:11])
def test_the_spans_under_a_word_s_tokens_are_that_word(prompt, encoder):
    """The spans that touch a word cover exactly the word; only spaces stay uncovered."""
    ((text, spans, _),) = encoder.spans([prompt])
    covered = {i for start, end in spans for i in range(start, end)}
    assert all(text[i].isspace() for i in set(range(len(text))) - covered)
    for word in re.finditer(r"\S+", text):
        touching = [(a, b) for a, b in spans if a < word.end() and word.start() < b]
        assert touching
        assert min(a for a, _ in touching) == word.start()
        assert max(b for _, b in touching) == word.end()


def test_clip_s_spans_are_of_the_text_as_clip_cleans_it(clip):
    texts = [f.text for f in clip.spans(PROMPTS)]
    assert texts[1] == "a red three, a blue three; (and three-fold!)"
    assert texts[8] == "it's the cat's 1234 toys & 5.5% more"
    assert texts[10] == 'a "quoted" word, fine'


def test_clip_s_tokens_are_those_of_its_spans(clip):
    """Tokenising the text under a span gives the same token, for whole tokens."""
    prompt = "a large giraffe, on the red grass"
    ((text, spans, _),) = clip.spans([prompt])
    ids = clip.tokenizer([prompt])[0].tolist()
    for token, (start, end) in list(zip(ids, spans))[1:-1]:
        assert clip.tokenizer.encode(text[start:end]) == [token]


def test_a_character_of_many_tokens_is_under_all_of_them(clip):
    ((text, spans, _),) = clip.spans(["🦒"])
    assert len(spans) > 3
    assert set(spans[1:-1]) == {(0, 1)}
    assert text == "🦒"


def test_t5_s_spans_are_of_the_prompt_and_leave_its_spaces_out(t5):
    for prompt, (text, spans, _) in zip(PROMPTS, t5.spans(PROMPTS), strict=True):
        assert text == prompt
        for start, end in spans[:-1]:
            piece = text[start:end]
            assert piece == piece.lstrip() or piece.isspace()


def test_truncated_prompts_have_the_spans_of_what_is_read(t5, clip):
    long = PROMPTS[11]
    for encoder, limit in ((t5, 256), (clip, 77)):
        ((_, spans, _),) = encoder.spans([long])
        assert len(spans) == limit == lengths(encoder, [long])[0]
        assert spans[-1] == (0, 0)
        assert 0 < spans[-2][1] < len(long)


def test_text_that_looks_like_clip_s_end_token_ends_it(clip):
    """As in :meth:`text`, the sequence ends at the first end token."""
    ((_, spans, _),) = clip.spans([PROMPTS[12]])
    assert spans == [(0, 0), (0, 0)]
    assert lengths(clip, [PROMPTS[12]]) == [2]


@pytest.mark.parametrize("occurrence", [None, 0, 1])
def test_painting_finds_repeated_words_in_both_sequences(occurrence, t5, clip):
    prompts = ["a red three and a Blue three", "three"]
    mask = torch.ones(4, 4)
    paint = paint_with_words(
        [[Phrase("three", mask, occurrence=occurrence), Phrase("blue three", mask)], []],
        {"t5": t5.spans(prompts), "clip_text": clip.spans(prompts)},
    )
    cond = encode_prompts(t5, clip, prompts)
    for name, encoder in (("t5", t5), ("clip_text", clip)):
        maps = paint.maps[name]
        assert maps.shape[:2] == cond.sequences[name].shape[:2]
        assert not maps[1].any()
        text, spans, _ = encoder.spans(prompts)[0]
        first, second = (m.start() for m in re.finditer("three", text))
        blue = text.lower().index("blue")
        for (start, end), found in zip(spans, maps[0, :, 0, 0].tolist(), strict=False):
            if start == end or text[start:end].isspace():
                continue
            named = occurrence != 1 and first <= start < first + 5
            named += occurrence != 0 and start >= second
            assert found == pytest.approx(0.4 * (named + (start >= blue)))


def test_a_tokenizer_without_pieces_is_refused(clip_folder):
    other = CLIP(str(clip_folder))
    other.tokenizer = lambda prompts: torch.zeros(1, 77)
    with pytest.raises(ValueError, match="gives no token positions"):
        other.spans(["a"])
