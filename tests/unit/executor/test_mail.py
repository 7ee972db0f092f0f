"""A run's end is sent by e-mail, with STARTTLS and a password, and failures are logged."""

import datetime
import ipaddress
import ssl

import pytest
import smtp_server
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from pipelines.executor import notify
from pipelines.planning.lint import mail_without_password
from pipelines.runs.execution import Execution
from pipelines.spec.notify import SMTP_PASSWORD, Notify
from pipelines.spec.pipeline import Spec

PASSWORD = "a-password-that-nobody-shall-see"
EMAIL = {
    "to": ["ops@example.com", "lab@example.com"],
    "sender": "ediffi@example.com",
    "server": "127.0.0.1",
}
MLFLOW = {"uri": "https://mlflow.example", "run": "r1", "experiment": "7", "nodes": {}}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Path of a certificate for this machine with its key, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls(certificate, monkeypatch):
    """The server's side; this process trusts it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(notify, "FIRST_WAIT_S", 0.0)


def send(server, **more):
    """Send of a failed run; returns the lines that were logged."""
    logged = []
    settings = Notify.model_validate({"email": {**EMAIL, "port": server.port, **more}})
    execution = Execution(
        id="demo-1",
        pipeline="demo",
        fingerprint="f",
        attempt=2,
        state="failed",
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T01:00:00+00:00",
        tracking=MLFLOW,
    )
    failed = {"train/base/E0_0": "σ is not finite\nBcc: someone@example.com"}
    notify.send(settings, execution, failed, logged.append)
    assert PASSWORD not in "".join(logged)
    return logged


def test_all_receivers_get_what_failed_and_where_the_record_is(tls, monkeypatch):
    monkeypatch.setenv(SMTP_PASSWORD, PASSWORD)
    with smtp_server.Server(tls, users={"me": PASSWORD}).running() as server:
        assert send(server, user="me") == []
    [(sender, receivers, mail)] = server.mails
    assert sender.startswith("FROM:<ediffi@example.com>") and receivers == EMAIL["to"]
    assert mail["Subject"] == "demo failed after 1:00:00"
    assert mail["To"] == ", ".join(EMAIL["to"]) and mail["Bcc"] is None
    assert mail.get_content().splitlines() == [
        "run demo-1, attempt 2",
        "train/base/E0_0: σ is not finite\\nBcc: someone@example.com",
        "",
        "Record: https://mlflow.example/#/experiments/7/runs/r1?workflowType=machine_learning",
    ]
    commands = server.commands
    assert commands.index("STARTTLS") < commands.index("AUTH") < commands.index("MAIL")


def test_a_wrong_password_is_not_tried_again(tls, monkeypatch):
    monkeypatch.setenv(SMTP_PASSWORD, PASSWORD)
    with smtp_server.Server(tls, users={"me": "another"}).running() as server:
        [line] = send(server, user="me")
    assert line == (
        "could not notify ops@example.com, lab@example.com through 127.0.0.1 "
        "(SMTP 535 wrong user or password)"
    )
    assert server.commands.count("AUTH") == 1 and server.mails == []


def test_a_password_is_never_sent_to_a_server_that_nobody_vouches_for(tls, monkeypatch):
    monkeypatch.setenv(SMTP_PASSWORD, PASSWORD)
    monkeypatch.delenv("SSL_CERT_FILE")
    with smtp_server.Server(tls, users={"me": PASSWORD}).running() as server:
        [line] = send(server, user="me")
    assert "CERTIFICATE_VERIFY_FAILED" in line and "AUTH" not in server.commands


def test_nor_to_one_without_encryption(monkeypatch):
    monkeypatch.setenv(SMTP_PASSWORD, PASSWORD)
    with smtp_server.Server(users={"me": PASSWORD}).running() as server:
        [line] = send(server, user="me")
    assert "STARTTLS" in line and "AUTH" not in server.commands
    with pytest.raises(ValidationError, match="would send the password unencrypted"):
        Notify.model_validate({"email": {**EMAIL, "user": "me", "encryption": "none"}})


def test_a_missing_password_is_told_before_the_run_and_after_it(monkeypatch):
    monkeypatch.delenv(SMTP_PASSWORD, raising=False)
    with smtp_server.Server().running() as server:
        [line] = send(server, user="me")
    assert f"({SMTP_PASSWORD} is not set in the environment of the run)" in line
    assert server.commands == []
    settings = Notify.model_validate({"email": {**EMAIL, "user": "me"}})
    spec = Spec.model_construct(name="demo", notify=settings)
    [found] = mail_without_password(spec, ["a node"])
    assert found.level == "warning" and SMTP_PASSWORD in found.text
    monkeypatch.setenv(SMTP_PASSWORD, PASSWORD)
    assert list(mail_without_password(spec, ["a node"])) == []


def test_a_relay_without_encryption_takes_mail_once_it_is_no_longer_busy():
    with smtp_server.Server(busy=2).running() as server:
        assert send(server, encryption="none") == []
    assert len(server.mails) == 1


def test_a_receiver_that_the_server_does_not_know_is_named():
    with smtp_server.Server(refused=tuple(EMAIL["to"])).running() as server:
        [line] = send(server, encryption="none")
    assert "ops@example.com: SMTP 550" in line and server.commands.count("MAIL") == 1
    with smtp_server.Server(refused=("lab@example.com",)).running() as server:
        [line] = send(server, encryption="none")
    assert "(lab@example.com: SMTP 550" in line and len(server.mails) == 1


@pytest.mark.parametrize(
    "address", ["ops", "Ops <ops@example.com>", "a@b\nBcc: c@d", "ops@example.com, x@y", ""]
)
@pytest.mark.parametrize("field", ["to", "sender"])
def test_what_is_no_address_is_refused(address, field):
    given = {**EMAIL, field: [address] if field == "to" else address}
    with pytest.raises(ValidationError, match="write an e-mail address as NAME@HOST"):
        Notify.model_validate({"email": given})
