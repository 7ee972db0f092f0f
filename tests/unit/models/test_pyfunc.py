"""Rows of a data frame as requests: types, missing values, batching and error messages."""

import json

import numpy as np
import pandas as pd
import pytest

from pipelines.models import painting
from pipelines.models.pyfunc import ROWS, VARIABLE, EnsembleModel, limits_of, parse_rows
from pipelines.models.rows import Options, draw
from pipelines.spec.sampling import Sampling
from pipelines.spec.serving import Limits

LIMITS = Limits()
OWN = {"base": Sampling(), "sr32": Sampling(steps=5)}

PICTURE = painting.encode_png(np.zeros((4, 4, 3), np.uint8))
OTHER = painting.encode_png(np.full((4, 4, 3), 200, np.uint8))
MASK = painting.encode_png(np.eye(4, dtype=np.uint8)[..., None].repeat(3, 2) * 255)
PAINT = [{"phrase": "a cat", "where": [0, 0, 0.5, 1]}]


def one(**columns):
    (found,) = parse_rows(
        pd.DataFrame({"prompt": ["a cat"]} | {k: [v] for k, v in columns.items()}), OWN, LIMITS
    )
    return found


def test_a_prompt_alone_is_enough():
    found = one()
    assert (found.prompt, found.seed, found.paint, found.options) == ("a cat", 0, [], Options())


def test_a_missing_value_means_the_ensembles_own():
    frame = pd.DataFrame(
        {
            "prompt": ["a cat", "a dog"],
            "seed": [None, 7],  # pandas makes it a column of floats
            "guidance": [3, None],
            "steps": [None, 5],
            "solver": [None, "heun"],
            "style": [PICTURE, float("nan")],
            "paint": [PAINT, None],
        }
    )
    first, second = parse_rows(frame, OWN, LIMITS)
    assert (first.seed, second.seed) == (0, 7) and isinstance(second.seed, int)
    assert first.options == Options(sampling='{"guidance": 3.0}', style=(PICTURE,), is_painted=True)
    assert second.options == Options(sampling='{"solver": "heun", "steps": 5}')


def test_a_list_and_its_json_paint_the_same():
    (a,), (b,) = one(paint=PAINT).paint, one(paint=json.dumps(PAINT)).paint
    assert a.text == b.text and a.strength == b.strength and a.mask.equal(b.mask)


def test_pictures_weights_and_texts_of_a_row():
    found = one(
        image=PICTURE,
        sigma=3,
        mask=MASK,
        style=[PICTURE, OTHER],
        style_weights=[1, 0.5],
        negative="a dog",
        then="a bird",
        switch=0.5,
    )
    assert (found.negative, found.then) == ("a dog", "a bird")
    assert found.options == Options(
        image=PICTURE,
        sigma=3.0,
        mask=MASK,
        style=(PICTURE, OTHER),
        style_weights=(1.0, 0.5),
        switch=0.5,
        has_second_prompt=True,
    )
    assert one(variation=PICTURE).options == Options(variation=PICTURE)
    told = one(style=json.dumps([PICTURE, OTHER]), style_weights="[1, 0.5]").options
    assert (told.style, told.style_weights) == ((PICTURE, OTHER), (1.0, 0.5))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": None}, "row 1: `prompt` is None; write a text"),
        ({"seed": 1.5}, "row 1: `seed` is 1.5; write a whole number"),
        ({"seed": 1e17}, "write a whole number, exact up to"),
        ({"seed": True}, "`seed` is True"),
        ({"guidance": "strong"}, "row 1: `guidance` is 'strong'; write a number"),
        ({"guidance": -1}, "row 1: `guidance.scale` is -1"),
        ({"guidance": float("inf")}, "`guidance` is not finite"),
        ({"steps": 0}, "`steps` is 0"),
        ({"sampling": {"sr32.steps": 0}}, "row 1: `sr32.steps` is 0"),
        ({"sampling": '{"stesp": 3}'}, "row 1: there is no sampling setting `stesp`; did you"),
        ({"sampling": "steps=3"}, "row 1: `sampling` 'steps=3' is not a JSON object"),
        ({"sampling": [3]}, "row 1: `sampling` '.3.' is not a mapping"),
        ({"solver": "ddim"}, "solver 'ddim' is unknown; there are euler"),
        ({"style": "picture.png"}, "row 1: `style` 'picture.png' is not an image"),
        ({"style": [PICTURE, "x"]}, "row 1: `style` 'x' is not an image"),
        ({"style": [PICTURE, 3]}, "row 1: `style` is '3'; give a PNG"),
        ({"style": [PICTURE, None]}, "row 1: `style` has a missing picture; give PNG"),
        ({"style": PICTURE, "style_weights": ["a"]}, "row 1: `style_weights` is 'a'; write a num"),
        ({"style": PICTURE, "style_weights": [1, 2]}, "row 1: `style_weights` are .* for 1 style"),
        ({"style_weights": 3}, "row 1: `style_weights` '3' is not a JSON list"),
        ({"image": "picture.png"}, "row 1: `image` 'picture.png' is not an image"),
        ({"image": 3}, "row 1: `image` is '3'; give a PNG, JPEG or WebP as base64"),
        ({"variation": "?"}, "row 1: `variation` '.' is not an image"),
        ({"variation": PICTURE, "style": PICTURE}, "row 1: `style` and `variation` both"),
        ({"image": PICTURE, "mask": "?"}, "row 1: `mask` '.' is not an image"),
        ({"image": PICTURE, "mask": PICTURE}, "row 1: `mask` is dark everywhere"),
        ({"mask": MASK}, "row 1: `mask` is given without `image`"),
        ({"sigma": 3}, "row 1: `sigma` is given without `image`"),
        ({"image": PICTURE, "sigma": -1}, "row 1: `sigma` is -1.0; write a noise level above"),
        ({"image": PICTURE, "sigma": 30, "sampling": {"sigma_max": 20}}, "sigma` is 30.0; .* 20.0"),
        ({"negative": 3}, "row 1: `negative` is 3; write a text"),
        ({"then": ["a"]}, "row 1: `then` is .*; write a text"),
        ({"then": "a dog"}, "row 1: a second prompt needs `switch`"),
        ({"then": "a dog", "switch": "half"}, "row 1: `switch` is 'half'; write a number"),
        ({"then": "a dog", "switch_sigma": 0}, "row 1: `switch_sigma` is 0.0"),
        ({"switch": 0.5}, "row 1: `switch` is given without `then`"),
        ({"paint": "a cat=0,0,1,1"}, "is not a JSON list"),
        ({"paint": "{}"}, "is not a list"),
        ({"paint": 3}, "row 1: `paint` '3' is not a JSON list"),
        ({"paint": [{"phrase": "a cat"}]}, "row 1: .* paints nothing"),
    ],
)
def test_bad_input_is_one_clear_error(columns, message):
    with pytest.raises(ValueError, match=message) as refused:
        one(**columns)
    assert "\n" not in str(refused.value)


