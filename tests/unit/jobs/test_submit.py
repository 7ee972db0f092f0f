"""What is sent with a job, what is refused before, and how its log is followed."""

import pytest
import yaml
from paths import SMOKE
from ray.job_submission import JobDetails

from pipelines.jobs import client as jobs
from pipelines.jobs import portability, submit
from pipelines.spec.notify import SMTP_PASSWORD
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


def test_addresses_are_sent_and_secrets_only_on_request():
    quiet = portability.job_environment(spec(), ENVIRONMENT, credentials=False)
    assert quiet == {k: v for k, v in ENVIRONMENT.items() if k not in {*SECRETS, "HOME"}}
    asked = portability.job_environment(spec(), ENVIRONMENT, credentials=True)
    assert asked == {**quiet, **SECRETS}


def test_the_password_of_an_e_mail_account_is_sent_if_the_spec_has_one():
    environment = {SMTP_PASSWORD: "hush"}
    email = {"to": ["a@b.example"], "sender": "c@d.example", "server": "e.example", "user": "me"}
    told = spec(notify={"email": email})
    assert portability.job_environment(told, environment, credentials=False) == {}
    assert portability.job_environment(told, environment, credentials=True) == environment
    assert portability.job_environment(spec(), environment, credentials=True) == {}


def test_settings_of_the_spec_are_not_sent_as_variables_too():
    """Ray refuses a driver that sets a variable that its job has set."""
    said = spec(
        s3={"endpoint_url": "http://other:9000", "key": "k", "secret": "s", "region": "here"},
        tracking="http://other:5000",
    )
    asked = portability.job_environment(said, ENVIRONMENT, credentials=True)
    assert asked == {"MLFLOW_TRACKING_TOKEN": "token"}


@pytest.mark.parametrize(
    ("changes", "environment", "named"),
    [
        ({"s3": {"key": "k", "secret": "hush"}}, {}, "`s3.key:`"),
        ({"tracking": "http://me:hush@mlflow:5000"}, {}, "`tracking:`"),
        ({"tracking": "mysql://db/m?user=me&password=hush"}, {}, "`tracking:`"),
        ({"notify": {"webhook": "https://hooks.example/hush"}}, {}, "`notify.webhook:`"),
        ({"notify": {"slack": "https://hooks.example/hush"}}, {}, "`notify.slack:`"),
        ({}, {"MLFLOW_TRACKING_URI": "postgresql://db/m?password=hush"}, "MLFLOW_TRACKING_URI"),
        ({}, {"MLFLOW_TRACKING_URI": "http://me:hush@mlflow:5000"}, "MLFLOW_TRACKING_URI"),
    ],
)
def test_secrets_in_other_places_are_sent_only_on_request(changes, environment, named):
    with pytest.raises(ValueError, match="--pass-credentials") as refused:
        portability.job_environment(spec(**changes), environment, credentials=False)
    assert named in str(refused.value) and "hush" not in str(refused.value)
    portability.job_environment(spec(**changes), environment, credentials=True)


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
def test_local_addresses_are_refused_for_a_remote_cluster(changes, storage, variables, named):
    with pytest.raises(ValueError, match="cluster is not") as refused:
        portability.check_reachable(spec(**changes), storage, variables)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": {"train": {"path": "pairs"}, "validation": {"path": "/data"}}}, "data.train"),
        ({"encoders": {"t5": "t5-here", "clip": "ViT-L-14"}}, "encoders.t5"),
        ({"tracking": "sqlite:///mlflow.db"}, "tracking"),
        (
            {"evaluate": {"features": {"a": {"kind": "inception", "weights": "w.pth"}}}},
            "evaluate.features.a.weights",
        ),
        ({"evaluate": {"features": {"a": {"kind": "clip", "model": "t5-here"}}}}, "evaluate.feat"),
    ],
)
def test_relative_paths_are_refused(changes, named, tmp_path, monkeypatch):
    (tmp_path / "t5-here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="another folder") as refused:
        portability.check_paths(spec(**changes))
    assert f"`{named}" in str(refused.value)


def test_names_absolute_paths_and_addresses_are_accepted():
    whole = {"train": {"path": "/data/pairs"}, "validation": {"path": "s3://bucket/pairs"}}
    encoders = {"t5": "google/t5-v1_1-xxl", "clip": "/models/clip"}
    portability.check_paths(
        spec(data=whole, encoders=encoders, tracking="sqlite:////data/mlflow.db")
    )


def test_addresses_that_others_can_reach_are_accepted():
    portability.check_reachable(spec(tracking="http://mlflow:5000"), BUCKET, ENVIRONMENT)


def test_a_spec_must_be_inside_the_working_dir(tmp_path):
    inside = tmp_path / "specs" / "a.yaml"
    assert submit.path_inside(inside, tmp_path) == "specs/a.yaml"
    with pytest.raises(ValueError, match="--working-dir"):
        submit.path_inside(tmp_path / "a.yaml", tmp_path / "specs")


# -- one job a pipeline --------------------------------------------------------------------------


def test_ids_count_the_attempts():
    assert submit.next_job_id("smoke", BUCKET, []) == "smoke-1"
    known = [job("smoke-9", "STOPPED"), job("smoke-10", "SUCCEEDED"), job("smoke-big-70", "FAILED")]
    assert submit.next_job_id("smoke", BUCKET, known) == "smoke-11"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_running_pipeline_is_not_submitted_again(state):
    known = [job("smoke-2", state), job("smoke-1", "FAILED")]
    with pytest.raises(ValueError, match="smoke-2"):
        submit.next_job_id("smoke", BUCKET, known)
    assert submit.next_job_id("smoke", "s3://other/store", known) == "smoke-3"


def test_mistakes_are_found_without_the_data():
    raw = yaml.safe_load(SMOKE.read_text())
    raw["stages"]["base"]["workers"] = {"activation_checkpointing": [9]}
    far = {"train": {"path": "s3://far/pairs"}, "validation": {"path": "s3://far/others"}}
    wrong = [
        str(f)
        for f in portability.lint_without_data(spec(stages=raw["stages"], data=far, encoders={}))
    ]
    assert any(
        w.startswith("error: base: `stages.base.workers.activation_checkpointing`") for w in wrong
    )
    assert not any(f.is_error for f in portability.lint_without_data(spec()))
    inception = {"kind": "inception", "weights": "/far/weights.pth"}
    scored = spec(evaluate={"clip": "ViT-B-32", "features": {"inception": inception}})
    [few] = [f for f in portability.lint_without_data(scored) if f.is_error]
    assert "kid needs 1,000 pictures" in few.text


class Quicker:
    """A job server to which someone else has just submitted the same pipeline."""

    sent = False

    def list_jobs(self):
        return [job("smoke-1", "PENDING")] if self.sent else []

    def submit_job(self, **_):
        self.sent = True
        raise RuntimeError("Traceback …\nValueError: Job with submission_id smoke-1 exists.\n.\n")


def test_of_two_concurrent_submits_one_is_refused(monkeypatch):
    monkeypatch.setattr(jobs, "is_local_cluster", lambda _: False)
    with pytest.raises(ValueError, match="is already job smoke-1"):
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
    assert jobs.startup_error(never) == "no space"


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
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    shown = []
    ended = jobs.follow(Broken(), "a-1", shown.append)
    assert "".join(shown) == Broken.log
    assert ended.status == "SUCCEEDED"


def test_a_dead_address_is_a_one_line_error(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(ValueError, match="no job server answers"):
        jobs.connect("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="http://HOST:8265"):
        jobs.connect("ray-head:8265")
