"""Weights files are reproducible, and damage or mix-ups are detected."""

import dataclasses
import json
import os
import re
import resource

import pytest
import torch
from safetensors.torch import save_file

from ediffi_core import checkpoint
from ediffi_core.checkpoint import Card, load_denoiser, read, read_card, to_bytes, weights_sha256
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from ediffi_core.tree import interval
from ediffi_core.unet import UNetConfig


@pytest.fixture
def card(config):
    return Card(
        expert="E2_3",
        interval=interval("E2_3"),
        noise=NoiseDistribution(P_mean=-1.1),
        sigma_data=0.6,
        network=config,
        images=12_345,
        averaged=True,
        parent={"name": "E1_1", "fingerprint": "ab12", "weights_sha256": "cd34", "raw": False},
    )


@pytest.fixture
def small(card):
    """A small file with tensors of several dtypes, to be damaged at every byte."""
    weights = {
        "a": torch.linspace(-1, 1, 5),
        "b": torch.tensor([[1.5, -2, 3]], dtype=torch.bfloat16),
        "c": torch.tensor(7, dtype=torch.int64),
    }
    return to_bytes(weights, card)[0]


def data_start(content):
    return 8 + int.from_bytes(content[:8], "little")


def test_round_trip(tmp_path, card, make_net, make_cond):
    denoiser = Denoiser(make_net(), 0.6)
    content, sha = to_bytes(denoiser.state_dict(), card)
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)

    weights, found = read(path)
    assert found == dataclasses.replace(card, weights_sha256=sha)
    assert weights_sha256(weights) == sha
    assert weights.keys() == denoiser.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in denoiser.state_dict().items())

    again, found = load_denoiser(path, expert="E2_3", interval=Interval(0.75, 1))
    assert found.weights_sha256 == sha
    assert again.sigma_data == 0.6
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 10.0], dtype=torch.float64)
    assert torch.equal(again(x, sigma, make_cond(2)), denoiser(x, sigma, make_cond(2)))


def test_what_is_predicted_is_kept(tmp_path, card, efficient, make_net, make_cond):
    config = dataclasses.replace(efficient, residual=True)
    denoiser = Denoiser(make_net(config=config), 0.15, residual=True)
    card = dataclasses.replace(card, network=config, sigma_data=0.15)
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_bytes(denoiser.state_dict(), card)[0])
    again, found = load_denoiser(path)
    assert found.network.residual and again.residual
    x, sigma, cond = torch.randn(2, 3, 16, 16), torch.tensor(0.3), make_cond(2, low_res=8)
    assert torch.equal(again(x, sigma, cond), denoiser(x, sigma, cond))


def test_a_card_without_the_word_is_of_a_network_that_predicts_pictures(card, efficient):
    """Cards of earlier versions serialise to the same text today."""
    plain = efficient.to_dict()
    assert "residual" not in plain
    assert UNetConfig.from_dict(plain) == efficient
    other = dataclasses.replace(efficient, residual=True)
    assert UNetConfig.from_dict(other.to_dict()) == other


def test_the_same_weights_give_the_same_bytes(card, make_net):
    state = Denoiser(make_net(), 0.6).state_dict()
    content, sha = to_bytes(state, card)
    assert to_bytes(dict(reversed(state.items())), card) == (content, sha)
    strided = {k: v.T.contiguous().T if v.ndim == 2 else v for k, v in state.items()}
    assert to_bytes(strided, card) == (content, sha)
    assert sha.encode() in content[: data_start(content)]
    other, other_sha = to_bytes(state, dataclasses.replace(card, images=1))
    assert other != content
    assert other_sha == sha


def test_the_sha256_covers_names_types_shapes_and_values():
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    variants = [
        base,
        {"a": base["a"], "c": base["b"]},
        {"a": base["b"], "b": base["a"]},
        {"a": torch.zeros(3, 2), "b": base["b"]},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": base["b"]},
        {"a": torch.full((2, 3), -0.0), "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({weights_sha256(w) for w in variants}) == len(variants)
    assert weights_sha256(dict(reversed(base.items()))) == weights_sha256(base)
    assert re.fullmatch("[0-9a-f]{64}", weights_sha256(base))


def test_every_flipped_bit_of_the_weights_is_seen(tmp_path, small):
    path = tmp_path / "x.safetensors"
    start = data_start(small)
    assert len(small) - start == 5 * 4 + 3 * 2 + 8
    for position in range(start, len(small)):
        for bit in range(8):
            damaged = bytearray(small)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="is damaged: its weights hash to"):
                read(path)
    path.write_bytes(small)
    read(path)


def test_every_truncation_is_seen(tmp_path, small):
    path = tmp_path / "x.safetensors"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            read(path)
    path.write_bytes(small + b"\0")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read(path)


def test_every_flipped_bit_of_the_header_is_seen(tmp_path, small):
    """Such as one that turns sigma_data 0.6 into 0.4; every error names the file."""
    path = tmp_path / "x.safetensors"
    for position in range(data_start(small)):
        for bit in range(8):
            damaged = bytearray(small)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=re.escape(str(path))):
                read(path)


