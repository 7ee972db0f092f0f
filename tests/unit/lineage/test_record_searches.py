"""The record of a whole execution: models, data sets, registry, and the documented searches."""

import json

import pytest
from mlflow_kit import make_ensemble, make_results, run_all, runs, search_on_page

from pipelines.lineage import sync, views
from pipelines.lineage.pages import every
from pipelines.models import champions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXPERTS = {
    "base-E0_0",
    "base-E1_0",
    "base-E1_1",
    "base-single",
    "sr32-E0_0",
}


@pytest.fixture
def recorded(driver):
    """A driver whose execution is finished and recorded, and MLflow's client."""
    mine = driver()
    manifests = make_results(mine)
    entry = make_ensemble(mine)
    champions.promote(mine.store, "smoke", entry.fingerprint, "first", by=entry.by)
    run_all(mine, manifests)
    assert mine.said == []
    return mine, mine.lineage.writer.client


def logged(client):
    experiment = client.get_experiment_by_name("smoke").experiment_id
    return list(every(client.search_logged_models, [experiment]))


def test_the_record_answers_every_question(recorded):
    driver, client = recorded
    found = runs(client)
    assert len(found) == len(driver.plan.verdicts) + 1
    trained = {n for n in found if n.startswith("train/")}
    assert set(runs(client, search_on_page("Which experts does the tree have?"))) == trained

    below = search_on_page("What is below E1_1?")
    assert runs(client, below) == {}  # this tree ends there
    above = runs(client, below.replace("E1_1", "E0_0"))
    assert set(above) == {f"train/base/{e}" for e in ("E1_0", "E1_1", "single")}
    assert above["train/base/E1_1"].data.tags["ediffi.path"] == "base/E0_0/E1_1"

    digest = driver.plan.verdicts["embed/validation"].fingerprint
    used = search_on_page("Which runs used this data set?").replace("DIGEST", digest)
    reads = {
        name
        for name, v in driver.plan.verdicts.items()
        if "embed/validation" in (*v.node.inputs.values(), *v.node.unhashed_inputs.values())
    }
    assert set(runs(client, used)) == {"", *reads} and trained < reads

    evaluated = set(runs(client, search_on_page("How good were the models?")))
    assert evaluated == {n for n in found if n.startswith("evaluate/")} != set()

    champion = runs(client, search_on_page("Which ensembles were champion, and when?"))
    assert list(champion) == [""]
    assert champion[""].data.tags["ediffi.champion"].endswith(" – today")
    settings = champion[""].data.params
    assert settings["data.validation.version"] == digest
    assert settings["stages.base.experts.E1_1.images"] == "128"


def test_views_have_the_searches_of_the_page(recorded):
    _, client = recorded
    tags = client.get_experiment_by_name("smoke").tags
    saved = {k.removeprefix(views.PREFIX): json.loads(v) for k, v in tags.items() if "View" in k}
    searches = {k: json.loads(v["state"])["searchFilter"] for k, v in saved.items()}
    assert searches == {
        "overview": "",
        "experts": search_on_page("Which experts does the tree have?"),
        "below-E1_1": search_on_page("What is below E1_1?"),
        "champions": search_on_page("Which ensembles were champion, and when?"),
        "evaluations": search_on_page("How good were the models?"),
    }


def test_a_view_that_somebody_changed_is_kept(recorded):
    _, client = recorded
    found = client.get_experiment_by_name("smoke")
    key = f"{views.PREFIX}experts"
    mine = json.dumps({**json.loads(found.tags[key]), "updatedAt": views.CREATED_MS + 1})
    client.set_experiment_tag(found.experiment_id, key, mine)
    old = json.dumps({**json.loads(views.VIEWS["champions"].tag()), "name": "Old"})
    client.set_experiment_tag(found.experiment_id, f"{views.PREFIX}champions", old)
    views.save(client, found.experiment_id)
    tags = client.get_experiment(found.experiment_id).tags
    assert tags[key] == mine
    assert tags[f"{views.PREFIX}champions"] == views.VIEWS["champions"].tag()


