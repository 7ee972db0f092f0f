"""Encoders that several threads of a process load."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import open_clip
import pytest
from transformers import AutoModelForTextEncoding, PreTrainedModel

from ediffi_core.encoders import CLIP, T5

LOADERS = [
    (AutoModelForTextEncoding, "from_pretrained"),
    (open_clip, "create_model_and_transforms"),
]


@pytest.fixture
def at_once(monkeypatch):
    """How many models were being loaded whenever a load began; loads are slow."""
    found, loading, counting = [], [], threading.Lock()

    def slow(load):
        def call(*args, **kwargs):
            with counting:
                loading.append(1)
                found.append(len(loading))
            time.sleep(0.05)
            try:
                return load(*args, **kwargs)
            finally:
                with counting:
                    loading.pop()

        return call

    for owner, name in LOADERS:
        monkeypatch.setattr(owner, name, slow(getattr(owner, name)))
    return found


def test_one_model_is_loaded_at_a_time(t5_folder, clip_folder, at_once):
    tie_weights = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as threads:
        t5s = [threads.submit(T5, str(t5_folder)) for _ in range(3)]
        clips = [threads.submit(CLIP, str(clip_folder)) for _ in range(3)]
        for t5 in t5s:
            model = t5.result().model
            assert model.shared.weight is model.encoder.embed_tokens.weight
        assert len({clip.result().sha256 for clip in clips}) == 1
    assert at_once == [1] * 6
    assert PreTrainedModel.tie_weights is tie_weights
