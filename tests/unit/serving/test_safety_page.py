"""The filters that the page on safety shows work as they stand there."""

import re
import sys

import ensemble_kit
import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from pipelines.serving.errors import Unwanted
from pipelines.serving.filters import Judges
from pipelines.spec.serving import Filters

PAGE = (ROOT / "pipelines/docs/safety.md").read_text()

pytestmark = pytest.mark.slow


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The page's filters, with the kit's CLIP in place of one that would be downloaded."""
    store = ensemble_kit.make(tmp_path / "store")
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    clip = store.local("nodes/encoders/tiny/clip")
    (tmp_path / "our_filters.py").write_text(code.replace('"ViT-B-32"', repr(str(clip))))
    monkeypatch.syspath_prepend(tmp_path)
    yield Judges.load(Filters(prompt=["our_filters:words"], picture=["our_filters:likeness"]))
    sys.modules.pop("our_filters")


def test_the_list_of_words_refuses_whole_words(shown):
    for prompt in ("a frog", "a frog that has begun", "gunwale"):
        shown.judge_prompt(prompt)
    for prompt in ("a GUN", "two rifles", "a bloody frog"):
        with pytest.raises(Unwanted, match="weapons and wounds"):
            shown.judge_prompt(prompt)


def test_the_likeness_is_that_of_the_nearest_text(shown, monkeypatch):
    pixels = np.full((64, 64, 3), (0, 128, 0), np.uint8)
    module = sys.modules["our_filters"]
    clip, texts = module._clip()
    assert texts.shape[0] == len(module.UNWANTED) + len(module.HARMLESS)
    [own] = clip.image([Image.fromarray(pixels)])
    for row in range(len(texts)):
        near = -own.repeat(len(texts), 1)
        near[row] = own
        monkeypatch.setattr(module, "_clip", lambda near=near: (clip, near))
        if row < len(module.UNWANTED):
            with pytest.raises(Unwanted, match="shows what is not drawn here"):
                shown.judge_picture(pixels)
        else:
            shown.judge_picture(pixels)
