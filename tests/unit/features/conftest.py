"""Pictures, and weights of networks that were never trained, in the formats of trained ones."""

import io

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """InceptionV3 with random weights, in torch-fidelity's format."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            return None

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    state = Untrained("untrained", ["2048"], empty).state_dict()
    for name, values in state.items():
        if name.endswith("running_var"):  # else activations fade from layer to layer
            values.fill_(0.05)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def pictures():
    """``pictures(count, seed, tint)`` → [count, side, side, 3] uint8: coarse squares with grain."""

    def make(count, seed=0, tint=1.0, side=32):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 200, (count, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
        grain = rng.integers(0, 40, (count, side, side, 3))
        return (coarse * tint + grain).clip(0, 255).astype(np.uint8)

    return make
