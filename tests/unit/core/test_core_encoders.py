"""T5 and CLIP match a plain loop over transformers and open_clip, caption by caption."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ediffi_core.conditioning import Conditioning
from ediffi_core.encoders import CLIP, T5, batches_by_length, embedding_specs, encode_prompts, pad

CAPTIONS = [
    "a red three",
    "a large blue seven above a small green two on white paper",
    "",
    "nine",
    "two yellow fives, side by side",
]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_t5_is_a_plain_loop_over_transformers(t5, t5_folder):
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(t5_folder)
    model = T5EncoderModel.from_pretrained(t5_folder).eval()
    found = t5.text(CAPTIONS)
    assert t5.dim == 16
    assert len({len(f) for f in found}) > 2
    for caption, rows in zip(CAPTIONS, found, strict=True):
        ids = tokenizer(caption, return_tensors="pt").input_ids
        assert ids[0, -1] == 1  # the end token, and no padding
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0]
        assert rows.shape == (ids.shape[1], 16)
        assert rows.dtype == torch.float32
        close(rows, expected)


def test_t5_truncates_long_captions_to_its_limit(t5):
    (rows,) = t5.text([" ".join(["seven"] * 2000)])
    assert len(rows) == 256


def test_clip_text_is_a_plain_loop_over_open_clip(clip, clip_folder):
    import open_clip

    name = f"local-dir:{clip_folder}"
    model = open_clip.create_model(name).eval()
    tokenizer = open_clip.get_tokenizer(name)
    normed = []
    model.ln_final.register_forward_hook(lambda m, args, out: normed.append(out))
    sequences, pooled = clip.text(CAPTIONS)
    assert (clip.text_dim, clip.dim) == (32, 24)
    assert pooled.shape == (len(CAPTIONS), 24)
    for caption, rows, vector in zip(CAPTIONS, sequences, pooled, strict=True):
        tokens = tokenizer([caption])
        with torch.no_grad():
            expected = model.encode_text(tokens, normalize=True)[0]
        length = int((tokens[0] != 0).sum())
        assert rows.shape == (length, 32)
        close(rows, normed.pop()[0, :length])
        close(vector, expected)
        assert vector.norm() == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(16, 16), (20, 33), (64, 40), (5, 9)]
    arrays = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return [Image.fromarray(a) for a in arrays] + [Image.fromarray(arrays[0][..., 0], "L")]


def test_clip_image_is_a_plain_loop_over_open_clip(clip, clip_folder, pictures):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    model.eval()
    found = clip.image(pictures)
    for picture, vector in zip(pictures, found, strict=True):
        with torch.no_grad():
            batch = preprocess(picture.convert("RGB"))[None]
            close(vector, model.encode_image(batch, normalize=True)[0])
    # At the model's own size preprocessing only scales: the folder's mean and std are used.
    given = json.loads((clip_folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    x = (np.asarray(pictures[0]) / 255 - given["mean"]) / given["std"]
    x = torch.from_numpy(x).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        close(found[0], model.encode_image(x, normalize=True)[0])


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_the_batch_around_a_caption_does_not_matter(batch, t5, clip, pictures):
    t5_whole, (clip_whole, pooled_whole) = t5.text(CAPTIONS), clip.text(CAPTIONS)
    parts = [CAPTIONS[i : i + batch] for i in range(0, len(CAPTIONS), batch)]
    for whole, found in [
        (t5_whole, [rows for part in parts for rows in t5.text(part)]),
        (clip_whole, [rows for part in parts for rows in clip.text(part)[0]]),
        (pooled_whole, [row for part in parts for row in clip.text(part)[1]]),
        (clip.image(pictures), [v for p in pictures for v in clip.image([p])]),
    ]:
        for a, b in zip(whole, found, strict=True):
            close(a, b)


def test_an_encoder_s_sha256_is_that_of_its_weights(t5, t5_folder, clip, clip_folder):
    assert T5(str(t5_folder)).sha256 == t5.sha256
    assert CLIP(str(clip_folder)).sha256 == clip.sha256
    assert len({t5.sha256, clip.sha256}) == 2
    other = T5(str(t5_folder))
    other.model.shared.weight.add_(1)
    from ediffi_core.checkpoint import weights_sha256

    assert weights_sha256(other.model.state_dict()) != t5.sha256


def test_prompts_become_the_conditioning_the_specs_describe(t5, clip, config, make_net):
    import dataclasses

    specs = embedding_specs(t5.dim, clip.text_dim, clip.dim)
    cond = encode_prompts(t5, clip, CAPTIONS)
    for spec in specs:
        values = (cond.sequences if spec.kind == "sequence" else cond.pooled)[spec.name]
        assert values.shape[0] == len(CAPTIONS)
        assert values.shape[-1] == spec.dim
    assert cond.masks["t5"].sum(1).tolist() == [len(rows) for rows in t5.text(CAPTIONS)]
    assert cond.masks["clip_text"].sum(1).tolist() == [len(rows) for rows in clip.text(CAPTIONS)[0]]
    for name, mask in cond.masks.items():
        assert not cond.sequences[name][~mask].any()
    assert not cond.pooled["clip_image"].any()

    net = make_net(config=dataclasses.replace(config, embeddings=specs))
    x = torch.randn(len(CAPTIONS), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    together = net(x, torch.zeros(len(x)), cond)
    for i, caption in enumerate(CAPTIONS):
        alone = net(x[[i]], torch.zeros(1), encode_prompts(t5, clip, [caption]))
        torch.testing.assert_close(together[[i]], alone, rtol=1e-4, atol=1e-4)
    assert isinstance(cond, Conditioning)


def test_padding_keeps_every_row():
    ragged = [torch.randn(n, 3) for n in (2, 5, 1)]
    padded, mask = pad(ragged)
    assert padded.shape == (3, 5, 3)
    assert mask.sum(1).tolist() == [2, 5, 1]
    for rows, filled, kept in zip(ragged, padded, mask, strict=True):
        assert torch.equal(filled[kept], rows)
        assert not filled[~kept].any()


def test_a_text_tower_that_is_not_open_clip_s_is_refused(clip_folder, monkeypatch):
    import open_clip

    class Foreign(torch.nn.Module):
        pass

    monkeypatch.setattr(
        open_clip, "create_model_and_transforms", lambda *a, **k: (Foreign(), None, None)
    )
    with pytest.raises(ValueError, match=r"not OpenCLIP's own transformer.*ViT-L-14"):
        CLIP(str(clip_folder))


def test_batches_hold_texts_of_like_length_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    batches = list(batches_by_length(lengths, 100))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    padded = [len(batch) * max(lengths[i] for i in batch) for batch in batches]
    assert max(padded) <= 100
    assert sum(padded) <= 1.2 * sum(lengths)
    assert list(batches_by_length([500, 3], 100)) == [[1], [0]]  # too long for the budget: alone


def test_neither_the_budget_nor_repetition_changes_an_embedding(t5, clip, monkeypatch):
    captions = [*CAPTIONS, *reversed(CAPTIONS)]
    for wide, narrow in [
        (t5.text(captions), t5.text(captions, batch_tokens=1)),
        (clip.text(captions)[0], clip.text(captions, batch_tokens=1)[0]),
        (clip.text(captions)[1], clip.text(captions, batch_tokens=1)[1]),
    ]:
        assert len(wide) == len(captions)
        for a, b in zip(wide, narrow, strict=True):
            close(a, b)
    encoded = []
    forward = t5.model.forward
    monkeypatch.setattr(
        t5.model, "forward", lambda **kw: encoded.append(len(kw["input_ids"])) or forward(**kw)
    )
    t5.text(["nine"] * 50)
    assert sum(encoded) == 1


def test_a_prompt_whose_embedding_is_not_finite_is_named(t5_folder, clip):
    t5 = T5(str(t5_folder))
    seven = t5.tokenizer("seven").input_ids[0]
    t5.model.shared.weight[seven] = torch.nan
    prompts = ["nine", "a large blue seven"]
    assert encode_prompts(t5, clip, prompts[:1])
    with pytest.raises(ValueError, match="t5 of the prompt 'a large blue seven' has values that"):
        encode_prompts(t5, clip, prompts)
