"""``ediffi serve`` and ``studio``: what they refuse before anything is started."""

import os
import signal
import socket
import threading

import ensemble_kit
import kit
import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli.serving import asked, introduction
from pipelines.cli.verbs import app
from pipelines.models import champions
from pipelines.models.text_to_image import TextToImage
from pipelines.serving.local import LocalEngine
from pipelines.spec.serving import Serving

MODEL = f"{ensemble_kit.NAME}@champion"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    store = ensemble_kit.make(tmp_path_factory.mktemp("serve") / "store")
    champions.promote(store, ensemble_kit.NAME, ensemble_kit.FINGERPRINT, "by hand")
    return store.root


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("EDIFFI_TOKEN", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def refusal(capsys, *words):
    assert kit.call(*words) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_a_model_can_be_checked_without_a_start(root):
    said = kit.said("serve", MODEL, "--storage", root, "--port", "0", "--check-only")
    assert said == f"{MODEL} of {root} can be served\n"


@pytest.mark.parametrize("verb", ["serve", "studio"])
def test_an_unknown_model_is_refused(verb, root, capsys):
    assert "'nobody'" in refusal(capsys, verb, "nobody", "--storage", root)


@pytest.mark.parametrize("verb", ["serve", "studio"])
def test_without_a_model_it_says_where_to_name_one(verb, capsys):
    assert "`model` is missing; name the model to serve" in refusal(capsys, verb)


@pytest.mark.parametrize("verb", ["serve", "studio"])
def test_other_machines_need_a_token(verb, root, capsys):
    line = refusal(capsys, verb, MODEL, "--storage", root, "--host", "0.0.0.0", "--port", "0")
    assert "EDIFFI_TOKEN" in line and "127.0.0.1" in line


@pytest.mark.parametrize("verb", ["serve", "studio"])
def test_a_port_that_is_taken_is_refused(verb, root, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(capsys, verb, MODEL, "--storage", root, "--port", port)
    assert f"port {port}" in line and "--port 0" in line


def test_a_misspelt_key_of_the_configuration_is_named(root, tmp_path, capsys):
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"model": MODEL, "queue": {"picturs": 3}}))
    line = refusal(capsys, "serve", "--config", file, "--storage", root)
    assert "queue.picturs" in line and "pictures" in line


def test_options_come_before_the_configuration(root, tmp_path):
    file = tmp_path / "serve.yaml"
    settings = {
        "model": "another",
        "storage": "/nowhere",
        "port": 1,
        "replicas": {"min": 2, "max": 3, "cpus": 4},
    }
    file.write_text(yaml.safe_dump(settings))
    found = asked(MODEL, file, storage=root, port=9, replicas=5)
    assert (found.model, found.storage, found.port) == (MODEL, root, 9)
    assert (found.replicas.min, found.replicas.max, found.replicas.cpus) == (2, 5, 4)


def test_fewer_replicas_than_the_configuration_s_least_are_refused(root, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"replicas": {"min": 2, "max": 3}}))
    with pytest.raises(ValueError, match="`min: 2` is above `max: 1`"):
        asked(MODEL, file, storage=root, replicas=1)


def test_a_local_store_and_a_file_are_made_absolute(root, monkeypatch):
    """Ray's processes have a working directory of their own."""
    monkeypatch.chdir(root)
    assert asked(MODEL, None, storage=".").storage == root
    file = f"{ensemble_kit.FOLDER}/ensemble.json"
    assert asked(file, None, storage=".").model == f"{root}/{file}"


def test_the_example_names_the_token_by_its_variable(monkeypatch):
    serving = Serving(model=MODEL, host="0.0.0.0", port=9)
    monkeypatch.setenv("EDIFFI_TOKEN", "hidden")
    lines = introduction(serving, "http://metrics")
    assert lines[0] == f"{MODEL} is served at http://127.0.0.1:9"
    assert "$EDIFFI_TOKEN" in lines[-1] and not any("hidden" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_studio_that_is_stopped_while_it_loads_does_not_start(name, root, capsys, monkeypatch):
    def load(*args):
        signal.raise_signal(signal.Signals[name])
        return load_it(*args)

    load_it = TextToImage.load
    monkeypatch.setitem(LocalEngine.__init__.__kwdefaults__, "load", load)
    assert kit.call("studio", MODEL, "--storage", root, "--port", "0") == 0
    assert capsys.readouterr().out == f"loads {MODEL}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_studio_is_stopped_before_a_long_loading_ends(name, root, monkeypatch):
    """Nobody waits for gigabytes that are no longer wanted."""
    may_load, loads = threading.Event(), threading.Event()

    def load(*args):
        loads.set()
        may_load.wait()
        return load_it(*args)

    def stop():
        loads.wait()
        os.kill(os.getpid(), signal.Signals[name])

    load_it = TextToImage.load
    monkeypatch.setitem(LocalEngine.__init__.__kwdefaults__, "load", load)
    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        assert kit.call("studio", MODEL, "--storage", root, "--port", "0") == 0
        assert not may_load.is_set()
    finally:
        may_load.set()
        stopper.join()


@pytest.mark.parametrize("verb", ["serve", "studio"])
def test_the_help_of_host_names_allow_host(verb):
    said = CliRunner().invoke(app, [verb, "--help"]).output
    assert "--allow-host with each name" in " ".join(said.split())
