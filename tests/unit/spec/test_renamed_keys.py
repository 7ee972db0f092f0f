"""A spec may use a key's old name, with a warning; results are stored under it for good."""

import copy
import subprocess
import sys
import warnings

import pytest
import yaml
from paths import SMOKE
from pydantic import ValidationError

from pipelines.dag import plan
from pipelines.dag.nodes import nodes_of
from pipelines.spec.base import names_in_specs
from pipelines.spec.loading import load
from pipelines.spec.pipeline import Spec
from pipelines.spec.renamed import SpecWarning
from pipelines.spec.training import Training
from pipelines.store.artifacts import Store

SR = "stages.sr32"
RENAMED = {
    f"{SR}.training.bad_loss.then": ("action", "skip"),
    f"{SR}.training.bad_loss.leap": ("spike_factor", 10.0),
    f"{SR}.training.bad_loss.skips": ("max_skips", 5),
    f"{SR}.cadence.keep": ("keep_latest", 4),
    f"{SR}.cadence.picture_images": ("sample_images", 64),
    f"{SR}.workers.recompute": ("activation_checkpointing", [0]),
    f"{SR}.limit_hours": ("max_hours", 2.0),
    f"{SR}.degrade.shrink": ("downscale", 3.0),
    "evaluate.losses.degrade.shrink": ("downscale", 1.5),
    "embedding.pictures": ("image_format", "jpeg"),
    "notify.on": ("events", ["failed"]),
}
"""Path in a spec → the new name, and a value."""

BARE = yaml.safe_load(SMOKE.read_text())
del BARE["embedding"]


def write(raw, path, value):
    *parts, key = path.split(".")
    for part in parts:
        raw = raw.setdefault(part, {})
    raw[key] = value


def new_path(old):
    return ".".join((*old.split(".")[:-1], RENAMED[old][0]))


def spelled(*, old):
    raw = copy.deepcopy(BARE)
    for path, (_, value) in RENAMED.items():
        write(raw, path if old else new_path(path), value)
    return raw


def test_every_renamed_key_is_tested():
    assert {p.rpartition(".")[2]: new for p, (new, _) in RENAMED.items()} == names_in_specs(Spec)


@pytest.mark.parametrize("path", RENAMED)
def test_an_old_name_is_read_with_a_warning_that_names_the_new_one(path, tmp_path):
    new, value = RENAMED[path]
    raw, other = copy.deepcopy(BARE), copy.deepcopy(BARE)
    write(raw, path, value)
    write(other, new_path(path), value)
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.warns(SpecWarning) as found:
        loaded = load(file)
    (only,) = [str(w.message) for w in found if w.category is SpecWarning]
    assert only.startswith(f"{file}: `{path}` is now called `{new}`")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SpecWarning)
        assert loaded == Spec.model_validate(other)


def test_a_bare_on_is_not_taken_for_true(tmp_path):
    """YAML 1.1 reads ``on`` as true, as it does in GitHub's workflows."""
    text = SMOKE.read_text() + "\nnotify: {webhook: https://example.org/x, on: [failed]}\n"
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.warns(SpecWarning, match="events"):
        assert load(tmp_path / "spec.yaml").notify.events == ["failed"]


@pytest.mark.parametrize("path", RENAMED)
def test_both_names_are_an_error(path, tmp_path):
    new, value = RENAMED[path]
    raw = copy.deepcopy(BARE)
    write(raw, path, value)
    write(raw, new_path(path), value)
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(raw))
    told = f"both.yaml: `{path}` is the old name of `{new}`, and both are given; remove"
    with pytest.raises(ValueError, match=told):
        load(tmp_path / "both.yaml")


def test_a_wrong_value_is_refused_under_either_name():
    for path in (old := f"{SR}.training.bad_loss.leap", new_path(old)):
        raw = copy.deepcopy(BARE)
        write(raw, path, 0.5)
        with (
            warnings.catch_warnings(action="ignore", category=SpecWarning),
            pytest.raises(ValidationError, match="greater than 1"),
        ):
            Spec.model_validate(raw)


def test_fingerprints_are_those_of_the_old_names():
    with warnings.catch_warnings(action="ignore", category=SpecWarning):
        old = Spec.model_validate(spelled(old=True))
    new = Spec.model_validate(spelled(old=False))
    one, two = (plan.make(s, Store.at("/dev/null"), {}) for s in (old, new))
    assert one.fingerprint == two.fingerprint
    assert {i: v.fingerprint for i, v in one.verdicts.items()} == {
        i: v.fingerprint for i, v in two.verdicts.items()
    }


def test_nodes_store_the_old_names():
    """Else what is stored would be trained anew, and workers would not find their settings."""
    nodes = {n.id: n for n in nodes_of(Spec.model_validate(spelled(old=False)), {})}
    trained = nodes["train/sr32/E0_0"]
    assert trained.settings["training"]["bad_loss"] == {"then": "skip", "leap": 10.0, "skips": 5}
    assert trained.settings["super_resolution"]["degrade"]["shrink"] == 3.0
    how = trained.runtime
    assert (how["keep"], how["picture_images"], how["limit_hours"]) == (4, 64, 2.0)
    assert how["workers"]["recompute"] == [0]
    assert nodes["embed/train"].settings["recipe"]["packing"]["pictures"] == "jpeg"
    new = set(names_in_specs(Spec).values())

    def keys(value):
        if isinstance(value, dict):
            return {*value, *(k for v in value.values() for k in keys(v))}
        return {k for v in value for k in keys(v)} if isinstance(value, list) else set()

    for node in nodes.values():
        assert not new & keys(node.settings) and not new & keys(node.runtime), node.id


def test_stored_settings_are_read_back_without_a_warning():
    training = Training.model_validate({"bad_loss": {"spike_factor": 9.0, "action": "skip"}})
    with warnings.catch_warnings(action="error", category=SpecWarning):
        assert Training.from_settings(training.settings()) == training


@pytest.mark.slow
def test_the_command_prints_the_warning_as_one_line(tmp_path):
    raw = copy.deepcopy(BARE)
    write(raw, f"{SR}.cadence.keep", 4)
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "plan", "old.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (line,) = [at for at in done.stderr.splitlines() if "old name" in at]
    assert line.startswith(f"ediffi: warning: old.yaml: `{SR}.cadence.keep` is now called")
