"""What a job is sent with, what is refused before it is, and how its log is followed."""

import pytest
import yaml
from paths import SMOKE
from ray.job_submission import JobDetails

from pipelines.jobs import client as jobs
from pipelines.jobs import portability as reach
from pipelines.jobs import submit
from pipelines.spec.pipeline import Spec

BUCKET = "s3://bucket/store"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "MLFLOW_TRACKING_TOKEN": "token",
}
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": "http://minio:9000",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    "HOME": "/home/somebody",
    **SECRETS,
}


def spec(**changes):
    return Spec.model_validate({**yaml.safe_load(SMOKE.read_text()), **changes})


def job(name, state, storage=BUCKET, **more):
    about = {jobs.PIPELINE: "smoke", jobs.STORAGE: storage}
    return JobDetails(
        type="SUBMISSION", submission_id=name, status=state, entrypoint="", metadata=about, **more
    )


# -- what travels --------------------------------------------------------------------------------


def test_addresses_travel_and_secrets_only_if_asked():
    quiet = reach.passed(spec(), ENVIRONMENT, credentials=False)
    assert quiet == {k: v for k, v in ENVIRONMENT.items() if k not in {*SECRETS, "HOME"}}
    asked = reach.passed(spec(), ENVIRONMENT, credentials=True)
    assert asked == {**quiet, **SECRETS}


def test_what_the_spec_says_is_not_sent_beside_it():
    """Ray refuses a driver that sets a variable which its job has set."""
    said = spec(
        s3={"endpoint_url": "http://other:9000", "key": "k", "secret": "s", "region": "here"},
        tracking="http://other:5000",
    )
    asked = reach.passed(said, ENVIRONMENT, credentials=True)
    assert asked == {"MLFLOW_TRACKING_TOKEN": "token"}


@pytest.mark.parametrize(
    ("changes", "environment", "named"),
    [
        ({"s3": {"key": "k", "secret": "hush"}}, {}, "`s3.key:`"),
        ({"tracking": "http://me:hush@mlflow:5000"}, {}, "`tracking:`"),
        ({}, {"MLFLOW_TRACKING_URI": "http://me:hush@mlflow:5000"}, "MLFLOW_TRACKING_URI"),
    ],
)
def test_secrets_in_other_places_are_not_sent_unasked_either(changes, environment, named):
    with pytest.raises(ValueError, match="--pass-credentials") as refused:
        reach.passed(spec(**changes), environment, credentials=False)
    assert named in str(refused.value) and "hush" not in str(refused.value)
    reach.passed(spec(**changes), environment, credentials=True)


