"""Errors of a spec's file: one line that says what to write instead."""

import pytest
import yaml
from kit import SMOKE

from pipelines.spec.loading import load, parse_value

BARE = yaml.safe_load(SMOKE.read_text())


@pytest.fixture
def complaint(tmp_path):
    """``complaint(spec)`` → the error of a spec, given as a dict, text or bytes."""

    def call(spec):
        file = tmp_path / "spec.yaml"
        text = yaml.safe_dump(spec) if isinstance(spec, dict) else spec
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError) as error:
            load(file)
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(f"{file}: ").removeprefix(f"{file} ")

    return call


def test_a_folder_is_no_spec(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; name the spec's YAML file"):
        load(tmp_path)
    with pytest.raises(ValueError, match="there is no spec at"):
        load(tmp_path / "none.yaml")


def test_a_picture_is_no_spec(complaint):
    said = complaint(b"\x89PNG\r\n\x1a\n\xff\xd8")
    assert said == "is not a text file; name the spec's YAML file"


def test_a_misspelt_key_comes_before_the_missing_one(complaint):
    data = {"trian": BARE["data"]["train"], "validation": BARE["data"]["validation"]}
    assert complaint(BARE | {"data": data}) == (
        "unknown key `data.trian`; did you mean `train`?; "
        "`data.train` is missing; write `train: {path: ...}` below `data:`"
    )


def test_an_empty_key_is_shown(complaint):
    assert complaint(BARE | {"": 1}).startswith("unknown key `''`; known are ")
    assert complaint(BARE | {"stages": {"": 1}}).startswith("`stages.''")
    assert "unknown key `data.''`" in complaint(BARE | {"data": BARE["data"] | {"": 1}})


def test_at_most_three_errors_are_shown(complaint):
    said = complaint({"name": "x", "nam": 1, "sede": 2, "xyz": 3})
    assert said.count("unknown key") == 3 and said.endswith(" (and 2 more)")
    said = complaint(BARE | {"sede": 1, "cpus": 0})
    assert said.startswith("unknown key `sede`; did you mean `seed`?; `cpus`: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\ngpus: 1\nseed: 2\ngpus: 3\n", "`gpus` is given twice (lines 2 and 4)"),
        ("data:\n  train: {path: a, path: b}\n", "`path` is given twice (line 2)"),
        ("{s3: {secret: A}, s3: {}}", "`s3` is given twice (line 1)"),
    ],
)
def test_a_key_given_twice(complaint, text, words):
    assert complaint(text).startswith(words)


def test_merged_keys_may_be_given_again(tmp_path):
    train = dict(BARE["data"]["train"])
    text = yaml.safe_dump(BARE | {"data": "DATA"})
    once = f"{{train: &one {train}, validation: {{<<: *one, rows: 7}}}}"
    (tmp_path / "spec.yaml").write_text(text.replace("data: DATA", f"data: {once}"))
    assert load(tmp_path / "spec.yaml").data.validation.rows == 7


def test_a_name_with_other_letters(complaint):
    assert complaint(BARE | {"name": "My Pictures"}) == (
        "`name`: write lower-case letters, digits and hyphens, got 'My Pictures'"
    )


def test_validation_data_is_missing(complaint):
    said = complaint(BARE | {"data": {"train": BARE["data"]["train"]}})
    assert said == ("`data.validation` is missing; write `validation: {path: ...}` below `data:`")


def test_a_number_needs_no_point_before_its_exponent():
    assert parse_value("1e-4") == 1e-4 and parse_value("[-2E3, 5.e1]") == [-2000.0, 50.0]
    assert parse_value("1e") == "1e" and parse_value("e5") == "e5" and parse_value("0x1e5") == 0x1E5
    with pytest.raises(ValueError, match="`a` is given twice"):
        parse_value("{a: 1, a: 2}")
    with pytest.raises(ValueError, match="is not valid YAML"):
        parse_value("[1")
