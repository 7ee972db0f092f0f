"""Starts the retraining of this tick as a RayJob, and waits for its end: one at a time.

The RayJob's name is always the same, so there is one or none. One that another pod started and
that still runs is waited for; a pod that is started again finds its own, and starts no second.
What it is made of stands in a RayJob that is suspended for good, the template.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TICK = "ediffi/tick"
OVER = {"Complete", "Failed"}
LOOK_EVERY_S = 15.0

Job = dict[str, Any]


class RayJobs:
    """The RayJobs of a namespace, as Kubernetes has them."""

    def __init__(self, api: str, namespace: str, token: Path, tls: ssl.SSLContext | None) -> None:
        self.url = f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self.token, self.tls = token, tls

    def get(self, name: str) -> Job | None:
        return self._ask("GET", f"/{name}", missing_is_fine=True)

    def create(self, job: Job) -> None:
        self._ask("POST", "", job)

    def delete(self, name: str) -> None:
        """Gone with all that belongs to it when this returns."""
        self._ask("DELETE", f"/{name}", {"propagationPolicy": "Foreground"}, missing_is_fine=True)
        while self.get(name):
            time.sleep(LOOK_EVERY_S)

    def _ask(
        self, method: str, path: str, body: Job | None = None, missing_is_fine: bool = False
    ) -> Job | None:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                # Read anew each time: Kubernetes replaces it within the hour.
                "Authorization": f"Bearer {self.token.read_text()}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.tls) as answer:
                found: Job = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404 and missing_is_fine:
                return None
            sys.exit(f"{method} rayjobs{path}: {error.code} {error.read().decode()[:500]}")


def state(job: Job) -> str:
    return str(job.get("status", {}).get("jobDeploymentStatus", ""))


def made_of(template: Job, name: str, tick: str) -> Job:
    """The job itself: the template's, but not suspended."""
    meta = template["metadata"]
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": name,
            "labels": meta.get("labels", {}),
            "annotations": {TICK: tick},
        },
        "spec": template["spec"] | {"suspend": False},
    }


def start(jobs: RayJobs, template: str, name: str, tick: str) -> int:
    """→ exit status: 0 if the retraining ended well."""
    job = jobs.get(name)
    mine = job is not None and job["metadata"].get("annotations", {}).get(TICK) == tick
    if job is not None and state(job) in OVER and not mine:
        jobs.delete(name)
        job = None
    if job is None:
        pattern = jobs.get(template)
        if pattern is None:
            sys.exit(f"there is no RayJob {template} to start from; apply infra/k8s/retrain")
        jobs.create(made_of(pattern, name, tick))
        print(f"{name} is started", flush=True)
    elif not mine:
        print(f"{name} still runs, from an earlier tick; it is waited for", flush=True)
    said = None
    while (job := jobs.get(name)) and (now := state(job)) not in OVER:
        if now != said:
            print(f"{name}: {now or 'New'}", flush=True)
        said = now
        time.sleep(LOOK_EVERY_S)
    if job is None:
        print(f"{name} was deleted before its end", flush=True)
        return 1
    print(f"{name}: {state(job)} {job['status'].get('message', '')}".rstrip(), flush=True)
    return 0 if state(job) == "Complete" and job["status"].get("jobStatus") == "SUCCEEDED" else 1


def main() -> int:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    jobs = RayJobs(
        f"https://{host}:{port}",
        (ACCOUNT / "namespace").read_text(),
        ACCOUNT / "token",
        ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")),
    )
    template, name = sys.argv[1:]
    return start(jobs, template, name, os.environ["TICK"])


if __name__ == "__main__":
    sys.exit(main())
