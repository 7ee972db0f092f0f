"""The image and the compose file, as far as they can be checked without a Docker engine."""

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest
import yaml
from commands import understood
from paths import ROOT

from pipelines.executor.driver import RECORD_WHEN_STOPPED_S
from pipelines.spec.loading import load
from pipelines.spec.pipeline import Spec
from pipelines.spec.serving import Queue, Serving

INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
GPU = yaml.safe_load((INFRA / "compose.gpu.yaml").read_text())
README = (INFRA / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions():
    """The Dockerfile as (instruction, arguments), comments out and continued lines joined."""
    text = re.sub(r"^#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.M)
    text = re.sub(r"\\\n\s*", "", text)
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


DOCKERFILE = instructions()


def arguments(instruction):
    return [rest for name, rest in DOCKERFILE if name == instruction]


COPIED = [source for rest in arguments("COPY") for source in rest.split()[:-1]]


def environment():
    """(where, variable, value) of every variable that the image or a service sets."""
    for rest in arguments("ENV"):
        for name, value in re.findall(r"(\w+)=(\S+)", rest):
            yield "image", name, value
    for service, content in SERVICES.items():
        for name, value in content.get("environment", {}).items():
            yield service, name, value


ENVIRONMENT = list(environment())


# -- the image -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", COPIED)
def test_what_the_image_copies_is_there_and_is_let_through(source):
    assert (ROOT / source).exists()
    through = False
    for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        named = fnmatch(source.split("/")[0], pattern) or source == pattern
        if line and not line.startswith("#") and named:
            through = line.startswith("!")
    assert through


def test_the_build_sees_nothing_else():
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    ours = {source for source in COPIED if source.startswith("infra/")}
    assert let_in == ours | {source.split("/")[0] for source in set(COPIED) - ours}
    assert "*" in ignored


def test_the_image_holds_the_lock_and_the_project_and_runs_as_a_user():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = "--constraint /src/requirements.lock --requirements /src/pyproject.toml"
    assert any(pinned in re.sub(r"\s+", " ", run) for run in arguments("RUN"))
    assert any(run.endswith("--no-deps /src") for run in arguments("RUN"))
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {p.removesuffix("*") for p in packages} <= set(COPIED)
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= set(COPIED)
    [entry] = arguments("ENTRYPOINT")
    assert yaml.safe_load(entry)[0] in project["project"]["scripts"]
    [user] = arguments("USER")
    assert any(f"useradd --create-home --uid 1000 {user}" in run for run in arguments("RUN"))
    [base] = arguments("FROM")
    minimum = project["project"]["requires-python"].removeprefix(">=")
    assert base == f"python:{minimum}-slim"


def test_every_folder_that_a_volume_covers_is_the_user_s():
    [made] = [run for run in arguments("RUN") if "mkdir" in run]
    for service in ("ray", "serve", "ediffi"):
        for volume in SERVICES[service]["volumes"]:
            name, place = volume.split(":")
            assert name in COMPOSE["volumes"]
            assert place in re.search(r"mkdir -p (.*?) &&", made)[1].split()


@pytest.mark.slow
def test_the_database_s_driver_is_the_one_that_sqlalchemy_takes():
    from sqlalchemy.engine import make_url

    uri = SERVICES["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    driver = make_url(re.sub(r"\$\{.*?\}", "x", uri)).get_dialect().driver
    names = {re.match(r"[\w-]+", d)[0] for d in PROJECT["dependencies"]}
    assert {driver, "boto3"} <= names


def test_the_lock_brings_torch_s_cuda_build_with_its_libraries():
    """One image is for CPUs and GPUs: nothing but the driver is missing where there is a GPU."""
    import importlib.metadata

    import torch

    assert torch.version.cuda
    lock = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().split()}
    needed = {
        re.match(r"[\w-]+", r)[0]
        for r in importlib.metadata.requires("torch")
        if re.match("nvidia-|cuda-|triton", r)
    }
    assert needed and needed <= lock


def test_what_the_image_for_cpus_keeps_of_cuda_is_in_the_lock():
    [kept] = re.findall(r"^kept='(.*)'$", (INFRA / "drop_cuda.sh").read_text(), flags=re.M)
    lock = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().split()}
    assert set(kept.split("|")) < {name for name in lock if name.startswith("nvidia-")}


def test_ray_brings_its_job_server():
    [ray] = [d for d in PROJECT["dependencies"] if d.startswith("ray")]
    assert "default" in re.search(r"\[(.*)\]", ray)[1].split(",")


# -- the compose file ----------------------------------------------------------------------------


def test_services_wait_for_services_that_say_when_they_are_ready():
    assert set(SERVICES) == {"postgres", "s3", "bucket", "mlflow", "ray", "serve", "ediffi"}
    waits = [w for s in SERVICES.values() for w in s.get("depends_on", {}).items()]
    assert waits
    for name, wait in waits:
        if name == "bucket":  # which makes it, and ends
            assert wait == {"condition": "service_completed_successfully"}
            assert "restart" not in SERVICES[name]
        else:
            assert wait == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[name]
    used = {v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


def test_a_gpu_is_given_to_those_that_compute():
    assert set(GPU["services"]) == {"ediffi", "ray", "serve"}


@pytest.mark.slow
def test_the_bucket_that_is_made_is_the_one_that_is_used(server, s3, monkeypatch):
    python, flag = SERVICES["bucket"]["entrypoint"]
    assert (python, flag) == ("python", "-c")
    [script] = SERVICES["bucket"]["command"]
    for _ in range(2):  # and finds it the second time
        subprocess.run([sys.executable, "-c", script], check=True)
    fs = fsspec.filesystem("s3")
    made = [f for f in fs.ls("") if f != "bucket"]
    assert [urlsplit(server["artifacts_destination"]).netloc] == made


def test_the_bucket_is_called_where_it_is():
    port = next(c.split("=")[1] for c in SERVICES["s3"]["command"] if c.startswith("-s3.port="))
    called = [v for _, n, v in ENVIRONMENT if n in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")]
    assert set(called) == {f"http://s3:{port}"} and len(called) == 5
    assert f":{port}/" in SERVICES["s3"]["healthcheck"]["test"][-1]


def test_ray_s_options_exist_and_its_port_is_the_job_server_s():
    from ray.scripts.scripts import start

    assert SERVICES["ray"]["entrypoint"] == ["ray", "start"]
    given = start.make_context("start", list(SERVICES["ray"]["command"])).params
    assert given["head"] and given["block"]
    assert SERVICES["ray"]["ports"] == [f"127.0.0.1:{given['dashboard_port']}:8265"]
    assert given["object_store_memory"] < 2**30  # shm_size: 1gb
    stop = Spec.model_fields["grace_s"].default + RECORD_WHEN_STOPPED_S
    patience = int(SERVICES["ray"]["environment"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert stop < patience < int(SERVICES["ray"]["stop_grace_period"].removesuffix("s"))
    assert stop < int(SERVICES["ediffi"]["stop_grace_period"].removesuffix("s"))


def test_the_service_s_command_is_ours_and_it_listens_where_it_is_asked():
    service = SERVICES["serve"]
    words = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in service["command"]]
    understood(["ediffi", *words])
    given = dict(word.removeprefix("--").split("=") for word in words[2:])
    assert words[1] == load(ROOT / "pipelines/specs/demo.yaml").name
    assert f"/work/{given['storage']}" in [v.split(":")[1] for v in service["volumes"]]
    assert given["allow-host"] in SERVICES
    assert service["ports"] == [f"127.0.0.1:{given['port']}:{given['port']}"]
    assert f"http://localhost:{given['port']}/readyz" in service["healthcheck"]["test"][-1]
    patience = int(service["stop_grace_period"].removesuffix("s"))
    assert patience > Queue().deadline_s + 20  # what it has taken on, and the end of Ray


def test_the_build_s_files_are_where_compose_looks():
    build = SERVICES["mlflow"]["build"]
    assert (INFRA / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert SERVICES["ediffi"]["image"] == SERVICES["mlflow"]["image"]


def read_by_the_project():
    text = "\n".join(p.read_text() for p in (ROOT / "pipelines").rglob("*.py"))
    return set(re.findall(r"environ\.(?:get|setdefault)\(\s*\"(\w+)\"", text))


def read_by_mlflow():
    import mlflow.cli
    from mlflow import environment_variables

    options = {p.envvar for c in mlflow.cli.cli.commands.values() for p in c.params}
    return {name for name in dir(environment_variables) if name.startswith("MLFLOW_")} | options


@pytest.mark.parametrize(("where", "name"), [(w, n) for w, n, _ in ENVIRONMENT])
def test_every_variable_is_read_by_someone(where, name):
    if where == "postgres":  # by the image's own entry point
        assert name in {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
    elif name.startswith("NVIDIA_"):
        assert name == "NVIDIA_DRIVER_CAPABILITIES"  # by NVIDIA's container runtime
    elif name.startswith("AWS_"):
        assert name in read_by_botocore()
    elif name == Serving.model_fields["token_variable"].default:
        assert where == "serve"
    elif where in ("ediffi", "ray", "serve") or name.startswith("EDIFFI_"):
        assert name in read_by_the_project() | read_by_ray()
    else:
        assert name in read_by_mlflow()


def read_by_botocore():
    from botocore import configprovider, credentials

    texts = [Path(m.__file__).read_text() for m in (configprovider, credentials)]
    return set(re.findall(r"AWS_[A-Z_]+", " ".join(texts)))


def read_by_ray():
    from ray.dashboard.modules.job import job_supervisor

    return set(re.findall(r"RAY_JOB_[A-Z_]+", Path(job_supervisor.__file__).read_text()))


def test_secrets_come_from_outside():
    """No password in a file: only ``${NAME:?…}``, and the file with the values is ignored."""
    for _, name, value in ENVIRONMENT:
        if re.search("PASSWORD|SECRET|TOKEN|_KEY", name) or "@" in value:
            secret = value.split("@")[0]
            assert re.search(r"(^|:)\$\{\w+:\?[^}]+\}$", secret), name
    assert ".env" in (INFRA / ".gitignore").read_text().split()


def test_ports_are_open_to_this_machine_only():
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


@pytest.fixture(scope="module")
def server():
    """The options of MLflow's server, as its own command line understands them."""
    import mlflow.cli

    assert SERVICES["mlflow"]["entrypoint"] == ["mlflow", "server"]
    command = mlflow.cli.cli.commands["server"]
    return command.make_context("server", list(SERVICES["mlflow"]["command"])).params


def test_the_server_s_options_exist_and_fit_the_services(server):
    tracking = urlsplit(SERVICES["ediffi"]["environment"]["MLFLOW_TRACKING_URI"])
    assert tracking.hostname in SERVICES
    assert server["port"] == tracking.port
    assert server["host"] == "0.0.0.0"
    assert server["workers"] in (1, "1")
    assert server["artifacts_destination"].startswith("s3://")
    assert SERVICES["mlflow"]["ports"] == [f"127.0.0.1:{tracking.port}:{tracking.port}"]


def test_mlflow_answers_to_the_names_it_is_called_by(server):
    from mlflow.server.security_utils import get_default_allowed_hosts, is_allowed_host_header

    allowed = server["allowed_hosts"].split(",")
    called = urlsplit(SERVICES["ediffi"]["environment"]["MLFLOW_TRACKING_URI"]).netloc
    assert not is_allowed_host_header(get_default_allowed_hosts(), called)
    for host in (called, "localhost:5000", "127.0.0.1:5000"):
        assert is_allowed_host_header(allowed, host)
    assert not is_allowed_host_header(allowed, "elsewhere.example:5000")


def test_its_health_is_asked_where_it_answers():
    from mlflow.server.security_utils import is_health_endpoint

    [url] = re.findall(r"http://\S+?(?=')", SERVICES["mlflow"]["healthcheck"]["test"][-1])
    assert is_health_endpoint(urlsplit(url).path)


# -- the words -----------------------------------------------------------------------------------


def test_the_spec_that_the_readme_copies_is_recorded_on_the_server(tmp_path, monkeypatch):
    """The container's variable decides, a spec's own key comes before it, a file is the last."""
    from pipelines.lineage import tracking_uri
    from pipelines.store.artifacts import Store

    [source] = re.findall(r"cp (\S+) mine.yaml", README)
    address = SERVICES["ediffi"]["environment"]["MLFLOW_TRACKING_URI"]
    named, store = load(ROOT / source).tracking, Store.at(str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking_uri(named, store) == address
    assert tracking_uri("http://elsewhere:1", store) == "http://elsewhere:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(named, store) == f"sqlite:///{tmp_path}/mlflow.db"
    assert "/.local/share/ediffi/" in tracking_uri(None, Store.at("s3://bucket/store"))


def test_the_readme_lists_the_files_variables_and_volumes():
    shown = set(re.findall(r"^([^\s/]+) {2,}\S", README, flags=re.M))
    files = {f.name for f in INFRA.iterdir() if f.is_file() and not f.name.startswith(".")}
    assert shown == files - {"README.md"}
    ours = {name for where, name, _ in ENVIRONMENT if where != "postgres"} | {"POSTGRES_PASSWORD"}
    assert set(re.findall(r"^\| `([A-Z0-9_]+)`", README, flags=re.M)) == ours
    rows = re.findall(r"^\| (`[a-z`, ]+`) \|", README, flags=re.M)
    assert {v for row in rows for v in re.findall(r"\w+", row)} == set(COMPOSE["volumes"])
