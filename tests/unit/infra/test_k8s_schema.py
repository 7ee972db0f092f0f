"""Every manifest is what Kubernetes and KubeRay take."""

import re
import shutil
import subprocess

import jsonschema
import kuberay
import pytest
import yaml
from kustomize import CLUSTER_WIDE
from manifests import APPLIED, FOLDERS, K8S, all_clusters, all_pods, each, find, jobs, rendered

KUBERNETES = "1.33"
validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")


def key(resource):
    return resource["kind"], resource["metadata"]["name"]


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_resource_fits_its_schema(folder):
    for resource in rendered(folder):
        if resource["apiVersion"].startswith("ray.io/"):
            jsonschema.validate(resource, kuberay.schema(resource["kind"]))
        else:
            validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize(("where", "template"), all_pods(), ids=[w for w, _ in all_pods()])
def test_every_pod_fits_its_schema(where, template):
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
    validate.validate(pod | {"template": template}, KUBERNETES, strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl here")
@pytest.mark.parametrize("folder", FOLDERS)
def test_kubectl_renders_the_same(folder):
    made = subprocess.run(
        ["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True, check=True
    )
    theirs = [d for d in yaml.safe_load_all(made.stdout) if d]
    assert sorted(theirs, key=key) == sorted(rendered(folder), key=key)


def test_every_file_is_used():
    used = set()
    for folder in FOLDERS:
        text = (K8S / folder / "kustomization.yaml").read_text()
        used |= {K8S / folder / name for name in re.findall(r"[\w-]+\.(?:yaml|py)\b", text)}
        used.add(K8S / folder / "kustomization.yaml")
    assert {p for p in K8S.rglob("*") if p.is_file() and "__pycache__" not in p.parts} <= used


@pytest.mark.parametrize("folder", APPLIED)
def test_names_are_short_enough_and_no_two_are_alike(folder):
    """KubeRay: a RayJob's name has 47 characters at most, what a RayCronJob makes 36 more."""
    keys = [key(r) for r in rendered(folder)]
    assert len(keys) == len(set(keys))
    for resource in rendered(folder):
        kind, name = key(resource)
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        if kind.startswith("Ray"):
            assert len(name) <= (36 if kind == "RayCronJob" else 47)


def test_all_is_in_one_namespace():
    name = find("Namespace", "ediffi")["metadata"]["name"]
    for folder in APPLIED:
        for resource in rendered(folder):
            if resource["kind"] not in CLUSTER_WIDE:
                assert resource["metadata"]["namespace"] == name


def test_what_kuberay_demands_beside_its_schema():
    for _, spec in jobs():
        assert spec["shutdownAfterJobFinishes"] or not spec.get("suspend")
        assert spec["backoffLimit"] > 0
    for _, spec in all_clusters():
        templates = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        for group in templates:  # the second autoscaler starts pods anew, not containers
            assert "restartPolicy" not in group["template"]["spec"]
        if spec.get("authOptions"):
            assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0)


def test_retraining_does_not_overlap_and_a_missed_tick_is_made_up_for():
    [(_, cron)] = each("CronJob")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert cron["spec"]["startingDeadlineSeconds"] > 100  # else Kubernetes may miss every tick
    assert cron["spec"]["timeZone"] == "Etc/UTC"
    template = find("RayJob", "ediffi-retrain-template", "retrain")
    assert template["spec"]["suspend"] is True


def test_kueue_gets_a_job_that_waits_for_it_and_does_not_grow():
    job = find("RayJob", "ediffi-run", "run-kueue")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"] is True
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["maxReplicas"]