class Recorded:
    """A model that records its calls; its images are the seeds."""

    def __init__(self):
        self.calls = []

    def sample(self, prompts, *, seed, **options):
        self.calls.append((prompts, seed, options))
        return np.array(seed, np.uint8).reshape(-1, 1, 1, 1)


def test_rows_with_equal_options_share_a_batch_and_keep_their_order():
    frame = pd.DataFrame(
        {
            "prompt": ["a", "b", "c", "d"],
            "seed": [4, 3, 2, 1],
            "guidance": [1, 2, 1.0, None],
        }
    )
    model = Recorded()
    found = draw(model, parse_rows(frame, OWN, LIMITS), "base")
    assert [p for p, _, _ in model.calls] == [["a", "c"], ["b"], ["d"]]
    assert [o["sampling"] for _, _, o in model.calls] == [{"guidance": 1.0}, {"guidance": 2.0}, {}]
    assert {o["up_to"] for _, _, o in model.calls} == {"base"}
    assert [int(p.item()) for p in found] == [4, 3, 2, 1]


def test_rows_with_other_texts_share_a_batch_and_rows_with_other_pictures_do_not():
    frame = pd.DataFrame(
        {
            "prompt": ["a", "b", "c", "d"],
            "seed": [4, 3, 2, 1],
            "negative": ["x", None, None, None],
            "then": [None, None, "y", None],
            "switch": [None, None, 0.5, None],
            "image": [None, None, None, PICTURE],
        }
    )
    model = Recorded()
    draw(model, parse_rows(frame, OWN, LIMITS))
    assert [p for p, _, _ in model.calls] == [["a", "b"], ["c"], ["d"]]
    first, second, third = (options for _, _, options in model.calls)
    assert first["negative"] == ["x", ""] and first["then"] is None
    assert second["then"] == ["y"] and second["switch"] == 0.5
    assert third["image"].size == (4, 4) and third["mask"] is None


def test_as_many_rows_as_the_limits_allow():
    frame = pd.DataFrame({"prompt": ["a cat"] * 3})
    assert len(parse_rows(frame, OWN, Limits(pictures=3))) == 3
    with pytest.raises(ValueError, match="`rows` asks for 3; ask for 2 at most"):
        parse_rows(frame, OWN, Limits(pictures=2))


def test_the_ensembles_own_settings_are_taken_whatever_the_limits():
    own = {"base": Sampling(steps=500)}
    frame = pd.DataFrame({"prompt": ["a cat"], "guidance": [3]})
    [row] = parse_rows(frame, own, LIMITS)
    assert row.options.sampling == '{"guidance": 3.0}'


