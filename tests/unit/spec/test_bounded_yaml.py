"""Hostile or broken YAML ends in one line, whichever way it is read."""

import pytest

from pipelines.cli.evaluate_options import features_of
from pipelines.spec import bounded_yaml
from pipelines.spec.loading import load, load_protocol, load_study, parse_value


def doubling(first, again, times=9, levels=12):
    """A text of 1 kB in which each level stands for the one before, several times."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + again(", ".join([f"*a{level - 1}"] * times)))
    return "{" + ",\n".join(lines) + "}"


BOMBS = {
    "aliases": doubling("[x, x]", lambda ones: f"[{ones}]"),
    "aliases of mappings": doubling("{a: x}", lambda ones: f"{{b: [{ones}]}}"),
    "merge keys": doubling("{a: x}", lambda ones: f"{{<<: [{ones}]}}"),
    "a list in itself": "&a [*a]",
    "a mapping in itself": "&a {b: {c: *a}}",
    "nested lists": "[" * 5000,
    "nested lists that are closed": "[" * 5000 + "]" * 5000,
    "nested mappings": "{a: " * 5000,
    "nested keys": "? " * 3000,
    "indented lists": "- " * 3000 + "x",
    "a long number": "seed: " + "9" * 5000,
    "a long number in base 16": "seed: 0x" + "f" * 100_000,
    "a number in base 60": "seed: " + "1:" * 50_000 + "1",
    "a fraction in base 60": "seed: " + "1:" * 2000 + "1.5",
    "a day that is none": "name: 2001-99-99",
    "a tag without a date": "name: !!timestamp soon",
    "a tag without a truth": "name: !!bool maybe",
    "a tag without a number": "name: !!int ''",
    "a Python object": "name: !!python/object/apply:os.system [true]",
    "a key that is a list": "? [a]\n: b",
    "a control character": "name: \0",
    "half a pair of quotes": "name: 'a",
    "too long a text": "name: " + "a" * bounded_yaml.MAX_CHARACTERS,
}


@pytest.mark.parametrize("read", [load, load_study, load_protocol])
@pytest.mark.parametrize("name", BOMBS)
def test_a_file_of_it_is_refused_in_one_line(read, name, tmp_path):
    file = tmp_path / "bomb.yaml"
    file.write_text(BOMBS[name])
    with pytest.raises(ValueError) as error:
        read(file)
    said = str(error.value)
    assert said.startswith(f"{file}: ") and "\n" not in said and len(said) < 400


@pytest.mark.parametrize("name", BOMBS)
def test_an_option_of_it_is_refused_in_one_line(name):
    for read in (parse_value, lambda text: features_of(None, [f"mine={text}"])):
        with pytest.raises(ValueError) as error:
            read(BOMBS[name])
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_a_spec_may_hold_is_read(monkeypatch):
    deep = "[" * (bounded_yaml.MAX_DEPTH - 1) + "1" + "]" * (bounded_yaml.MAX_DEPTH - 1)
    assert str(parse_value(deep)) == deep
    assert parse_value("{a: &a [1, 2], b: [*a, *a], c: *a}")["b"] == [[1, 2], [1, 2]]
    monkeypatch.setattr(bounded_yaml, "MAX_VALUES", 10)
    assert parse_value("[&a [1, 2, 3], *a, 4]") == [[1, 2, 3], [1, 2, 3], 4]
    with pytest.raises(ValueError, match="more than 10 values, aliases expanded"):
        parse_value("[&a [1, 2, 3], *a, 4, 5]")