@pytest.mark.parametrize(
    ("changes", "storage", "variables", "named"),
    [
        ({}, "/data/store", {}, "storage /data/store"),
        ({}, "file:///data/store", {}, "storage file:"),
        ({"tracking": "sqlite:////tmp/mlflow.db"}, BUCKET, {}, "`tracking:`"),
        ({"s3": {"endpoint_url": "http://127.0.0.1:9000"}}, BUCKET, {}, "`s3.endpoint_url:`"),
        ({}, BUCKET, {"MLFLOW_TRACKING_URI": "http://localhost:5000"}, "MLFLOW_TRACKING_URI"),
    ],
)
def test_what_only_this_machine_reaches_is_refused_for_a_cluster_elsewhere(
    changes, storage, variables, named
):
    with pytest.raises(ValueError, match="cluster is not") as refused:
        reach.check_reach(spec(**changes), storage, variables)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": {"train": {"path": "pairs"}, "validation": {"path": "/data"}}}, "data.train"),
        ({"encoders": {"t5": "t5-here", "clip": "ViT-L-14"}}, "encoders.t5"),
        ({"tracking": "sqlite:///mlflow.db"}, "tracking"),
    ],
)
def test_paths_from_this_folder_are_refused_as_the_job_works_in_another(
    changes, named, tmp_path, monkeypatch
):
    (tmp_path / "t5-here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="another folder") as refused:
        reach.check_paths(spec(**changes))
    assert f"`{named}" in str(refused.value)


def test_names_whole_paths_and_addresses_are_not():
    whole = {"train": {"path": "/data/pairs"}, "validation": {"path": "s3://bucket/pairs"}}
    encoders = {"t5": "google/t5-v1_1-xxl", "clip": "/models/clip"}
    reach.check_paths(spec(data=whole, encoders=encoders, tracking="sqlite:////data/mlflow.db"))


def test_what_others_reach_is_not():
    reach.check_reach(spec(tracking="http://mlflow:5000"), BUCKET, ENVIRONMENT)


def test_a_spec_must_lie_in_the_folder_that_is_sent(tmp_path):
    inside = tmp_path / "specs" / "a.yaml"
    assert submit.within(inside, tmp_path) == "specs/a.yaml"
    with pytest.raises(ValueError, match="--working-dir"):
        submit.within(tmp_path / "a.yaml", tmp_path / "specs")


# -- one job a pipeline --------------------------------------------------------------------------


def test_ids_count_the_attempts():
    assert submit.next_id("smoke", BUCKET, []) == "smoke-1"
    known = [job("smoke-9", "STOPPED"), job("smoke-10", "SUCCEEDED"), job("smoke-big-70", "FAILED")]
    assert submit.next_id("smoke", BUCKET, known) == "smoke-11"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_pipeline_at_work_is_not_sent_again(state):
    known = [job("smoke-2", state), job("smoke-1", "FAILED")]
    with pytest.raises(ValueError, match="smoke-2"):
        submit.next_id("smoke", BUCKET, known)
    assert submit.next_id("smoke", "s3://other/store", known) == "smoke-3"


def test_mistakes_are_found_without_the_data():
    raw = yaml.safe_load(SMOKE.read_text())
    raw["stages"]["base"]["workers"] = {"activation_checkpointing": [9]}
    far = {"train": {"path": "s3://far/pairs"}, "validation": {"path": "s3://far/others"}}
    wrong = [str(f) for f in reach.findings(spec(stages=raw["stages"], data=far, encoders={}))]
    assert any(
        w.startswith("error: base: `stages.base.workers.activation_checkpointing`") for w in wrong
    )
    assert not any(f.is_error for f in reach.findings(spec()))


class Quicker:
    """A job server that another took the same pipeline to a moment ago."""

    sent = False

    def list_jobs(self):
        return [job("smoke-1", "PENDING")] if self.sent else []

    def submit_job(self, **_):
        self.sent = True
        raise RuntimeError("Traceback …\nValueError: Job with submission_id smoke-1 exists.\n.\n")


def test_of_two_that_send_at_once_one_is_told_of_the_other(monkeypatch):
    monkeypatch.setattr(jobs, "is_here", lambda _: False)
    with pytest.raises(ValueError, match="is job smoke-1 already"):
        submit.submit(
            Quicker(), spec(), SMOKE, BUCKET, verb="run", working_dir=None, credentials=False
        )


# -- how it ended --------------------------------------------------------------------------------


def test_the_exit_code_is_the_job_s():
    assert jobs.exit_code(job("a", "SUCCEEDED", driver_exit_code=0)) == 0
    assert jobs.exit_code(job("a", "FAILED", driver_exit_code=2)) == 2
    assert jobs.exit_code(job("a", "STOPPED")) == 143
    never = job("a", "FAILED", error_type="RUNTIME_ENV_SETUP_FAILED", message="no\nspace")
    assert jobs.exit_code(never) == 1
    assert jobs.why_not_begun(never) == "no space"


class Broken:
    """A job server whose connection breaks in the middle of a job."""

    log = "one\ntwo\nthree\n"

    def __init__(self):
        self.asked = 0

    async def tail_job_logs(self, _):
        self.asked += 1
        yield self.log[:4]
        yield self.log[4:6]
        if self.asked == 1:
            raise RuntimeError("WebSocket connection closed unexpectedly")
        yield self.log[6:8]

    def get_job_info(self, _):
        return job("a-1", "RUNNING" if self.asked < 2 else "SUCCEEDED", driver_exit_code=0)

    def get_job_logs(self, _):
        return self.log


def test_a_log_is_shown_once_though_the_connection_breaks(monkeypatch):
    monkeypatch.setattr(jobs, "LOOK_S", 0.0)
    shown = []
    ended = jobs.follow(Broken(), "a-1", shown.append)
    assert "".join(shown) == Broken.log
    assert ended.status == "SUCCEEDED"


def test_an_address_that_nobody_listens_at_is_one_line(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(ValueError, match="no job server answers"):
        jobs.connect("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="http://HOST:8265"):
        jobs.connect("ray-head:8265")