def test_every_expert_is_a_model_of_its_data_and_parent(recorded):
    driver, client = recorded
    models = {m.name: m for m in logged(client)}
    assert set(models) == {*EXPERTS, "ensemble"}
    child, nodes = models["base-E1_1"], runs(client)
    assert child.params["path"] == "base/E0_0/E1_1" and child.params["images"] == "128"
    assert (child.params["sigma_lo"], child.params["sigma_hi"]) == ("0.301194", "inf")
    assert child.tags["mlflow.model.isExternal"] == "true" and str(child.status) == "READY"
    run = client.get_run(nodes["train/base/E1_1"].info.run_id)  # a search leaves inputs out
    assert child.source_run_id == run.info.run_id
    assert [o.model_id for o in run.outputs.model_outputs] == [child.model_id]
    assert [i.model_id for i in run.inputs.model_inputs] == [models["base-E0_0"].model_id]

    [loss] = [m for m in child.metrics if m.key == "final/val_loss"]
    manifest = driver.store.read_json(
        f"{driver.plan.verdicts['train/base/E1_1'].folder}/manifest.json"
    )
    assert loss.value == manifest["metrics"]["val_loss"] and loss.dataset_name == "validation"
    assert loss.dataset_digest == driver.plan.verdicts["embed/validation"].fingerprint

    inputs = {i.dataset.name: i for i in run.inputs.dataset_inputs}
    assert {n: i.tags[0].value for n, i in inputs.items()} == {
        "train": "training",
        "validation": "evaluation",
    }
    data = inputs["train"].dataset
    assert json.loads(data.profile)["num_rows"] == 64
    folder = driver.plan.verdicts["embed/train"].folder
    assert json.loads(data.source)["uri"] == driver.store.full(folder)


def test_evaluations_are_of_a_model_on_a_data_set(recorded):
    _, client = recorded
    models, nodes = {m.name: m for m in logged(client)}, runs(client)
    ids = {m.model_id: m.name for m in models.values()}
    run = client.get_run(nodes["evaluate/base/ensemble"].info.run_id)
    drawn = run.inputs.model_inputs
    assert {ids[i.model_id] for i in drawn} == {"base-E1_0", "base-E1_1"}
    for group, name in (("ensemble", "ensemble"), ("single", "base-single")):
        key = f"base/{group}/val_loss"
        [measured] = [m for m in models[name].metrics if m.key == key]
        final = nodes[f"evaluate/base/{group}"].data.metrics["final/val_loss"]
        assert measured.value == final and measured.dataset_name == "validation"
        assert not [m for m in models["base-E0_0"].metrics if m.key == key]


def test_a_version_leads_to_its_model_and_run_and_has_a_card(recorded):
    _, client = recorded
    [version] = client.search_model_versions("name = 'smoke'")
    models = {m.name: m for m in logged(client)}
    assert version.tags["ediffi.model"] == models["ensemble"].model_id
    [known] = json.loads(models["ensemble"].tags["mlflow.modelVersions"])
    assert known == {"name": "smoke", "version": str(version.version)}
    assert f"/models/{models['ensemble'].model_id})" in version.description
    assert version.run_id == runs(client)[""].info.run_id == models["ensemble"].source_run_id
    assert "ediffi sample smoke@1" in version.description
    assert "### smoke: done" in version.description


def test_recording_again_changes_nothing(recorded, driver):
    first, client = recorded

    def known():
        parts = [vars(m) | {"last_updated": 0} for m in logged(client)]
        return (
            len(parts),
            sorted(
                str(sorted((m.key, m.value, m.step) for m in x.metrics)) for x in logged(client)
            ),
            len(runs(client)),
        )

    before = known()
    again = driver()  # the same spec: another execution, which reuses every node
    manifests = {
        n: first.store.read_json(f"{v.folder}/manifest.json")
        for n, v in first.plan.verdicts.items()
    }
    for name, verdict in again.plan.verdicts.items():
        again.lineage.reused(verdict, manifests[name])
        again.execution.nodes[name] = {"state": "reused", "folder": verdict.folder}
    again.lineage.close("done", manifests, timeout_s=600)
    assert again.said == [] and known() == before
    found = every(
        client.search_runs,
        [again.lineage.writer.experiment],
        f"tags.`ediffi.execution` = '{again.execution.id}'",
    )
    nodes = {r.data.tags.get("ediffi.node"): r for r in found}
    [output] = nodes["train/base/E1_1"].outputs.model_outputs
    [model] = [m for m in logged(client) if m.name == "base-E1_1"]
    assert output.model_id == model.model_id
    assert model.source_run_id != nodes["train/base/E1_1"].info.run_id


def test_versions_of_removed_ensembles_are_forgotten_and_no_others(recorded):
    driver, client = recorded
    [version] = every(client.search_model_versions, "name = 'smoke'")
    other = client.create_model_version("smoke", version.source, tags={"made": "by hand"})
    fingerprint = version.tags["ediffi.fingerprint"]
    assert sync.forget_versions(driver.store, "smoke", ["0" * 16]) == 0
    assert sync.forget_versions(driver.store, "smoke", [fingerprint]) == 1
    assert sync.forget_versions(driver.store, "smoke", [fingerprint]) == 0
    assert [v.version for v in every(client.search_model_versions, "name = 'smoke'")] == [
        other.version
    ]
