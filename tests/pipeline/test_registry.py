"""Champion and candidate: the verbs, MLflow's copy, and the model that MLflow loads and serves."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kit import PATIENCE_S, Finished, call, environment, said
from PIL import Image

from pipelines.models import champions
from pipelines.models.champions import Entry
from pipelines.models.text_to_image import TextToImage
from pipelines.store.artifacts import Store

FROG, ROCKET = "a frog", "a rocket"
ONE = {"phrase": FROG, "where": [0, 0, 0.5, 1], "strength": 20}
AWAY = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Models:
    """A store with two ensembles of one model, and an MLflow of its own that has them."""

    root: Path
    one: str
    two: str

    @property
    def store(self) -> Store:
        return Store.at(str(self.root))

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root}/mlflow.db"

    def manifest(self, fingerprint: str) -> Path:
        return self.root / f"nodes/promote/smoke-{fingerprint}/ensemble.json"

    def entry(self, fingerprint: str) -> Entry:
        folder = f"nodes/promote/smoke-{fingerprint}"
        return Entry(fingerprint=fingerprint, folder=folder, why="trained", by="run smoke-1")

    def aliases(self, client) -> dict[str, str]:
        """Alias → fingerprint, as MLflow has it."""
        found = client.get_registered_model("smoke").aliases
        tags = {a: client.get_model_version("smoke", v).tags for a, v in found.items()}
        return {alias: tag["ediffi.fingerprint"] for alias, tag in tags.items()}


@pytest.fixture(scope="module")
def models(smoke: Finished, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The second ensemble is the first with other steps."""
    root = tmp_path_factory.mktemp("models")
    folder = smoke.folder("promote/smoke")
    made = Models(root, smoke.manifest("promote/smoke")["fingerprint"], "0" * 16)
    for fingerprint in (made.one, made.two):
        shutil.copytree(folder, made.manifest(fingerprint).parent)
    raw = json.loads(made.manifest(made.two).read_text())
    raw["stages"][0]["sampling"]["steps"] = 2
    made.manifest(made.two).write_text(json.dumps(raw))
    node = made.store.read_json(f"{made.entry(made.two).folder}/manifest.json")
    made.store.commit(made.entry(made.two).folder, ["ensemble.json"], node)
    champions.add_candidate(made.store, "smoke", made.entry(made.one))
    champions.promote(
        made.store, "smoke", made.one, "better", by="run smoke-1", numbers={"fid": 0.25}
    )
    champions.add_candidate(made.store, "smoke", made.entry(made.two))
    said("models", "--sync", "--storage", root)
    return made


@pytest.fixture(scope="module")
def client(models: Models):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=models.uri, registry_uri=models.uri)


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


def test_mlflow_is_brought_to_what_the_store_says(models, client):
    assert models.aliases(client) == {"champion": models.one, "candidate": models.two}
    first = client.get_model_version_by_alias("smoke", "champion")
    assert first.tags["ediffi.gate/fid"] == "0.25" and first.tags["ediffi.why"] == "better"
    assert [line.split()[1] for line in first.tags["ediffi.history"].splitlines()] == [
        "offered",
        "promoted",
    ]
    versions = client.search_model_versions("name = 'smoke'")
    assert sorted(v.tags["ediffi.version"] for v in versions) == ["1", "2"]


def test_a_second_time_changes_nothing(models, client):
    def known():
        return [vars(v) for v in client.search_model_versions("name = 'smoke'")]

    before = known()
    said("models", "smoke", "--sync", "--storage", models.root)
    assert known() == before


def test_an_item_of_before_there_was_a_registry_file_makes_a_candidate(models, client):
    from pipelines.lineage import registry

    experiment = client.get_experiment_by_name("smoke").experiment_id
    old = {
        "fingerprint": models.one,
        "folder": models.entry(models.one).folder,
        "execution": "old-1",
    }
    for _ in range(2):
        registry.mirror(client, experiment, models.store, "old", old)
    (version,) = client.search_model_versions("name = 'old'")
    assert version.tags["ediffi.fingerprint"] == models.one
    assert list(client.get_registered_model("old").aliases) == ["candidate"]


def test_mlflow_keeps_data_and_no_code(models, client):
    version = client.get_model_version_by_alias("smoke", "champion")
    place = Path(urllib.parse.urlparse(version.source).path)
    names = {str(f.relative_to(place)) for f in place.rglob("*") if f.is_file()}
    assert {"MLmodel", "data/ensemble.json", "input_example.json", "requirements.txt"} <= names
    assert not [n for n in names if n.endswith((".py", ".pkl"))]


def test_verbs_move_the_alias_and_say_so(models, client):
    out = said("promote", "smoke", "--why", "it is faster", "--storage", models.root)
    was = f"version 1 ({models.one[:8]})"
    assert out == f"smoke: version 2 (00000000) is the champion instead of {was}\n"
    assert models.aliases(client)["champion"] == models.two
    shown = json.loads(said("models", "smoke", "--json", "--storage", models.root))["smoke"]
    newest = shown["versions"][0]
    assert newest["marks"] == ["champion", "candidate"] and newest["why"] == "it is faster"
    assert newest["metrics"] == {} or all(
        type(v) in (int, float) for v in newest["metrics"].values()
    )
    out = said("rollback", "smoke", "--storage", models.root)
    assert out == f"smoke: {was} is the champion again\n"
    assert models.aliases(client) == {"champion": models.one, "candidate": models.two}
    table = said("models", "smoke", "--storage", models.root)
    assert "rolled back to by rollback: instead of 00000000" in table and "history" in table


