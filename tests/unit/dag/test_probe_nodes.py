"""Probes in a spec and in its plan: which nodes there are, and what they depend on."""

import pytest
from plan_kit import spec
from planning_kit import edited
from pydantic import ValidationError

from pipelines.dag import plan
from pipelines.spec.evaluation import Evaluate
from pipelines.spec.probes import Probes
from pipelines.store.artifacts import Store

NAMES = ["text_effect", "prompt_switch", "encoders", "guidance", "seconds"]


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


def with_probes(given, **evaluate):
    def change(raw):
        raw["evaluate"] |= {"probes": given, **evaluate}

    return spec(change)


def prints(made):
    return {i: v.fingerprint for i, v in made.verdicts.items()}


def test_a_list_is_names_without_options():
    listed, mapped = (Evaluate.model_validate({"probes": given}).probes for given in GIVEN)
    assert listed == mapped and list(listed.chosen) == ["text_effect", "guidance"]
    assert Probes().chosen == {} and "probes" not in Evaluate().settings()


GIVEN = (["text_effect", "guidance"], {"text_effect": {}, "guidance": {"captions": 96}})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["guidance", "guidance"], "names guidance twice; write each probe once"),
        ({"guidance": {"scales": [1.0, 1.0]}}, "`guidance.scales` names a value twice"),
        ({"guidance": {"scales": [-1.0]}}, "greater than or equal to 0"),
        ({"prompt_switch": {"fractions": [1.5]}}, "less than or equal to 1"),
        (["figure"], "figure"),
        ({"seconds": {"pictures": "3"}}, "valid integer"),
    ],
)
def test_probes_that_are_refused(given, says):
    with pytest.raises(ValidationError, match=says):
        edited(evaluate__probes=given)


def test_every_model_of_the_base_is_probed(store):
    made = plan.make(with_probes(NAMES), store, {})
    probes = {i for i in made.verdicts if i.startswith("probe/")}
    both = {f"probe/base/{group}/{name}" for group in ("ensemble", "single") for name in NAMES}
    assert probes == both | {"probe/base/root/text_effect", "probe/base/root/guidance"}


def test_probes_leave_all_other_nodes_as_they_are(store):
    before, after = (prints(plan.make(of, store, {})) for of in (spec(), with_probes(NAMES)))
    assert before == {i: f for i, f in after.items() if not i.startswith("probe/")}


def changed(store, given, **evaluate):
    """Kinds of the probes of the ensemble that a change of ``evaluate`` runs again."""
    a, b = (
        prints(plan.make(of, store, {}))
        for of in (with_probes(NAMES), with_probes(given, **evaluate))
    )
    there = (i for i in b if i.startswith("probe/base/ensemble/"))
    return {i.rpartition("/")[2] for i in there if a[i] != b[i]}


def test_a_probe_depends_on_what_it_measures(store):
    scored = {"prompt_switch", "encoders", "guidance"}
    metrics = {"emoji-scenes": {"images": 512}}
    assert changed(store, NAMES, metrics=metrics) == scored
    assert changed(store, NAMES, captions=8) == set()
    more = {name: {"levels": 12} if name == "text_effect" else {} for name in NAMES}
    assert changed(store, more) == {"text_effect"}
