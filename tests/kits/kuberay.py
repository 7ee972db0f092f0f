"""The fields of KubeRay's resources (ray.io/v1, operator 1.6) that the manifests use."""

POD = {"type": "object", "required": ["spec"]}  # checked as a PodTemplate of Kubernetes
TEXT = {"type": "string"}
NUMBER = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}


def strict(properties: dict, required: tuple[str, ...] = ()) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


START = {"type": "object", "additionalProperties": TEXT}

CLUSTER = strict(
    {
        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "authOptions": strict({"mode": {"enum": ["token", "disabled"]}}, ("mode",)),
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": strict(
            {
                "version": {"enum": ["v1", "v2"]},
                "idleTimeoutSeconds": NUMBER,
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "resources": {"type": "object"},
                "securityContext": {"type": "object"},
            }
        ),
        "headGroupSpec": strict(
            {
                "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                "rayStartParams": START,
                "template": POD,
            },
            ("template",),
        ),
        "workerGroupSpecs": {
            "type": "array",
            "items": strict(
                {
                    "groupName": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
                    "labels": {"type": "object", "additionalProperties": TEXT},
                    "replicas": NUMBER,
                    "minReplicas": NUMBER,
                    "maxReplicas": NUMBER,
                    "numOfHosts": NUMBER,
                    "idleTimeoutSeconds": NUMBER,
                    "rayStartParams": START,
                    "template": POD,
                },
                ("groupName", "minReplicas", "maxReplicas", "template"),
            ),
        },
    },
    ("rayVersion", "headGroupSpec"),
)

JOB = strict(
    {
        "entrypoint": TEXT,
        "backoffLimit": NUMBER,
        "activeDeadlineSeconds": NUMBER,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": NUMBER,
        "suspend": FLAG,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "submitterConfig": strict({"backoffLimit": NUMBER}),
        "submitterPodTemplate": POD,
        "rayClusterSpec": CLUSTER,
    },
    ("entrypoint", "rayClusterSpec"),
)

SERVICE = strict(
    {
        "serveConfigV2": TEXT,
        "upgradeStrategy": strict({"type": {"enum": ["NewCluster", "None"]}}, ("type",)),
        "rayClusterDeletionDelaySeconds": NUMBER,
        "rayClusterConfig": CLUSTER,
    },
    ("serveConfigV2", "rayClusterConfig"),
)

SPECS = {
    "RayCluster": CLUSTER,
    "RayJob": JOB,
    "RayService": SERVICE,
    "RayCronJob": strict(
        {"schedule": TEXT, "suspend": FLAG, "timeZone": TEXT, "jobTemplate": JOB},
        ("schedule", "jobTemplate"),
    ),
}


def schema(kind: str) -> dict:
    return strict(
        {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": {"type": "object"},
            "spec": SPECS[kind],
        },
        ("apiVersion", "kind", "metadata", "spec"),
    )
