"""A small SMTP server for tests: takes mail, with STARTTLS and AUTH PLAIN where it has them."""

import base64
import contextlib
import email
import email.policy
import socketserver
import ssl
import threading
from collections.abc import Iterator


class Server(socketserver.ThreadingTCPServer):
    """Listens on a free port of this machine.

    Args:
        tls: its certificate; None for a server that offers no encryption.
        users: user → password; none are asked for without.
        refused: receivers that get 550.
        busy: how many connections get 421 before the first one is served.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        users: dict[str, str] | None = None,
        refused: tuple[str, ...] = (),
        busy: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.tls, self.users, self.refused, self.busy = tls, users or {}, refused, busy
        self.port = self.server_address[1]
        self.mails: list[tuple[str, list[str], email.message.EmailMessage]] = []
        """Sender, receivers and content of each mail that was taken."""

        self.commands: list[str] = []
        """First words of all commands."""

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()


class Session(socketserver.StreamRequestHandler):
    """One connection, after RFC 5321."""

    server: Server

    def say(self, *lines: str) -> None:
        for i, line in enumerate(lines):
            code, _, text = line.partition(" ")
            dash = "-" if i + 1 < len(lines) else " "
            self.wfile.write(f"{code}{dash}{text}\r\n".encode())

    def handle(self) -> None:
        if self.server.busy:
            self.server.busy -= 1
            self.say("421 come back later")
            return
        self.say("220 ready")
        self.is_encrypted, self.is_known = False, not self.server.users
        while line := self.rfile.readline():
            verb, _, rest = line.decode().rstrip("\r\n").partition(" ")
            self.server.commands.append(verb.upper())
            if verb.upper() == "QUIT":
                self.say("221 bye")
                return
            getattr(self, f"do_{verb.lower()}", self.unknown)(rest)

    def unknown(self, rest: str) -> None:
        self.say("502 not here")

    def do_ehlo(self, rest: str) -> None:
        offers = ["250 here"]
        if self.server.tls and not self.is_encrypted:
            offers.append("250 STARTTLS")
        if self.server.users:
            offers.append("250 AUTH PLAIN")
        self.say(*offers)

    def do_starttls(self, rest: str) -> None:
        self.say("220 go on")
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        self.setup()
        self.is_encrypted = True

    def do_auth(self, rest: str) -> None:
        _, user, password = base64.b64decode(rest.split()[1]).decode().split("\0")
        self.is_known = self.server.users.get(user) == password
        self.say("235 welcome" if self.is_known else "535 wrong user or password")

    def do_mail(self, rest: str) -> None:
        if not self.is_known:
            self.say("530 log in first")
            return
        self.sender, self.receivers = rest, []
        self.say("250 ok")

    def do_rcpt(self, rest: str) -> None:
        address = rest[rest.index("<") + 1 : rest.index(">")]
        if address in self.server.refused:
            self.say("550 nobody of this name")
            return
        self.receivers.append(address)
        self.say("250 ok")

    def do_rset(self, rest: str) -> None:
        self.say("250 ok")

    def do_data(self, rest: str) -> None:
        self.say("354 end with a dot")
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        content = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
        self.server.mails.append((self.sender, self.receivers, content))
        self.say("250 taken")