def test_limits_come_from_the_environment():
    assert limits_of({}) == Limits(pictures=ROWS)
    assert limits_of({VARIABLE: "{steps: 500, pictures: 2}"}) == Limits(steps=500, pictures=2)
    raised = parse_rows(pd.DataFrame({"prompt": ["a"], "steps": [500]}), OWN, Limits(steps=500))
    assert raised[0].options.sampling == '{"steps": 500}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "EDIFFI_LIMITS: it is 'steps'; write a mapping"),
        ("{stesp: 3}", "EDIFFI_LIMITS: unknown key `stesp`; did you mean"),
        ("{steps: 0}", "EDIFFI_LIMITS: `steps`: .*greater than"),
        ("{steps: [", "EDIFFI_LIMITS: the value cannot be read"),
    ],
)
def test_limits_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        limits_of({VARIABLE: text})


def nested(levels):
    found = []
    for _ in range(levels):
        found = [found]
    return found


def large(pixels):
    """A small file of many pixels."""
    return painting.encode_png(np.zeros((1, pixels, 3), np.uint8))


HOSTILE = {
    "steps": {"steps": 10**9},
    "steps beyond 64 bits": {"steps": 2**70},
    "steps of a stage": {"sampling": {"sr32.steps": 201}},
    "steps as text": {"sampling": '{"steps": 4611686018427387904}'},
    "guidance": {"guidance": 1e30},
    "guidance of an expert": {"sampling": {"guidance": {"experts": {"E1_1": 1e30}}}},
    "guidance of NumPy": {"guidance": np.float32("inf")},
    "guidance beyond floats": {"sampling": {"guidance": 10**400}},
    "tiles": {"sampling": {"sr32.tile": 4, "sr32.overlap": 0}},
    "average": {"sampling": {"ema_length": 0.1}},
    "seed below 0": {"seed": -1},
    "seed beyond floats": {"seed": 2**64},
    "prompt": {"prompt": "a" * 1001},
    "negative": {"negative": "a" * 1001},
    "then": {"then": "a" * 1001, "switch": 0.5},
    "half a character": {"prompt": "\ud800"},
    "half a character later": {"then": "a \udc00", "switch": 0.5},
    "half a character as JSON": {"sampling": r'{"\ud800": 1}'},
    "half a character as key": {"sampling": {"\ud800": 1}},
    "half a character, painted": {"paint": [{"phrase": "\udfff", "where": [0, 0, 1, 1]}]},
    "control character": {"prompt": "a\0cat"},
    "phrases": {"paint": PAINT * 17},
    "phrases as JSON": {"paint": json.dumps(PAINT * 17)},
    "painted pixels": {"paint": [{"phrase": "a cat", "where": large(2001)}]},
    "styles": {"style": [PICTURE] * 5},
    "pixels": {"image": large(2001)},
    "pixels of a variation": {"variation": large(2001)},
    "pixels of a style": {"style": [PICTURE, large(2001)]},
    "pixels of a mask": {"image": PICTURE, "mask": large(2001)},
    "deep list": {"paint": nested(100_000)},
    "deep mapping": {"sampling": {"guidance": nested(100_000)}},
    "deep JSON": {"sampling": '{"guidance":' * 100_000},
    "deep JSON list": {"style": "[" * 100_000},
    "many values": {"style_weights": [1.0] * 20_001, "style": PICTURE},
    "many values as JSON": {"style_weights": json.dumps([1] * 20_001), "style": PICTURE},
    "long settings": {"sampling": {"solver": "a" * 20_000}},
    "bytes": {"prompt": b"a cat"},
    "a moment": {"sampling": {"steps": pd.Timestamp(0)}},
    "a set": {"paint": {"a cat"}},
}


class Unused(Recorded):
    sampling = OWN

    def sample(self, prompts, **options):
        raise AssertionError("it should have been refused")


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_mlflow_is_told_of_whatever_is_wrong_with_a_row(what):
    """By the one kind of error that its server answers with status 400, in a short line."""
    from mlflow.exceptions import MlflowException

    model = EnsembleModel(Unused(), Limits(upload_pixels=2000))
    columns = {"prompt": "a cat"} | HOSTILE[what]
    frame = pd.DataFrame({name: [value] for name, value in columns.items()}, dtype=object)
    with pytest.raises(MlflowException, match="row 1: ") as refused:
        model.predict(frame)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
    assert len(refused.value.message) <= 500 and "\n" not in refused.value.message
    refused.value.message.encode()


@pytest.mark.slow
@pytest.mark.parametrize("frame", [pd.DataFrame(), pd.DataFrame({"prompt": []})])
def test_mlflow_is_told_of_a_frame_without_rows(frame):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="no rows") as refused:
        EnsembleModel(Unused()).predict(frame)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_numbers_of_numpy_are_taken():
    found = one(sampling={"rho": np.float32(2), "guidance.interval": [np.float64(0.5), 2.0]})
    assert found.options.sampling == '{"guidance.interval": [0.5, 2.0], "rho": 2.0}'
