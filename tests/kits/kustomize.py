"""What `kubectl kustomize` makes of a folder, for the part of it that infra/k8s keeps to.

``resources``, ``namespace``, ``labels`` (of metadata), ``images``, ``configMapGenerator`` of files
without a suffix, ``patches`` (strategic merge of mappings, ``$patch: delete``, and JSON patches),
``replacements`` of whole fields, and the annotation ``local-config``. Anything else is an error.
"""

import copy
from pathlib import Path

import yaml

KEYS = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "labels",
    "images",
    "generatorOptions",
    "configMapGenerator",
    "patches",
    "replacements",
}
CLUSTER_WIDE = {
    "Namespace",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
LOCAL = "config.kubernetes.io/local-config"


def render(folder: Path) -> list[dict]:
    """The resources that would be applied."""
    return [
        r for r in accumulate(folder) if r["metadata"].get("annotations", {}).get(LOCAL) != "true"
    ]


def accumulate(folder: Path) -> list[dict]:
    here = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(here) - KEYS:
        raise ValueError(f"{folder.name}: keep to {sorted(KEYS)}, without {sorted(unknown)}")
    found: list[dict] = []
    for name in here["resources"]:
        place = folder / name
        found += accumulate(place.resolve()) if place.is_dir() else documents(place)
    found += [config_map(folder, m, here) for m in here.get("configMapGenerator", [])]
    for patch in here.get("patches", []):
        apply(found, patch, folder)
    for one in found:
        if "namespace" in here and one["kind"] not in CLUSTER_WIDE:
            one["metadata"]["namespace"] = here["namespace"]
        for label in here.get("labels", []):
            assert set(label) == {"pairs"}
            one["metadata"].setdefault("labels", {}).update(label["pairs"])
    for replacement in here.get("replacements", []):
        replace(found, replacement)
    for image in here.get("images", []):
        for one in found:
            rename(one, image)
    return found


def documents(path: Path) -> list[dict]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d is not None]


def config_map(folder: Path, wanted: dict, here: dict) -> dict:
    assert here["generatorOptions"] == {"disableNameSuffixHash": True}
    data = {name: (folder / name).read_text() for name in wanted["files"]}
    metadata = {"name": wanted["name"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def apply(found: list[dict], patch: dict, folder: Path) -> None:
    text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
    content = yaml.safe_load(text)
    if isinstance(content, list):
        target = patch["target"]
        for operation in content:
            json_patch(only(found, target["kind"], target["name"]), operation)
        return
    one = only(found, content["kind"], content["metadata"]["name"])
    if content.get("$patch") == "delete":
        found.remove(one)
    else:
        merge(one, content)


def only(found: list[dict], kind: str, name: str) -> dict:
    [one] = [r for r in found if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return one


def merge(into: dict, patch: dict) -> None:
    for key, value in patch.items():
        assert not isinstance(value, list), f"{key}: lists are merged by Kubernetes' own rules"
        if isinstance(value, dict):
            merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def json_patch(one: dict, operation: dict) -> None:
    *way, last = [
        int(p) if p.isdigit() else p.replace("~1", "/")
        for p in operation["path"].strip("/").split("/")
    ]
    at = one
    for part in way:
        at = at[part]
    if operation["op"] == "remove":
        del at[last]
    else:
        assert operation["op"] == "replace"
        at[last]  # it must be there
        at[last] = operation["value"]


def replace(found: list[dict], replacement: dict) -> None:
    source = replacement["source"]
    value = only(found, source["kind"], source["name"])
    for part in source["fieldPath"].split("."):
        value = value[part]
    for target in replacement["targets"]:
        assert target["options"] == {"create": True}
        for path in target["fieldPaths"]:
            at = only(found, target["select"]["kind"], target["select"]["name"])
            *way, last = path.split(".")
            for part in way:
                at = at.setdefault(part, {})
            at[last] = copy.deepcopy(value)


def rename(at, image: dict) -> None:
    """Of all containers, wherever they are."""
    if isinstance(at, list):
        for item in at:
            rename(item, image)
    elif isinstance(at, dict):
        for key in ("containers", "initContainers"):
            for container in at.get(key) or []:
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
        for value in at.values():
            rename(value, image)
