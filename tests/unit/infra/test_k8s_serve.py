"""The RayService fits Serve, the project's own settings, and the machines that it asks for."""

import yaml
from manifests import K8S, containers, find, rendered

from pipelines.spec.loading import load
from pipelines.spec.serving import Serving

SERVICE = find("RayService", "ediffi", "serve")
SPEC = SERVICE["spec"]
CLUSTER = SPEC["rayClusterConfig"]
CONFIG = yaml.safe_load(SPEC["serveConfigV2"])
[APPLICATION] = CONFIG["applications"]
ARGS = Serving.model_validate(APPLICATION["args"])


def test_serve_takes_the_configuration():
    from ray.serve.schema import ServeDeploySchema

    taken = ServeDeploySchema.model_validate(CONFIG)
    assert taken.http_options.host == ARGS.host == "0.0.0.0"
    assert taken.http_options.port == ARGS.port


def test_the_model_is_one_that_the_pipeline_of_the_manifests_makes():
    pipeline = load(K8S / "ray" / "pipeline.yaml")
    assert ARGS.model == f"{pipeline.name}@champion"
    assert ARGS.storage == pipeline.storage


def test_the_service_answers_to_its_names_in_the_cluster():
    """KubeRay names the Service after the RayService."""
    name, namespace = SERVICE["metadata"]["name"], SERVICE["metadata"]["namespace"]
    service = f"{name}-serve-svc"
    assert ARGS.allowed_hosts == [service, f"{service}.{namespace}", f"{service}.{namespace}.svc"]


def test_every_replica_has_a_machine():
    [group] = CLUSTER["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    seats = min(limits["nvidia.com/gpu"] // ARGS.replicas.gpus, limits["cpu"] // ARGS.replicas.cpus)
    assert seats * group["minReplicas"] >= ARGS.replicas.min
    assert seats * group["maxReplicas"] >= ARGS.replicas.max
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_what_is_being_drawn_is_finished_when_a_machine_or_a_cluster_goes():
    assert SPEC["rayClusterDeletionDelaySeconds"] > ARGS.queue.deadline_s
    for group in [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
        drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert ARGS.queue.deadline_s < drain < pod["terminationGracePeriodSeconds"] - 10


def test_the_token_comes_from_the_secret_on_every_machine():
    """Ray may build the application on any, and what it lacks there it would refuse to serve."""
    for group in [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]:
        for container in containers(group["template"]):
            [entry] = [e for e in container["env"] if e["name"] == ARGS.token_variable]
            assert entry["valueFrom"]["secretKeyRef"] == {"name": "ediffi-serve", "key": "token"}


def test_a_machine_gets_requests_once_serve_s_proxy_runs_on_it():
    [group] = CLUSTER["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["port"] == ARGS.port


def test_callers_reach_the_pictures_and_nothing_else():
    [policy] = [r for r in rendered("serve") if r["kind"] == "NetworkPolicy"]
    open_to = {
        str(source["podSelector"]["matchLabels"]): {p["port"] for p in rule.get("ports", [])}
        for rule in policy["spec"]["ingress"]
        for source in rule["from"]
    }
    assert open_to[str({"ediffi-caller": "true"})] == {ARGS.port}
    [everything] = [label for label, ports in open_to.items() if not ports]
    assert everything == str({"app.kubernetes.io/component": "serve"})
