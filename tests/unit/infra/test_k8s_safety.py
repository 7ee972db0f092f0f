"""What pods may do and reach, and what the account that starts retrainings may create."""

import ipaddress
import re

from manifests import K8S, all_clusters, all_pods, containers, each, find

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "secret", "projected"}
"""Kinds of volumes of the standard `restricted`, besides claims."""


def test_the_namespace_enforces_what_its_pods_keep_to():
    """Kubernetes' pod security standard `restricted`, which is checked when a pod is made."""
    labels = find("Namespace", "ediffi")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for where, template in all_pods():
        pod = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), where
        assert pod["securityContext"]["runAsUser"] != 0, where
        assert not {"sysctls", "supplementalGroups", "windowsOptions"} & set(pod["securityContext"])
        for volume in pod.get("volumes", []):
            assert {*volume} - {"name"} <= VOLUMES | {"persistentVolumeClaim"}, where
        for container in containers(template):
            assert all("hostPort" not in port for port in container.get("ports", [])), where
    for where, cluster in all_clusters():  # KubeRay adds the autoscaler to the head's pod
        if "autoscalerOptions" not in cluster:
            continue
        context = cluster["autoscalerOptions"]["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, where
        assert context["capabilities"] == {"drop": ["ALL"]}, where


def test_the_starter_can_create_the_template_s_job_and_no_other():
    """As far as its parts can be checked without Kubernetes, which evaluates the expressions."""
    policy = find("ValidatingAdmissionPolicy", "ediffi-starter", "retrain-policy")["spec"]
    binding = find("ValidatingAdmissionPolicyBinding", "ediffi-starter", "retrain-policy")["spec"]
    account = find("ServiceAccount", "ediffi-starter", "retrain")["metadata"]
    [(_, cron)] = each("CronJob")
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    template, name = pod["containers"][0]["args"]
    [condition] = policy["matchConditions"]
    asking = f"system:serviceaccount:{account['namespace']}:{pod['serviceAccountName']}"
    assert condition["expression"] == f'request.userInfo.username == "{asking}"'
    assert policy["failurePolicy"] == "Fail" and binding["validationActions"] == ["Deny"]
    assert binding["paramRef"] == {
        "name": template,
        "namespace": account["namespace"],
        "parameterNotFoundAction": "Deny",
    }
    job = find("RayJob", template, "retrain")
    assert policy["paramKind"] == {"apiVersion": job["apiVersion"], "kind": job["kind"]}
    [rule] = policy["matchConstraints"]["resourceRules"]
    rights = find("Role", "ediffi-starter", "retrain")["rules"]
    assert {v for r in rights for v in r["verbs"]} <= {"create", "get", "delete"}
    assert "CREATE" in rule["operations"] and rule["resources"] == ["rayjobs"]
    validations = [v["expression"] for v in policy["validations"]]
    assert validations[0] == f'object.metadata.name == "{name}"'
    tick = re.search(r'TICK = "(.+)"', (K8S / "retrain" / "start.py").read_text())[1]
    assert f'.all(name, name == "{tick}")' in validations[2]


def test_what_pods_reach_has_a_destination_and_no_credentials_of_a_machine():
    """A rule without `to` means everywhere; clouds answer at 169.254.169.254 with credentials."""
    for _, policy in each("NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            assert rule["to"], policy["metadata"]["name"]
            inside_alone = all("ipBlock" not in to for to in rule["to"])
            assert rule.get("ports") or inside_alone, policy["metadata"]["name"]
            for block in (to["ipBlock"] for to in rule["to"] if "ipBlock" in to):
                reached = ipaddress.ip_network(block["cidr"])
                without = [ipaddress.ip_network(other) for other in block.get("except", [])]
                for address in map(ipaddress.ip_address, ("169.254.169.254", "100.100.100.200")):
                    is_left_out = any(address in other for other in without)
                    assert address not in reached or is_left_out


def test_only_heads_and_the_starter_reach_kubernetes():
    asking = {
        str(p["spec"]["podSelector"]["matchLabels"])
        for _, p in each("NetworkPolicy")
        for rule in p["spec"].get("egress", [])
        if 6443 in [port["port"] for port in rule.get("ports", [])]
    }
    assert asking == {
        str({"ray.io/node-type": "head"}),
        str({"app.kubernetes.io/component": "starter"}),
    }
