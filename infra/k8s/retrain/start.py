"""Starts the retraining of this tick as a RayJob, and waits for its end: one at a time.

The RayJob's name is always the same, so there is one or none. One that another pod started and
that still runs is waited for; a pod that is started again finds its own, and starts no second.
What it is made of stands in a RayJob that is suspended for good, the template.

Kubernetes may be busy, restart or be cut off for a while, and may have done what it never
confirmed: so every request can be repeated, and is, until the environment's ``PATIENCE_S`` is over.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from http.client import HTTPException
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TICK = "ediffi/tick"
OVER = {"Complete", "Failed"}
LOOK_EVERY_S, TIMEOUT_S = 15.0, 30.0
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
PATIENCE_S = 1800.0
"""How long a request is repeated, in seconds, unless the environment's ``PATIENCE_S`` says more."""

PASSING = {401, 404, 408, 409, 425, 429}
"""Statuses that pass, as all from 500 on do. 401: Kubernetes has just replaced the token. 404, but
for a missing job: it starts, and knows no RayJobs yet. 409: two have changed a quota at once."""

Job = dict[str, Any]


class RayJobs:
    """The RayJobs of a namespace, as Kubernetes has them."""

    def __init__(
        self,
        api: str,
        namespace: str,
        token: Path,
        tls: ssl.SSLContext | None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.url = f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self.token, self.tls, self.patience_s = token, tls, patience_s

    def get(self, name: str) -> Job | None:
        return self._ask("GET", f"/{name}", none_if={"NotFound"})

    def create(self, job: Job) -> bool:
        """False if there is one of the name: of a request that was not confirmed, or another's."""
        return self._ask("POST", "", job, none_if={"AlreadyExists"}) is not None

    def delete(self, job: Job) -> None:
        """Gone with all that belongs to it when this returns; another of the name stays."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        while (found := self.get(name)) and found["metadata"]["uid"] == uid:
            self._ask("DELETE", f"/{name}", body, none_if={"NotFound", "Conflict"})
            time.sleep(LOOK_EVERY_S)

    def _ask(
        self, method: str, path: str, body: Job | None = None, none_if: Collection[str] = ()
    ) -> Job | None:
        """The answer; None if Kubernetes refuses for one of these reasons."""
        since, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                return self._try(method, path, body)
            except urllib.error.HTTPError as error:
                reason, why = refusal(error)
                if reason in none_if:
                    return None
                passes = error.code >= 500 or error.code in PASSING
            except (OSError, HTTPException, ValueError) as error:  # no answer, or half of one
                why, passes = str(error) or type(error).__name__, True
            waited = time.monotonic() - since
            if not passes or waited > self.patience_s:
                tried = f"; tried for {waited:.0f} s" if passes else ""
                sys.exit(f"{method} rayjobs{path}: {why}{tried}")
            if pause == FIRST_PAUSE_S:
                print(f"{method} rayjobs{path}: {why}; it is tried again", flush=True)
            time.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)

    def _try(self, method: str, path: str, body: Job | None) -> Job:
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
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self.tls) as answer:
            found: Job = json.load(answer)
            return found


def refusal(error: urllib.error.HTTPError) -> tuple[str, str]:
    """Kubernetes' name for the reason, and the whole in words."""
    try:
        said = error.read().decode(errors="replace")
    except (OSError, HTTPException):
        said = ""
    try:
        reason = json.loads(said).get("reason", "")
    except (ValueError, AttributeError):  # of a proxy in between
        reason = ""
    return reason, f"{error.code} {said[:500]}".strip()


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


def is_of(job: Job | None, tick: str) -> bool:
    return job is not None and job["metadata"].get("annotations", {}).get(TICK) == tick


def start(jobs: RayJobs, template: str, name: str, tick: str) -> int:
    """→ exit status: 0 if the retraining ended well."""
    job = jobs.get(name)
    if job is not None and state(job) in OVER and not is_of(job, tick):
        jobs.delete(job)
        job = jobs.get(name)
    if job is None:
        pattern = jobs.get(template)
        if pattern is None:
            sys.exit(f"there is no RayJob {template} to start from; apply infra/k8s/retrain")
        if jobs.create(made_of(pattern, name, tick)) or is_of(job := jobs.get(name), tick):
            print(f"{name} is started", flush=True)
    if job is not None and not is_of(job, tick):
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
        float(os.environ.get("PATIENCE_S", PATIENCE_S)),
    )
    template, name = sys.argv[1:]
    return start(jobs, template, name, os.environ["TICK"])


if __name__ == "__main__":
    sys.exit(main())
