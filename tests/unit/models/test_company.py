"""A picture has the same bits alone, in company, in chunks, and with any number of threads."""

import ensemble_kit
import numpy as np
import pytest
import torch
from ensemble_kit import FOLDER
from PIL import Image

from ediffi_core.control import Phrase
from pipelines.models.text_to_image import TextToImage

pytestmark = pytest.mark.slow

LONG = "a frog and a rocket, on a pink background, beside " + ", ".join(["a frog"] * 8)
PROMPTS = [
    "a frog",
    LONG,
    "",
    "a rocket",
    "a frog and a rocket",
    "a frog",
    "a rocket, " * 3,
    "pink",
]
NEGATIVES = ["", "a rocket", "", LONG, "pink", "", "a frog", "a"]
SEEDS, NUMBERS = [3, 1, 4, 1, 5, 9, 2, 6], [0, 2, 0, 7, 1, 0, 0, 3]
COMPANIES = [[0], [2], [1, 0], [5, 2, 1], list(range(7, -1, -1))]


def painted(phrase):
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    return [Phrase(phrase, mask)]


def per_row(values):
    return lambda rows: [values[row] for row in rows]


CASES = {
    "plain": {},
    "negative": {"negative": per_row(NEGATIVES)},
    "painted": {
        "paint": per_row([painted("frog") if "frog" in prompt else [] for prompt in PROMPTS])
    },
    "second prompt": {"then": per_row(NEGATIVES), "switch": 0.5},
    "style": {"style": [Image.new("RGB", (9, 9), "orange")]},
    "kept": {
        "image": Image.linear_gradient("L").convert("RGB"),
        "mask": Image.linear_gradient("L").point(lambda value: 255 * (value > 120)),
    },
    "bfloat16": {"sampling": {"precision": "bfloat16", "threshold": "dynamic"}},
    "heun": {"sampling": {"solver": "heun", "churn.amount": 20.0}},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ensemble_kit.make(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(store):
    return TextToImage.load(store.local(f"{FOLDER}/ensemble.json"))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(model, rows, options, **more):
    given = {name: value(rows) if callable(value) else value for name, value in options.items()}
    return model.sample(
        [PROMPTS[row] for row in rows],
        seed=[SEEDS[row] for row in rows],
        first=[NUMBERS[row] for row in rows],
        **given,
        **more,
    )


@pytest.mark.parametrize("name", CASES)
def test_company_changes_no_bit(name, model):
    together = drawn(model, range(8), CASES[name])
    for rows in COMPANIES:
        assert np.array_equal(drawn(model, rows, CASES[name]), together[rows]), rows
    assert np.array_equal(drawn(model, range(8), CASES[name], batch=3), together)
    assert len({picture.tobytes() for picture in together}) == 8


@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit(name, model):
    expected = drawn(model, range(8), CASES[name])
    torch.set_num_threads(2)
    model.encoded.cache_clear()
    assert np.array_equal(drawn(model, range(8), CASES[name]), expected)
    assert np.array_equal(drawn(model, [6], CASES[name]), expected[[6]])


@pytest.mark.parametrize("residency", ["current", "disk"])
def test_where_the_weights_are_changes_no_bit(residency, store, model):
    swapped = TextToImage.load(store.local(f"{FOLDER}/ensemble.json"), residency)
    assert np.array_equal(drawn(swapped, range(3), {}), drawn(model, range(3), {}))
