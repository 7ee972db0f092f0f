"""`ediffi doctor`: every fault is found, with a remedy; the exit code; nothing hangs."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest
import web_server
import yaml
from kit import SMOKE
from servers import free_port

from pipelines import cli
from pipelines.demo.fashion import files
from pipelines.executor.doctor import check, data, encoders, machine, services
from pipelines.executor.doctor.check import Check, Subject
from pipelines.executor.doctor.report import ALL, examine
from pipelines.spec import loading as specs
from pipelines.store.artifacts import Store

NOT_HERE = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE", "MLFLOW_TRACKING_TOKEN")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    for name in NOT_HERE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def quick(monkeypatch):
    """The verb without the checks that import torch or take the state of the machine."""
    slow = ("device", "disk", "memory", "encoders", "demo")
    for name in slow:
        monkeypatch.delitem(ALL, name)


@pytest.fixture
def doctor(capsys, monkeypatch):
    """``doctor(…)`` → exit code, stdout."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["ediffi", "doctor", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, capsys.readouterr().out

    return call


def found(one, root="/nowhere/store", spec=None):
    return list(one(Subject(str(root), spec)))


def spec_of(tmp_path, **changes):
    raw = yaml.safe_load(SMOKE.read_text()) | changes
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "spec.yaml"


def own_data(tmp_path, **encoders):
    sources = {split: {"path": "/data"} for split in ("train", "validation")}
    return specs.load(spec_of(tmp_path, data=sources, encoders=encoders))


class Server(web_server.Server):
    """Answers ``GET /version`` and ``HEAD`` with a status and a text."""

    def __init__(self, status=200, text=b"3.1.0", wait_s=0.0):
        super().__init__(Handler)
        self.status, self.text, self.wait_s, self.asked = status, text, wait_s, []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        time.sleep(self.server.wait_s)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.text)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.server.text)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    with contextlib.ExitStack() as servers:
        yield lambda *a, **b: servers.enter_context(Server(*a, **b).running())


# -- the report ----------------------------------------------------------------------------------


def test_a_sound_machine(doctor, quick, tmp_path):
    code, out = doctor("--storage", tmp_path)
    assert code == 0 and out.splitlines()[-1] == "all is well"
    assert f"ok       store           {tmp_path} can be written" in out.splitlines()
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_a_store_that_is_not_there_yet_is_not_made(doctor, quick, tmp_path):
    code, out = doctor("--storage", tmp_path / "a" / "store", "--json")
    said = {c["name"]: c for c in json.loads(out)["checks"]}
    assert code == 0 and "the first run creates" in said["store"]["found"]
    assert not (tmp_path / "a").exists()


def test_faults_end_with_code_1_and_say_what_to_do(doctor, quick, tmp_path):
    (tmp_path / "file").write_text("")
    code, out = doctor("--storage", tmp_path / "file")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("fault"))
    assert (code, lines[-1]) == (1, "1 fault")
    assert "cannot be written" in lines[at] and "--storage" in lines[at + 1]
    code, out = doctor("--storage", tmp_path / "file", "--json")
    said = json.loads(out)
    assert (code, said["faults"], said["warnings"]) == (1, 1, 0)
    assert [c["level"] for c in said["checks"] if c["name"] == "store"] == ["fault"]
    code, out = doctor("--storage", tmp_path / "file" / "below")
    assert code == 1 and "cannot be created in" in out


def test_a_spec_that_is_wrong_is_a_fault_and_the_rest_is_checked(doctor, quick, tmp_path):
    code, out = doctor(spec_of(tmp_path, sede=3), "--storage", tmp_path)
    assert code == 1 and "unknown key `sede`" in out and "did you mean `seed`" in out
    assert "ok       store" in out


def test_the_store_is_the_specs(doctor, quick, tmp_path):
    code, out = doctor(spec_of(tmp_path, storage=str(tmp_path / "mine")))
    assert code == 0 and f"the first run creates {tmp_path / 'mine'}" in out


def test_a_check_that_hangs_is_left_and_one_that_breaks_is_told(tmp_path):
    forever = threading.Event()

    def hangs(_):
        yield Check("first", "ok", "well")
        forever.wait()

    def breaks(_):
        raise RuntimeError("no such\nthing")
        yield

    began = time.monotonic()
    given = {"hangs": (hangs, 0.2), "breaks": (breaks, 5.0), "store": (services.store, 5.0)}
    one, two, three, four = examine(None, str(tmp_path), "", given)
    forever.set()
    assert time.monotonic() - began < 5
    assert one.level == "ok" and (two.level, two.found) == ("fault", "no result within 0.2 s")
    assert (three.level, three.found) == ("fault", "RuntimeError: no such thing")
    assert two.remedy and three.remedy and four.level == "ok"


def test_every_check_of_this_machine_gives_a_result(tmp_path):
    for name in ("Python", "device", "disk", "memory", "Ray"):
        results = found(ALL[name][0], tmp_path)
        assert results and all(r.found for r in results), name
        assert all(r.remedy for r in results if r.level != "ok"), name


