"""Shards are deterministic and compact, and return what was written."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_shards import ENCODERS, SPECS, header, made_rows

from ediffi_core.conditioning import EmbeddingSpec
from pipelines.store import columns
from pipelines.store.shards import Header, Packing, write


def test_the_same_rows_make_the_same_bytes():
    assert write(made_rows(9), header()).data == write(made_rows(9), header()).data


def test_a_stage_rows_are_the_first():
    written = write(made_rows(11, small=(0, 4, 10)), header())
    data, summary = written.data, written.record
    assert summary["usable"] == {4: 11, 8: 8}
    table = pq.read_table(io.BytesIO(data))
    assert [p is not None for p in table["pixels_8"].to_pylist()] == [True] * 8 + [False] * 3
    assert table["key"].to_pylist()[-3:] == ["a-0", "a-4", "a-10"]
    assert table["score_aesthetic"].to_pylist()[-3:] == [0, 4, 10]


def test_a_stage_that_has_a_picture_only_others_lack_is_refused():
    rows = made_rows(3, small=(0,))
    rows["pixels_4"][2] = None
    with pytest.raises(ValueError, match=r"row a-[02] has no picture of"):
        write(rows, header())


def test_the_header_comes_back():
    data = write(made_rows(2), header(pictures="png", full=(8,))).data
    found = Header.from_metadata(pq.read_metadata(io.BytesIO(data)).metadata)
    assert found == header(pictures="png", full=(8,))
    assert found.encoders == ENCODERS


def test_half_precision_costs_two_bytes_a_value():
    spec = EmbeddingSpec(name="t5", dim=1024, kind="sequence")
    head = Header(resolutions=(4,), embeddings=(spec,))
    tokens = [torch.randn(20 + i, 1024) for i in range(64)]
    rows = made_rows(64, sides=(4,)) | {"t5": tokens}
    file = pq.read_metadata(io.BytesIO(write(rows, head).data))
    groups = [file.row_group(g) for g in range(file.num_row_groups)]
    stored = sum(
        c.total_compressed_size
        for g in groups
        for c in (g.column(i) for i in range(g.num_columns))
        if c.path_in_schema.startswith("t5")
    )
    assert len(groups) == 2
    assert stored <= 1.05 * 2 * sum(t.numel() for t in tokens)


def test_a_caption_costs_little_more_than_its_tokens():
    """Of the published encoders, with all that a row has but its picture, and the footer."""
    from ediffi_core.encoders import embedding_specs

    specs = embedding_specs(4096, 768, 768)
    rng = np.random.default_rng(0)
    words = rng.integers(5, 40, 96)
    rows = made_rows(96, sides=(4,))
    rows |= {"caption": [" ".join(["seven"] * n) for n in words], "source": ["00042.tar"] * 96}
    for spec in specs:
        shape = [(n + 2, spec.dim) if spec.kind == "sequence" else (spec.dim,) for n in words]
        rows[spec.name] = [torch.randn(*of) for of in shape]
    head = Header(resolutions=(4,), embeddings=specs, packing=Packing())
    tokens = sum(2 * t.numel() for s in specs if s.kind == "sequence" for t in rows[s.name])
    data = write(rows, head).data
    file = pq.read_metadata(io.BytesIO(data))
    columns = [g.column(i) for g in map(file.row_group, range(3)) for i in range(file.num_columns)]
    pictures = sum(c.total_compressed_size for c in columns if "pixels" in c.path_in_schema)
    assert 0 < pictures < 1.1 * 96 * 4 * 4 * 3 + 300
    assert tokens < len(data) - pictures <= 1.05 * tokens


@pytest.mark.parametrize(
    ("precision", "relative"), [("fp16", 2**-11), ("bf16", 2**-8), ("int8", 0.5 / 127)]
)
def test_what_precision_changes_is_bounded_and_told(precision, relative):
    tokens = torch.randn(40, 8) * torch.logspace(-2, 3, 40)[:, None]
    raw = np.frombuffer(bytearray(columns.packed(tokens, precision)), np.uint8)
    kept = columns.unpacked(raw.reshape(40, -1), precision).float()
    largest = tokens.abs().amax(dim=1, keepdim=True)
    bound = relative * (largest if precision == "int8" else tokens.abs())
    rounding = 2**-11 * largest  # int8 comes back in half precision
    assert ((kept - tokens).abs() <= bound + rounding).all()

    rows = made_rows(40) | {"t5": list(tokens[:, None])}
    summary = write(rows, header(precision=precision)).record
    measured = ((kept - tokens).square().sum() / tokens.square().sum()).sqrt()
    assert summary["rms_error"]["t5"] == pytest.approx(float(measured), rel=1e-4)


def test_zero_tokens_stay_zero_in_int8():
    raw = np.frombuffer(bytearray(columns.packed(torch.zeros(2, 8), "int8")), np.uint8)
    assert not columns.unpacked(raw.reshape(2, -1), "int8").any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"t5": [torch.full((1, 8), 1e6)] * 3},
            "t5 of row a-0: values that are not finite in fp16",
        ),
        ({"t5": [torch.full((1, 8), torch.nan)] * 3}, "t5 of row a-0: values that are not finite"),
        ({"t5": [torch.zeros(1, 7)] * 3}, "t5 of row a-0: expected a sequence of width 8"),
        ({"pixels_8": [np.zeros((8, 9, 3), np.uint8)] * 3}, "pixels_8 of row a-0: expected 8×8"),
    ],
)
def test_a_row_that_does_not_fit_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        write(made_rows(3) | change, header())


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("largest", [1.0, 6e4, 7e4, torch.inf, -torch.inf, torch.nan])
def test_what_can_be_kept_is_finite_when_it_is_read(precision, largest):
    """int8 keeps a float32 scale, but is read as float16: 70,000 came back as infinity."""
    values = torch.ones(2, 8)
    values[1, 3] = largest
    fits = abs(largest) < (3e38 if precision == "bf16" else 65_504)
    assert columns.is_representable(values, precision) == fits
    if not fits:
        with pytest.raises(ValueError, match=f"not finite in {precision}"):
            columns.packed(values, precision)
        return
    raw = np.frombuffer(bytearray(columns.packed(values, precision)), np.uint8)
    found = columns.unpacked(raw.reshape(2, -1), precision).float()
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, values, rtol=0.01, atol=abs(largest) / 127)


def test_settings_say_what_they_take():
    with pytest.raises(ValueError, match="precision must be one of fp16, bf16, int8"):
        Packing(precision="fp8")
    with pytest.raises(ValueError, match=r"full pictures of \[16\]"):
        Header(resolutions=(8,), embeddings=SPECS, packing=Packing(full=(16,)))


def test_other_formats_are_told_from_other_files():
    metadata = header().to_metadata()
    assert Header.from_metadata(metadata) == header()
    older = {k: v.replace(b'"format": 3', b'"format": 2') for k, v in metadata.items()}
    with pytest.raises(ValueError, match="of format 2, this version reads 3"):
        Header.from_metadata(older)
    with pytest.raises(ValueError, match="not written by this project"):
        Header.from_metadata(None)
    assert replace(header(), resolutions=(4,)) != header()
