"""Batch sizes found by trying: within the memory share, after running out of memory, not on a
CPU."""

import pytest
import torch

from pipelines.steps.embed_batch import MEMORY_SHARE, BatchSize, long_captions


class Simulated:
    """A device with ``size`` bytes; a batch takes ``fixed`` bytes, plus ``each`` per item."""

    def __init__(self, size, each, fixed=0):
        self.size, self.each, self.fixed, self.tried = size, each, fixed, []

    def free(self):
        return self.size

    def run(self, n):
        self.tried.append(n)
        self.took = self.fixed + self.each * n
        if self.took > self.size:
            raise torch.OutOfMemoryError

    def peak(self, run):
        try:
            run()
        except torch.OutOfMemoryError:
            return None
        return self.took


def found(memory, first=32, most=1024):
    batch = BatchSize("auto", 64)
    batch.find(memory.run, memory, first, most)
    return batch.size


def test_it_grows_to_the_share_of_what_is_free():
    memory = Simulated(1000, each=1)
    assert found(memory) == 256 <= MEMORY_SHARE * 1000 < 2 * 256
    assert memory.tried == [32, 64, 128, 256]  # what would be too much is not even tried
    assert found(Simulated(10**9, each=1)) == 1024
    assert found(Simulated(10**9, each=1), most=1000) == 512


def test_running_out_is_the_end_of_growing():
    """What takes eight times the memory of half of it is known by trying alone."""
    memory = Simulated(1_100_000, each=0)
    run = memory.run

    def cube(n):
        memory.fixed = n**3
        run(n)

    memory.run = cube
    assert found(memory) == 64
    assert memory.tried == [32, 64, 128]


def test_it_shrinks_below_the_first_and_to_one():
    assert found(Simulated(100, each=20)) == 4
    assert found(Simulated(100, each=100)) == 1
    with pytest.raises(ValueError, match=r"too small for an encoder.*`embedding:`"):
        found(Simulated(100, each=101))


def test_what_the_spec_gives_is_not_tried():
    memory = Simulated(100, each=1)
    batch = BatchSize(7, 64)
    batch.find(memory.run, memory, 32, 1024)
    assert (batch.size, memory.tried) == (7, [])
    memory.size = 1
    with pytest.raises(torch.OutOfMemoryError):
        batch.run_with(memory.run)


def test_a_found_batch_is_halved_where_memory_runs_out():
    memory = Simulated(100, each=1)
    batch = BatchSize("auto", 64)
    batch.size = 256
    batch.run_with(memory.run)
    assert (memory.tried, batch.size) == ([256, 128, 64], 64)
    batch.run_with(memory.run)
    assert memory.tried[3:] == [64]  # it has learnt
    memory.size = 0
    with pytest.raises(torch.OutOfMemoryError):
        batch.run_with(memory.run)


def test_captions_to_try_with_are_different_and_as_long_as_an_encoder_reads(encoders):
    from ediffi_core.encoders import CLIP, MAX_TOKENS, T5

    t5, clip = T5(encoders["t5"]), CLIP(encoders["clip"])
    texts = long_captions(4096, MAX_TOKENS)
    assert len(set(texts)) == len(texts) == 16
    assert {len(tokens) for tokens in t5.text(texts)} == {MAX_TOKENS}
    longest = clip.model.context_length
    assert {len(tokens) for tokens in clip.text(long_captions(200, longest))[0]} == {longest}
    assert len(long_captions(1, MAX_TOKENS)) == 1