def with_header(content, card_json):
    """The file with another card, as an attacker or an earlier version may have written it."""
    start = data_start(content)
    header = json.loads(content[8:start])
    header["__metadata__"]["ediffi"] = card_json
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + content[start:]


def test_cards_that_were_written_without_a_hash_are_read(tmp_path, card, small):
    path = tmp_path / "x.safetensors"
    path.write_bytes(small)
    weights, found = read(path)
    sha = weights_sha256(weights)
    old = json.loads(found.to_json())
    del old["card_sha256"]
    path.write_bytes(with_header(small, json.dumps(old)))
    again, same = read(path)
    assert same == found
    assert weights_sha256(again) == sha


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_deeply_nested_header_is_one_clear_error(tmp_path, small, opening):
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_header(small, opening * 100_000))
    with pytest.raises(ValueError, match="has a header that cannot be read"):
        read(path)
    with pytest.raises(ValueError, match="has a header that cannot be read"):
        checkpoint.read_card(path)


def test_other_weights_than_those_asked_for_are_refused(tmp_path, card):
    path = tmp_path / "x.safetensors"
    content, _ = to_bytes({"a": torch.ones(3)}, card)
    path.write_bytes(content)
    _, asked_for = to_bytes({"a": torch.zeros(3)}, card)
    with pytest.raises(ValueError, match="the file was replaced"):
        checkpoint.read_checked(path, sha256=asked_for)


def test_swapped_tensors_are_seen(tmp_path, card):
    """Same bytes and header; only the names are swapped."""
    card = dataclasses.replace(card)
    content, _ = to_bytes({"aa": torch.ones(4), "bb": torch.zeros(4)}, card)
    header = content[: data_start(content)]
    swapped = header.replace(b'"aa"', b'"xx"').replace(b'"bb"', b'"aa"').replace(b'"xx"', b'"bb"')
    path = tmp_path / "x.safetensors"
    path.write_bytes(swapped + content[len(header) :])
    with pytest.raises(ValueError, match="is damaged"):
        read(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="that ediffi did not write"):
        read(path)
    save_file({"a": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="that ediffi did not write"):
        read(path)
    path.write_bytes(b"PK\x03\x04 a pickled checkpoint")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read(path)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read(tmp_path / "missing.safetensors")


def test_too_many_open_files_are_no_missing_file(tmp_path, small):
    """A training whose parent is there would end as by a mistake of the user."""
    (tmp_path / "small.safetensors").write_bytes(small)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        for function in (read, read_card):
            with pytest.raises(OSError, match="Too many open files"):
                function(tmp_path / "small.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read(tmp_path / "small.safetensors")[1] == read_card(tmp_path / "small.safetensors")


def test_files_of_another_format_version_are_refused(tmp_path, card, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    content, _ = to_bytes({"a": torch.ones(1)}, card)
    monkeypatch.undo()
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint format 2 is not 1"):
        read(path)


def test_a_checkpoint_taken_for_another_is_refused(tmp_path, card, make_net):
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_bytes(Denoiser(make_net(), 0.6).state_dict(), card)[0])
    with pytest.raises(ValueError, match="holds expert E2_3, but E2_2 was asked for"):
        load_denoiser(path, expert="E2_2")
    with pytest.raises(ValueError, match=r"was trained on .*0.75.*, but should serve .*0.5"):
        load_denoiser(path, interval=interval("E2_2"))
    load_denoiser(path)


def test_a_card_survives_json(card):
    full = dataclasses.replace(card, weights_sha256="ef56")
    text = full.to_json()
    assert Card.from_json(text) == full
    assert json.loads(text)["format"] == checkpoint.FORMAT
    root = dataclasses.replace(card, parent=None, interval=Interval(0, 1))
    assert Card.from_json(root.to_json()) == root


def test_a_checkpoint_may_work_on_a_part_of_its_interval(tmp_path, card, make_net):
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_bytes(Denoiser(make_net(), 0.6).state_dict(), card)[0])
    load_denoiser(path, interval=interval("E3_7"))