def test_with_mlflow_away_the_store_has_it_all_the_same(models, client, capsys):
    before = models.aliases(client)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", AWAY)
        assert call("promote", "smoke", "0000", "--storage", models.root) == 0
        assert call("rollback", "smoke", "--storage", models.root) == 0
    told = capsys.readouterr().err.splitlines()
    assert (
        told
        == [
            "MLflow could not be updated (connection refused); the next run updates it, "
            "and so does `ediffi models --sync`"
        ]
        * 2
    )
    assert models.aliases(client) == before
    assert champions.read(models.store, "smoke").champion.fingerprint == models.one


def test_a_model_is_found_by_alias_version_and_in_mlflow(models):
    from pipelines.lineage.lookup import find_model

    root = str(models.root)
    one, two = models.manifest(models.one), models.manifest(models.two)
    names = ("smoke@champion", "smoke@candidate", "smoke@1", f"smoke@{models.one[:6]}")
    assert [find_model(name, root) for name in names] == [one, two, one, one]
    with mlflow_at(models.uri):
        assert find_model("models:/smoke@champion", root).read_text() == one.read_text()


@contextlib.contextmanager
def mlflow_at(uri):
    """What loads by ``models:/…`` finds the address in the process; put back afterwards."""
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])


def test_what_mlflow_loads_draws_what_the_ensemble_draws(models):
    frame = pd.DataFrame({"prompt": [FROG, ROCKET, FROG], "seed": [3, 4, 3], "paint": [None] * 3})
    frame["guidance"], frame["paint"] = [None, 3, None], [None, None, json.dumps([ONE])]
    with mlflow_at(models.uri) as mlflow:
        model = mlflow.pyfunc.load_model("models:/smoke@champion")
    found = [pixels(png) for png in model.predict(frame)["png"]]
    ensemble = TextToImage.load(models.manifest(models.one))
    assert np.array_equal(found[0], ensemble.sample([FROG], seed=3)[0])
    assert np.array_equal(found[1], ensemble.sample([ROCKET], seed=4, sampling={"guidance": 3})[0])
    assert not np.array_equal(found[2], found[0])  # it is painted
    small = model.predict(frame[:1], params={"stage": "base"})["png"][0]
    assert pixels(small).shape == (16, 16, 3)


def test_a_version_of_before_the_loader_moved_loads(models, client, tmp_path):
    """MLflow keeps the loader's name with each version; it was `pipelines.pyfunc_model` once."""
    version = client.get_model_version_by_alias("smoke", "champion")
    place = Path(urllib.parse.urlparse(version.source).path)
    shutil.copytree(place, tmp_path / "model")
    card = tmp_path / "model/MLmodel"
    text = card.read_text()
    assert "loader_module: pipelines.models.pyfunc\n" in text
    card.write_text(text.replace("pipelines.models.pyfunc\n", "pipelines.pyfunc_model\n"))
    with mlflow_at(models.uri) as mlflow:
        model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    drawn = model.predict(pd.DataFrame({"prompt": [FROG], "seed": [3]}))["png"][0]
    ensemble = TextToImage.load(models.manifest(models.one))
    assert np.array_equal(pixels(drawn), ensemble.sample([FROG], seed=3)[0])


def test_a_picture_does_not_depend_on_the_other_rows(models):
    ensemble = TextToImage.load(models.manifest(models.one))
    together = ensemble.sample([ROCKET, FROG, ROCKET], seed=[9, 3, 9]).astype(int)
    alone = ensemble.sample([FROG], seed=[3]).astype(int)[0]
    assert abs(together[1] - alone).max() <= 1  # rounding
    assert np.array_equal(together[0], together[2])
    assert abs(together[0] - alone).max() > 8


@pytest.mark.slow
def test_mlflow_serves_it(models):
    with served(models) as url:
        status, answer = post(url, [{"prompt": FROG, "seed": 3}, {"prompt": ROCKET, "paint": None}])
        assert status == 200, answer
        first, second = (row["png"] for row in answer["predictions"])
        status, styled = post(url, [{"prompt": ROCKET, "style": first}])
        assert status == 200, styled
        status, refused = post(url, [{"prompt": ROCKET}, {"prompt": ROCKET, "paint": [ONE]}])
    ensemble = TextToImage.load(models.manifest(models.one))
    assert np.array_equal(pixels(first), ensemble.sample([FROG], seed=3)[0])
    style = Image.fromarray(pixels(first))
    expected = ensemble.sample([ROCKET], style=[style])[0]
    assert np.array_equal(pixels(styled["predictions"][0]["png"]), expected)
    assert not np.array_equal(pixels(second), expected)
    assert (
        status == 400 and f"phrase '{FROG}' is not in the prompt '{ROCKET}'" in refused["message"]
    )


@contextlib.contextmanager
def served(models: Models):
    """``mlflow models serve`` of the champion, on a port that was free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # It looks for uvicorn as a shell does.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = models.root / "serve.log"
    what = ("-m", "models:/smoke@champion", "--env-manager", "local", "--port", str(port))
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *what, "--workers", "1"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(MLFLOW_TRACKING_URI=models.uri, PATH=path),
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not answers(url):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=10):
            return True
    except OSError:
        return False


def post(url: str, rows):
    body = json.dumps({"dataframe_records": rows}).encode()
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/invocations", body, headers), timeout=PATIENCE_S
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
