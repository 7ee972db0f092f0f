"""The reference of all keys and the JSON schema are those of the code, and say what it checks."""

import copy
import json
import re
import warnings

import jsonschema
import pytest
import yaml
from paths import COCO30K, ROOT, SPECS
from pydantic import SecretStr, ValidationError

from pipelines.spec import reference
from pipelines.spec.base import nested
from pipelines.spec.pipeline import Spec
from pipelines.spec.s3 import S3

SCHEMA = json.loads(reference.SCHEMA.read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SHIPPED = [
    *sorted(set(SPECS.glob("*.yaml")) - {COCO30K}),
    ROOT / "infra" / "k8s" / "ray" / "pipeline.yaml",
]

WHOLE = {
    "name": "mine",
    "data": {
        "train": {"path": ["a", "b"], "filters": {"scores": {"s": {"min": 1}}}, "scores": ["s"]},
        "validation": {"path": "c"},
    },
    "encoders": {"more": {"byt5": {"model": "google/byt5-small", "dim": 1472}}},
    "embedding": {"t5": {"actors": 2}, "clip_batch": "auto"},
    "stages": {
        "base": {
            "training": {"snapshot_lengths": [0.1], "bad_loss": {"spike_factor": 10.0}},
            "workers": {"micro_batch": 8},
            "network": {"preset": "base64", "blocks": [3, 3, 3, 3]},
            "experts": {"E0_0": {"images": 6400}},
            "adaptive": {"budget": 12800, "images": 6400},
        }
    },
    "evaluate": {"metrics": {"emoji-scenes": {"images": 256}}},
    "s3": {"key": "ACCESS", "secret": "SECRET"},
    "cluster": {"groups": {"a": {"gpu": "A100", "count": 8}}, "stages": {"base": "a"}},
}
"""A part of every kind: in a dictionary, in a list, optional, or of one type or another."""


def accepted(raw):
    """By the code; the schema must agree."""
    try:
        with warnings.catch_warnings(action="ignore"):
            Spec.model_validate(raw)
    except ValidationError:
        return False
    return True


def parts(raw, path=()):
    """All dictionaries in a spec, by their paths."""
    if isinstance(raw, dict):
        yield path
        for key, value in raw.items():
            yield from parts(value, (*path, key))


def with_key(path, key, value):
    raw = copy.deepcopy(WHOLE)
    place = raw
    for part in path:
        place = place[part]
    place[key] = value
    return raw


def test_the_files_are_what_the_code_makes():
    stale = [p.name for p, text in reference.files().items() if p.read_text("utf-8") != text]
    assert not stale, "run `python -m pipelines.spec.reference`"


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert VALIDATOR.is_valid(WHOLE) and accepted(WHOLE)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_spec_is_valid(path):
    text = path.read_text()
    assert [e.message for e in VALIDATOR.iter_errors(yaml.safe_load(text))] == []
    assert not re.search(r"[^E]\b\d+_\d", text), "YAML 1.2 reads such a number as text"
    if path.parent == SPECS:
        assert text.startswith("# yaml-language-server: $schema=schema.json\n")


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in parts(WHOLE)
        # Here every key is the user's own.
        if p not in {("evaluate", "metrics", "emoji-scenes"), ("evaluate", "metrics")}
    ],
    ids=".".join,
)
def test_a_misspelt_key_is_refused_everywhere(path):
    raw = with_key(path, "Misspelt", 1)
    assert not accepted(raw) and not VALIDATOR.is_valid(raw)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "cpus", 0),
        ((), "cpus", "2"),
        ((), "name", "My pipeline"),
        (("embedding",), "clip_batch", 0),
        (("embedding",), "clip_batch", "all"),
        (("embedding",), "gpu", "B17"),
        (("encoders", "more"), "T5!", {"model": "m", "dim": 1}),
        (("stages", "base", "workers"), "micro_batch", 0),
        (("stages", "base", "network"), "blocks", [0]),
        (("stages", "base", "network"), "preset", "base65"),
        (("stages", "base"), "sampling", {"solver": "deis9"}),
        (("stages", "base"), "experts", {"E0": {"images": 6400}}),
        (("stages", "base", "training", "bad_loss"), "spike_factor", 1.0),
        (("cluster", "groups", "a"), "gpu", "B17"),
    ],
)
def test_a_wrong_value_is_refused(path, key, value):
    raw = with_key(path, key, value)
    assert not accepted(raw) and not VALIDATOR.is_valid(raw)


def test_old_names_are_accepted_and_marked():
    part = SCHEMA["$defs"]["BadLoss"]["properties"]
    assert part["leap"]["deprecated"] is True and "spike_factor" in part["leap"]["description"]
    assert "deprecated" not in part["spike_factor"]
    raw = with_key(("stages", "base", "training"), "bad_loss", {"leap": 10.0, "then": "skip"})
    assert VALIDATOR.is_valid(raw) and accepted(raw)


def test_no_secret_has_a_default():
    secrets = [k for k, f in S3.model_fields.items() if SecretStr in (f.annotation.__args__ or ())]
    assert secrets == ["key", "secret"]
    assert all(SCHEMA["$defs"]["S3"]["properties"][k]["default"] is None for k in secrets)


MODELS = sorted(set(reference.models_of(Spec)), key=lambda m: m.__name__)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_every_key_is_described(model):
    assert model.__doc__ and model.__module__.startswith("pipelines.spec.")
    undescribed = [name for name, field in model.model_fields.items() if not field.description]
    assert undescribed == []


def test_no_two_models_share_a_name():
    """The schema keeps its parts by the models' names."""
    assert len({m.__name__ for m in MODELS}) == len(MODELS)


def paths_of(model, at):
    for name, field in model.model_fields.items():
        yield f"{at}.{name}".removeprefix(".")
        inner, many = nested(field.annotation)
        if inner:
            name = f"{name}.{reference.EACH.get(name, 'NAME')}" if many else name
            yield from paths_of(inner, f"{at}.{name}".removeprefix("."))


def test_the_reference_has_every_key_once():
    text = reference.REFERENCE.read_text()
    _, *found = re.split(r"^## (?=`|Top)", text, flags=re.M)
    shown = []
    for section in found:
        title = section.splitlines()[0]
        for at in re.findall(r"`([^`]+)`", title) or [""]:
            keys = re.findall(r"^\| `([^`]+)` \|", section, flags=re.M)
            shown += [f"{at}.{key}".removeprefix(".") for key in keys]
    assert sorted(shown) == sorted(paths_of(Spec, ""))


def test_its_links_lead_somewhere():
    text = reference.REFERENCE.read_text()
    files = re.findall(r"\]\((?!http|#)([^)]+)\)", text)
    assert files and all((reference.REFERENCE.parent / file).exists() for file in files)
    anchors = {s.link for s in reference.sections()}
    assert set(re.findall(r"\]\((#[^)]+)\)", text)) == anchors


def test_its_example_is_sound():
    (example,) = re.findall(r"```yaml\n(.*?)```", reference.INTRODUCTION, flags=re.S)
    raw = yaml.safe_load(example)
    assert accepted(raw) and VALIDATOR.is_valid(raw)
