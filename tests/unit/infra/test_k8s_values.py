"""What the manifests say fits the code that reads it, and each other."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from commands import understood
from manifests import (
    APPLIED,
    K8S,
    ROOT,
    all_clusters,
    all_pods,
    clusters,
    containers,
    each,
    find,
    jobs,
    rendered,
)

from pipelines.executor.driver import RECORD_WHEN_STOPPED_S
from pipelines.spec.loading import load
from pipelines.spec.pipeline import Spec

PODS = all_pods()
IDS = [where for where, _ in PODS]
LOCK = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

READ_BY = {
    "MLFLOW_TRACKING_URI": "pipelines/lineage/address.py",
    "RAY_USAGE_STATS_ENABLED": "ray/_common/usage/usage_constants.py",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "ray/_private/accelerators/accelerator.py",
    "RAY_JOB_STOP_WAIT_TIME_S": "ray/dashboard/modules/job/job_supervisor.py",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "ray/_private/ray_constants.py",
    "TOKENIZERS_PARALLELISM": "tokenizers/tokenizers.abi3.so",
    "EDIFFI_TOKEN": "pipelines/spec/serving.py",
    "AWS_ACCESS_KEY_ID": "botocore/credentials.py",
    "AWS_SECRET_ACCESS_KEY": "botocore/credentials.py",
    "AWS_DEFAULT_REGION": "botocore/configprovider.py",
    "AWS_ENDPOINT_URL": "botocore/configprovider.py",
    "MLFLOW_BACKEND_STORE_URI": "mlflow/cli/__init__.py",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "mlflow/environment_variables.py",
    "MLFLOW_S3_ENDPOINT_URL": "mlflow/environment_variables.py",
}
"""Which file reads a variable."""

SECRETS = {
    "ediffi-postgres": {"password", "uri"},
    "ediffi-s3": {"access-key", "secret-key", "region", "endpoint"},
    "ediffi-serve": {"token"},
}
"""What an operator makes, as docs/run.md and docs/serve.md say."""


@cache
def text_of(place: str) -> bytes:
    package, _, rest = place.partition("/")
    [folder] = importlib.util.find_spec(package).submodule_search_locations
    return (Path(folder) / rest).read_bytes()


def variables(container):
    return {e["name"]: e for e in container.get("env", [])}


def gib(quantity: str) -> int:
    assert quantity.endswith("Gi"), quantity
    return int(quantity.removesuffix("Gi")) * 2**30


# -- variables, commands, files ------------------------------------------------------------------


@pytest.mark.parametrize(("where", "template"), PODS, ids=IDS)
def test_every_variable_is_read_by_someone(where, template):
    for container in containers(template):
        env = variables(container)
        used = " ".join(e.get("value", "") for e in env.values())
        for name in env:
            if container["image"].startswith("postgres:"):  # the image's entry point
                assert name in {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "PGDATA"}
            elif name == "TICK":
                assert name in (K8S / "retrain" / "start.py").read_text()
            elif f"$({name})" not in used:
                assert name.encode() in text_of(READ_BY[name]), name


def test_a_variable_is_set_before_it_is_used_in_another():
    for _, template in PODS:
        for container in containers(template):
            names = [e["name"] for e in container.get("env", [])]
            for i, entry in enumerate(container.get("env", [])):
                for used in re.findall(r"\$\((\w+)\)", entry.get("value", "")):
                    assert used in names[:i]


@pytest.mark.parametrize(("folder", "job"), jobs(), ids=[f for f, _ in jobs()])
def test_a_job_s_command_is_one_of_ours_and_its_spec_is_there(folder, job):
    command = shlex.split(job["entrypoint"])
    understood(command)
    place = Path(command[-1])
    pod = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    [mount] = [
        m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == str(place.parent)
    ]
    [volume] = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert place.name in find("ConfigMap", volume["configMap"]["name"], folder)["data"]


def test_what_a_pod_mounts_is_there():
    for where, template in PODS:
        folder = where.partition("/")[0]
        claims = [
            c["metadata"]["name"]
            for r in rendered(folder)
            if r["kind"] == "StatefulSet"
            for c in r["spec"]["volumeClaimTemplates"]
        ]
        volumes = {v["name"]: v for v in template["spec"].get("volumes", [])}
        for container in containers(template):
            for mount in container["volumeMounts"]:
                assert mount["name"] in {*volumes, *claims}, where
        for volume in volumes.values():
            if "configMap" in volume:
                find("ConfigMap", volume["configMap"]["name"], folder)


def test_the_program_that_starts_retrainings_is_where_its_command_says():
    [(_, cron)] = each("CronJob")
    [starter] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    python, script = starter["command"]
    assert python == "python"
    assert Path(script).name in find("ConfigMap", "ediffi-starter", "retrain")["data"]
    assert starter["args"][0] == find("RayJob", starter["args"][0], "retrain")["metadata"]["name"]
    rules = find("Role", "ediffi-starter", "retrain")["rules"]
    assert {n for r in rules for n in r.get("resourceNames", [])} == set(starter["args"])
    assert {r for rule in rules for r in rule["resources"]} == {"rayjobs"}
    assert {v for rule in rules for v in rule["verbs"]} == {"create", "get", "delete"}


# -- references ----------------------------------------------------------------------------------


def test_secrets_are_only_referred_to_and_every_one_is_in_the_documents():
    for folder in APPLIED:
        assert not any(r["kind"] == "Secret" for r in rendered(folder))
    for where, template in PODS:
        for container in containers(template):
            for entry in container.get("env", []):
                if re.search("PASSWORD|SECRET|ACCESS_KEY|_TOKEN", entry["name"]):
                    assert "value" not in entry, where
                if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                    assert reference["key"] in SECRETS[reference["name"]]
    docs = ROOT / "infra" / "docs"
    said = (docs / "run.md").read_text() + (docs / "serve.md").read_text()
    for name, keys in SECRETS.items():
        assert f"create secret generic {name}" in said
        assert all(f"{key}=" in said for key in keys - {"uri"})


def test_accounts_and_priorities_that_are_named_exist():
    priorities = {r["metadata"]["name"] for _, r in each("PriorityClass")}
    for where, template in PODS:
        pod, folder = template["spec"], where.partition("/")[0]
        assert pod["priorityClassName"] in priorities
        if "serviceAccountName" in pod:
            find("ServiceAccount", pod["serviceAccountName"], folder)


def test_services_and_policies_meet_the_ports_that_pods_open():
    opened = {}
    for _, template in PODS:
        label = template["metadata"]["labels"]["app.kubernetes.io/component"]
        ports = [p for c in containers(template) for p in c.get("ports", [])]
        opened.setdefault(label, {}).update({p["name"]: p["containerPort"] for p in ports})
    for _, service in each("Service"):
        label = service["spec"]["selector"]["app.kubernetes.io/component"]
        for port in service["spec"]["ports"]:
            assert opened[label][port["targetPort"]] == port["port"]
    for _, policy in each("NetworkPolicy"):
        label = policy["spec"]["podSelector"].get("matchLabels", {})
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                assert port["port"] in opened[label["app.kubernetes.io/component"]].values()


def test_nothing_is_reached_that_no_policy_names():
    nothing = find("NetworkPolicy", "nothing")["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = {t["metadata"]["labels"]["app.kubernetes.io/component"] for _, t in PODS}
    chosen = [p["spec"]["podSelector"].get("matchLabels", {}) for _, p in each("NetworkPolicy")]
    named = {labels.get("app.kubernetes.io/component") for labels in chosen}
    assert named - {None} == labels


# -- MLflow --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    import mlflow.cli

    [container] = find("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["mlflow", "server"]
    return mlflow.cli.cli.commands["server"].make_context("server", list(container["args"])).params


def test_mlflow_listens_where_it_is_called_and_answers_to_those_names(server):
    from mlflow.server.security_utils import is_allowed_host_header

    service = find("Service", "mlflow")
    for _, cluster in clusters():
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            [container] = group["template"]["spec"]["containers"]
            called = urlsplit(variables(container)["MLFLOW_TRACKING_URI"]["value"])
            assert called.hostname == service["metadata"]["name"]
            assert called.port == service["spec"]["ports"][0]["port"] == server["port"]
            assert is_allowed_host_header(server["allowed_hosts"].split(","), called.netloc)
    assert server["host"] == "0.0.0.0"


def test_mlflow_is_asked_for_its_health_where_no_host_is_checked():
    from mlflow.server.security_utils import is_health_endpoint

    [container] = find("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert is_health_endpoint(container[probe]["httpGet"]["path"])


def test_mlflow_s_tables_are_upgraded_by_a_command_that_there_is():
    import mlflow.cli

    [container] = find("Job", "mlflow-upgrade", "mlflow-upgrade")["spec"]["template"]["spec"][
        "containers"
    ]
    mlflow_, db, upgrade = container["command"]
    command = mlflow.cli.cli.commands[db].commands[upgrade]
    assert mlflow_ == "mlflow"
    assert command.make_context(upgrade, list(container["args"])).params == {
        "url": container["args"][0]
    }
    server = find("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == server["env"][:2]


def test_an_eviction_leaves_one_mlflow():
    deployment, budget = find("Deployment", "mlflow"), find("PodDisruptionBudget", "mlflow")
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert deployment["spec"]["replicas"] > budget["spec"]["maxUnavailable"]


# -- Ray -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "cluster"), clusters(), ids=[w for w, _ in clusters()])
def test_a_cluster_fits_the_pipeline(where, cluster):
    """Every worker fits a machine, every node the cluster, and the head is left alone."""
    loaded = load(K8S / "ray" / "pipeline.yaml")
    assert loaded.storage.startswith("s3://")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {
        g["labels"]["ediffi-group"]: (
            g["maxReplicas"],
            g["template"]["spec"]["containers"][0]["resources"]["limits"],
        )
        for g in cluster["workerGroupSpecs"]
    }
    assert set(groups) == {"base", "sr", "cpu"}
    assert "nvidia.com/gpu" not in groups["cpu"][1]
    assert loaded.cpus <= sum(n * limits["cpu"] for n, limits in groups.values())
    assert loaded.gpus <= sum(n * gpus_of(limits) for n, limits in groups.values())
    for stage in loaded.stages.values():
        count, limits = groups[stage.workers.labels["ediffi-group"]]
        cpus = max(e.cpus for e in stage.experts.values())
        seats = min(gpus_of(limits) // stage.workers.gpus, limits["cpu"] // cpus)
        assert stage.workers.count <= count * seats
    actors = [loaded.embedding.t5, loaded.embedding.clip]
    count, limits = groups[loaded.embedding.labels["ediffi-group"]]
    assert sum(a.actors * a.gpus for a in actors) <= count * gpus_of(limits)
    count, limits = groups[loaded.evaluate.labels["ediffi-group"]]
    assert loaded.evaluate.gpus == 1 <= gpus_of(limits)
    assert loaded.evaluate.cpus <= limits["cpu"]


def gpus_of(limits):
    return limits.get("nvidia.com/gpu", 0)


@pytest.mark.parametrize(("where", "cluster"), all_clusters(), ids=[w for w, _ in all_clusters()])
def test_ray_s_parameters_exist_and_fit_the_machine(where, cluster):
    from ray.scripts.scripts import start

    options = {o for p in start.params for o in p.opts}
    assert cluster["rayVersion"] == LOCK["ray"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        parameters = group["rayStartParams"]
        assert {f"--{name}" for name in parameters} <= options
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        [shared] = [v["emptyDir"] for v in pod["volumes"] if v["name"] == "shared-mem"]
        assert shared["medium"] == "Memory"
        [mount] = [m for m in container["volumeMounts"] if m["name"] == "shared-mem"]
        assert mount["mountPath"] == "/dev/shm"
        memory = gib(container["resources"]["limits"]["memory"])
        assert int(parameters["object-store-memory"]) <= gib(shared["sizeLimit"]) < memory
        asked = container["livenessProbe"]["httpGet"]["port"]
        assert str(asked) == parameters["dashboard-agent-listen-port"]


def test_ray_answers_where_its_health_is_asked():
    routes = text_of("ray/dashboard/modules/reporter/healthz_agent.py") + text_of(
        "ray/dashboard/modules/reporter/reporter_head.py"
    )
    open_to_all = text_of("ray/dashboard/http_server_head.py")  # without a token
    proxy = text_of("ray/serve/_private/proxy_request_response.py")
    for _, cluster in all_clusters():
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            [container] = group["template"]["spec"]["containers"]
            serves = {
                p["containerPort"] for p in container.get("ports", []) if p["name"] == "serve"
            }
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container[probe]["httpGet"]
                path = asked["path"].encode()
                if asked["port"] in serves:
                    assert path in proxy
                else:
                    assert path in routes and path in open_to_all


def test_gpu_machines_are_chosen_and_tolerated():
    for _, cluster in all_clusters():
        for group in cluster["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            limits = pod["containers"][0]["resources"]["limits"]
            assert ("nvidia.com/gpu" in limits) == bool(pod.get("nodeSelector"))
            assert ("nvidia.com/gpu" in limits) == any(
                t["key"] == "nvidia.com/gpu" for t in pod.get("tolerations", [])
            )


def test_there_is_time_to_save():
    """What a stop leaves at each turn is enough for the next: driver, Ray, Kubernetes."""
    driver = Spec.model_fields["grace_s"].default + RECORD_WHEN_STOPPED_S
    for _, cluster in clusters():
        head = cluster["headGroupSpec"]["template"]["spec"]
        [container] = head["containers"]
        env = variables(container)
        hook = container["lifecycle"]["preStop"]["exec"]["command"][-1]
        patience = int(re.search(r"monotonic\(\) \+ (\d+)", hook)[1])
        assert driver < int(env["RAY_JOB_STOP_WAIT_TIME_S"]["value"]) == patience
        drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"])
        assert patience + drain + 10 < head["terminationGracePeriodSeconds"]
        for group in cluster["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            drain = int(
                variables(pod["containers"][0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"]
            )
            assert driver < drain < pod["terminationGracePeriodSeconds"] - 10


def test_a_head_that_is_taken_away_tells_its_driver_first(tmp_path):
    script = tmp_path / "bin" / "ediffi"
    script.parent.mkdir()
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def saved(*_): pathlib.Path(sys.argv[1]).write_text('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, saved)\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    note = tmp_path / "note"
    driver = subprocess.Popen(
        [sys.executable, str(script), str(note)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout.readline() == "ready\n"
        processes = tmp_path / "proc"  # this one alone: others' are none of the test's business
        processes.mkdir()
        (processes / str(driver.pid)).symlink_to(f"/proc/{driver.pid}")
        [container] = clusters()[0][1]["headGroupSpec"]["template"]["spec"]["containers"]
        python, flag, hook = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (python, flag) == ("python", "-c")
        waiting = subprocess.Popen([sys.executable, "-c", hook.replace("/proc", str(processes))])
        assert driver.wait(timeout=60) == 143
        assert waiting.wait(timeout=60) == 0
    finally:
        driver.kill()
        driver.wait()
    assert note.read_text() == "saved"


# -- safety --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "template"), PODS, ids=IDS)
def test_every_container_is_locked_down(where, template):
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    may_ask_kubernetes = ".headGroupSpec.template" in where or "CronJob" in where
    if not may_ask_kubernetes and "ediffi-starter" not in str(pod):
        assert pod["automountServiceAccountToken"] is False
    for container in containers(template):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert "memory" in resources["limits"]


@pytest.mark.parametrize(("where", "template"), PODS, ids=IDS)
def test_every_image_is_pinned(where, template):
    for container in containers(template):
        name, tag = container["image"].split(":")
        assert tag not in ("latest", "")
        if name == "ediffi":
            assert tag == PROJECT["version"]


def test_what_a_container_writes_to_is_a_volume():
    """Its root is read-only: scratch, its home, and shared memory are not."""
    for where, template in PODS:
        for container in containers(template):
            if container["image"].startswith("ediffi") and container["name"] != "starter":
                places = {m["mountPath"] for m in container["volumeMounts"]}
                assert {"/tmp", "/home/ediffi"} <= places, where
