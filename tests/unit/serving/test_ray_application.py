"""The Serve application: what a configuration's ``args`` make of it, and what they may not say."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from ray.serve._private.build_app import build_app

from pipelines.models import signing
from pipelines.serving import ray_app
from pipelines.studio import ray_app as with_page

ARGS = {
    "model": "tiny@champion",
    "queue": {"pictures": 10, "deadline_s": 30},
    "replicas": {"min": 2, "max": 5, "target": 3, "cpus": 4, "gpus": 0.5},
}


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("EDIFFI_TOKEN", raising=False)


@pytest.mark.parametrize("build", [ray_app.build, with_page.build])
def test_replicas_are_as_the_settings_say(build):
    built = build_app(build(ARGS), name=ray_app.NAME)
    painter, ingress = sorted(built.deployments, key=lambda d: d.name, reverse=True)
    assert (painter.name, ingress.name) == ("Painter", "Ingress")
    options = painter.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (4, 0.5)
    scaling = painter._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert scaling.target_ongoing_requests == 3
    assert painter._deployment_config.graceful_shutdown_timeout_s == 30
    assert painter.max_ongoing_requests > 10  # a replica's own queue refuses, not Serve


def test_replicas_trust_the_keys_that_are_trusted_here(monkeypatch, tmp_path):
    """Their machines need not have the file: they get the keys, and refuse what is not signed."""
    key = Ed25519PrivateKey.generate().public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "keys.pem").write_bytes(pem)
    monkeypatch.setenv(signing.TRUSTED_KEYS, str(tmp_path / "keys.pem"))
    built = build_app(ray_app.build(ARGS), name=ray_app.NAME)
    [painter] = [d for d in built.deployments if d.name == "Painter"]
    sent = painter.ray_actor_options["runtime_env"]["env_vars"]
    assert sent == {signing.TRUSTED_KEYS: pem.decode().strip()}
    monkeypatch.setenv(signing.TRUSTED_KEYS, str(tmp_path / "none.pem"))
    with pytest.raises(ValueError, match=signing.TRUSTED_KEYS):
        ray_app.build(ARGS)


@pytest.mark.parametrize("build", [ray_app.build, with_page.build])
def test_other_machines_need_a_token(build, monkeypatch):
    with pytest.raises(ValueError, match="EDIFFI_TOKEN"):
        build({**ARGS, "host": "0.0.0.0"})
    monkeypatch.setenv("EDIFFI_TOKEN", "secret")
    build({**ARGS, "host": "0.0.0.0"})


def test_the_page_is_not_forgotten():
    with pytest.raises(ValueError, match=r"pipelines\.studio\.ray_app:build"):
        ray_app.build({**ARGS, "studio": True})


def test_a_misspelt_setting_is_named():
    with pytest.raises(ValueError, match="`modle`"):
        ray_app.build({"modle": "tiny"})
