"""Send one e-mail by SMTP."""

from __future__ import annotations

import os
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from pipelines.spec.notify import SMTP_PASSWORD, Email


def send_mail(email: Email, subject: str, body: str, timeout_s: float) -> None:
    """Send a plain text to all receivers of the spec's ``email:``.

    Args:
        email: the spec's ``notify.email:``; the password is in :data:`SMTP_PASSWORD`.
        subject: one line.
        body: the text.
        timeout_s: how long to wait for a server that sends nothing, in seconds.

    Raises:
        OSError: The server cannot be reached, or refuses the message or some of its receivers;
            smtplib's errors are some.
        ValueError: The password is missing.
    """
    password = os.environ.get(SMTP_PASSWORD, "")
    if email.user and not password:
        raise ValueError(f"{SMTP_PASSWORD} is not set in the environment of the run")
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, email.sender, email.to
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=email.sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers from vacations
    message.set_content(body)
    encrypted = ssl.create_default_context()
    if email.encryption == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            email.server, email.port, timeout=timeout_s, context=encrypted
        )
    else:
        server = smtplib.SMTP(email.server, email.port, timeout=timeout_s)
    with server:
        if email.encryption == "starttls":
            server.starttls(context=encrypted)
        if email.user:
            server.login(email.user, password)
        if refused := server.send_message(message):  # the others get it
            raise smtplib.SMTPRecipientsRefused(refused)
