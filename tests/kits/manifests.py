"""The manifests as they would be applied, and what is in them."""

from functools import cache

from kustomize import render
from paths import ROOT

K8S = ROOT / "infra" / "k8s"
FOLDERS = sorted(p.parent.name for p in K8S.glob("*/kustomization.yaml"))
APPLIED = [f for f in FOLDERS if f != "ray"]  # which is a part of the others


@cache
def rendered(folder: str) -> list[dict]:
    return render(K8S / folder)


def each(kind: str) -> list[tuple[str, dict]]:
    """(folder, resource) of every one of a kind."""
    return [(f, r) for f in FOLDERS for r in rendered(f) if r["kind"] == kind]


def find(kind: str, name: str, folder: str = "base") -> dict:
    [one] = [r for r in rendered(folder) if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return one


def pods(at, way: str = "") -> list[tuple[str, dict]]:
    """(path, pod template) of all that are anywhere in a resource."""
    found = []
    if isinstance(at, list):
        for i, item in enumerate(at):
            name = item.get("groupName") or item.get("name") if isinstance(item, dict) else None
            found += pods(item, f"{way}.{name or i}")
    elif isinstance(at, dict):
        for key, value in at.items():
            if key in ("template", "submitterPodTemplate") and "containers" in value["spec"]:
                found.append((f"{way}.{key}", value))
            else:
                found += pods(value, f"{way}.{key}" if way else key)
    return found


def all_pods() -> list[tuple[str, dict]]:
    return [
        (f"{folder}/{r['metadata']['name']}:{way}", template)
        for folder in APPLIED
        for r in rendered(folder)
        for way, template in pods(r)
    ]


def containers(template: dict) -> list[dict]:
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]


def clusters() -> list[tuple[str, dict]]:
    """(where, spec) of every Ray cluster that would come to be for pipelines."""
    found = [("cluster", find("RayCluster", "ediffi-cluster", "cluster")["spec"])]
    found += [(f, r["spec"]["rayClusterSpec"]) for f, r in each("RayJob")]
    found += [(f, r["spec"]["jobTemplate"]["rayClusterSpec"]) for f, r in each("RayCronJob")]
    return found


def all_clusters() -> list[tuple[str, dict]]:
    """(where, spec) of every Ray cluster that would come to be, the service's too."""
    return clusters() + [(f, r["spec"]["rayClusterConfig"]) for f, r in each("RayService")]


def jobs() -> list[tuple[str, dict]]:
    """(folder, spec) of every RayJob, those that a clock starts too."""
    found = [(f, r["spec"]) for f, r in each("RayJob")]
    return found + [(f, r["spec"]["jobTemplate"]) for f, r in each("RayCronJob")]