def test_a_spec_that_asks_for_gpus_on_a_machine_without(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "gpu_count", lambda: 0)
    spec = specs.load(spec_of(tmp_path, gpus=2))
    [result] = found(machine.device, tmp_path, spec)
    assert result.level == "fault" and "the spec asks for 2" in result.found
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert [r.level for r in found(machine.device, tmp_path, spec)] == ["ok"]
    monkeypatch.setattr(machine, "gpu_count", lambda: 1)
    [result] = found(machine.device, tmp_path)
    assert result.level == "fault" and "does not use this machine's GPUs" in result.found


# -- Ray and MLflow ------------------------------------------------------------------------------


def test_ray_at_an_address(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            assert [r.level for r in found(services.ray)] == ["ok"]
    for address in (f"127.0.0.1:{free_port()}", "127.0.0.1:port"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        [result] = found(services.ray)
        assert (
            result.level == "fault" and address in result.found and "RAY_ADDRESS" in result.remedy
        )


def test_an_mlflow_that_is_dead(monkeypatch, doctor, quick, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hush@127.0.0.1:{free_port()}")
    code, out = doctor("--storage", tmp_path)
    assert code == 1 and "does not answer (connection refused)" in out and "hush" not in out


def test_an_mlflow_that_never_answers(monkeypatch, serve):
    server = serve(wait_s=3.0)
    monkeypatch.setattr(check, "ANSWER_S", 0.2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    [result] = found(services.mlflow)
    assert result.level == "fault" and "timed out" in result.found


@pytest.mark.parametrize(
    ("status", "text", "level", "words"),
    [
        (200, b"3.1.0", "ok", "is 3.1.0"),
        (200, b"2.9.2", "warning", "is 2.9.2"),
        (200, b"<html>", "fault", "is no MLflow server"),
        (404, b"", "fault", "HTTP 404"),
        (401, b"", "fault", "refuses access (401)"),
    ],
)
def test_an_mlflow_server(monkeypatch, serve, status, text, level, words):
    server = serve(status, text)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server.url.replace('//', '//me:hush@')}/")
    [result] = found(services.mlflow)
    assert result.level == level and words in result.found and "hush" not in str(result)
    assert server.asked == [("/version", "Basic bWU6aHVzaA==")]


def test_an_mlflow_record_that_is_damaged(tmp_path):
    (tmp_path / "mlflow.db").write_text("nothing of SQLite's")
    [result] = found(services.mlflow, tmp_path)
    assert result.level == "fault" and "is no record of MLflow" in result.found


# -- buckets -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bucket(s3):
    [result] = found(services.store, "s3://bucket/store")
    assert (result.level, result.found) == (
        "ok",
        "s3://bucket/store can be written, conditional writes work",
    )
    assert Store.at("s3://bucket/store").files("") == {}, "it leaves nothing behind"


@pytest.mark.slow
def test_a_bucket_without_conditional_writes(s3, monkeypatch):
    import s3 as kit

    forward = kit._Handler.forward

    def unconditional(handler, body):
        for name in ("If-Match", "If-None-Match"):
            del handler.headers[name]
        return forward(handler, body)

    monkeypatch.setattr(kit._Handler, "forward", unconditional)
    [result] = found(services.store, "s3://bucket/store")
    assert result.level == "fault" and "ignores conditional writes" in result.found
    assert Store.at("s3://bucket/store").files("") == {}


def test_a_bucket_that_refuses_or_is_not_there(s3):
    [result] = found(services.store, "s3://no-such-bucket/store")
    assert result.level == "fault" and "no such bucket" in result.found
    s3.faults.rate, s3.faults.kinds = 1.0, ("403",)
    [result] = found(services.store, "s3://bucket/store")
    assert result.level == "fault" and "access denied" in result.found


def test_a_bucket_at_a_dead_address(s3, monkeypatch):
    import s3 as kit

    kit.forget_connections()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    given = {"store": (services.store, 20.0)}
    [result] = examine(None, "s3://bucket/store", "", given)
    assert result.level == "fault" and "s3://bucket/store" in result.found


@pytest.mark.slow
def test_servers_that_never_answer_do_not_keep_the_command(s3, tmp_path):
    """Neither while it checks nor when it ends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = (
            "import sys\n"
            "from pipelines.executor.doctor import services, check\n"
            "from pipelines.executor.doctor.report import examine, line\n"
            "check.ANSWER_S = 0.5\n"
            "checks = {'MLflow': (services.mlflow, 2.0), 'store': (services.store, 2.0)}\n"
            "for one in examine(None, 's3://bucket/store', '', checks): print(line(one))\n"
        )
        env = os.environ | {"AWS_ENDPOINT_URL": url, "MLFLOW_TRACKING_URI": url}
        ended = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
        )
    assert ended.returncode == 0, ended.stderr
    assert "does not answer (timed out)" in ended.stdout
    assert "store           no result within 2 s" in ended.stdout


# -- encoders and the demo -----------------------------------------------------------------------


def test_data_paths(tmp_path):
    split = {"path": [str(tmp_path), "/no/such/data"]}
    whole = {"train": split, "validation": {"path": str(tmp_path)}}
    train, validation = found(data.paths, tmp_path, specs.load(spec_of(tmp_path, data=whole)))
    assert (train.name, train.level) == ("data.train", "fault")
    assert train.found == "/no/such/data does not exist"
    assert train.remedy == "set `data.train.path`"
    assert (validation.level, validation.found) == ("ok", f"{tmp_path} exists")
    remote = {s: {"path": "s3://bucket/x"} for s in ("train", "validation")}
    assert found(data.paths, tmp_path, specs.load(spec_of(tmp_path, data=remote))) == []
    assert found(data.paths) == []


def test_encoders_in_folders(tmp_path):
    for name, config in (("t5", "config.json"), ("clip", "open_clip_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / config).write_text("{}")
    spec = own_data(tmp_path, t5=str(tmp_path / "t5"), clip=str(tmp_path / "clip"))
    results = found(encoders.encoders, tmp_path, spec)
    assert [(r.name, r.level) for r in results] == [
        ("encoders.t5", "ok"),
        ("encoders.clip", "ok"),
    ]
    spec = own_data(tmp_path, t5=str(tmp_path / "clip"), clip="/no/such/clip")
    one, two = found(encoders.encoders, tmp_path, spec)
    assert (one.level, two.level) == ("fault", "fault")
    assert "has no config.json" in one.found and "there is no folder" in two.found


def test_encoders_by_name(tmp_path, monkeypatch, serve):
    more = {"extra": {"model": "package:no_such_package/x", "dim": 8}}
    spec = own_data(tmp_path, t5="owner/no-such-model-of-ours", clip="ViT-Z-99", more=more)
    t5, extra, clip = found(encoders.encoders, tmp_path, spec)
    assert t5.level == "fault" and "does not answer (connection refused)" in t5.found
    assert extra.level == "fault" and "is not installed" in extra.found
    assert clip.level == "fault" and "nor a model of OpenCLIP" in clip.found
    server = serve()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert found(encoders.encoders, tmp_path, spec)[0].level == "ok"
    assert server.asked[0][0] == "/owner/no-such-model-of-ours/resolve/main/config.json"
    server.status = 404
    assert "HTTP 404" in found(encoders.encoders, tmp_path, spec)[0].found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = found(encoders.encoders, tmp_path, spec)[0]
    assert "HF_HUB_OFFLINE is set" in offline.found and "`encoders.t5:`" in offline.remedy


def test_encoders_in_the_cache(tmp_path, monkeypatch):
    """A configuration without weights is a download that was cut short."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file, revision: {
            ("owner/t5", None): str(tmp_path / file),
            ("owner/t5", "abc123"): str(tmp_path / file),
        }.get((name, revision)),
    )
    for file, level in ((None, "fault"), ("model.safetensors", "ok")):
        if file:
            (tmp_path / file).write_bytes(b"")
        key = ("encoders.t5", "owner/t5", "config.json", [("owner/t5", "config.json")])
        assert encoders._encoder(*key).level == level
    for revision, level in (("abc123", "ok"), ("def456", "fault")):
        name = f"owner/t5@{revision}"
        key = ("encoders.t5", name, "config.json", [(name, "config.json")])
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert encoders._encoder(*key).level == level


def test_clip_weights_are_looked_for_where_openclip_has_them():
    remote = encoders._weights_of_clip("ViT-L-14", "openai")
    assert remote and all(isinstance(one, tuple) for one in remote)
    assert "there are " in encoders._weights_of_clip("ViT-L-14", "no-such-tag")


def test_made_encoders_need_nothing(tmp_path):
    assert found(encoders.encoders, tmp_path, specs.load(SMOKE)) == []


def test_npm_is_needed_where_the_drawings_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("EDIFFI_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [r.level for r in found(encoders.demo)] == ["warning"]
    assert [r.level for r in found(encoders.demo, spec=specs.load(SMOKE))] == ["fault"]
    assert found(encoders.demo, spec=own_data(tmp_path)) == []


def test_the_files_of_fashion_mnist(monkeypatch, tmp_path):
    spec = specs.load(SMOKE.with_name("fashion.yaml"))
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    (one,) = found(encoders.fashion_mnist, spec=spec)
    assert (one.level, one.found) == ("fault", f"there is no train-images-idx3-ubyte in {tmp_path}")
    assert "dataset-fashion-mnist" in one.remedy and files.VARIABLE in one.remedy
    for name in files.SHA256:
        (tmp_path / f"{name}.gz").touch()
    assert [r.level for r in found(encoders.fashion_mnist, spec=spec)] == ["ok"]
    assert found(encoders.fashion_mnist) == []
    assert found(encoders.fashion_mnist, spec=specs.load(SMOKE)) == []
    assert found(encoders.demo, spec=spec) == []
