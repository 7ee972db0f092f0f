"""Downloads over http: one request if the server answers, retries if not, and short timeouts."""

import socket
import threading
from http.server import BaseHTTPRequestHandler

import dripping_kit
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import JPEG, collect_rows, json_line, source_at
from web_server import Server

from pipelines.data import web
from pipelines.data.rows import Reason, RowError
from pipelines.spec.hosts import Hosts
from pipelines.store import remote

LOCAL = Hosts.of(["127.0.0.1"])


@pytest.fixture
def server(monkeypatch):
    """Answers a path with what ``answers`` has for it, one after the other, the last for ever."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(web, "_failures", {})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            left = self.server.answers.get(self.path, [404])
            answer = left.pop(0) if len(left) > 1 else left[0]
            status, data, length = answer if isinstance(answer, tuple) else (answer, b"", 0)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", data.decode())
                data, length = b"", 0
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)

        def do_HEAD(self):
            self.server.asked.append(f"HEAD {self.path}")
            self.send_error(405)

        def log_message(self, *_):
            pass

    httpd = Server(Handler)
    httpd.asked, httpd.answers = [], {}
    httpd.at = httpd.url
    with httpd.running():
        yield httpd


def whole(data=JPEG):
    return (200, data, len(data))


def refusal(address, hosts=LOCAL):
    with pytest.raises(RowError) as error:
        web.fetch(address, 2**20, hosts)
    return error.value


@pytest.mark.slow
def test_a_picture_takes_one_request(server):
    server.answers["/1.jpg?a=b%20c"] = [whole()]
    assert web.fetch(f"{server.at}/1.jpg?a=b%20c", 2**20, LOCAL) == JPEG
    assert server.asked == ["/1.jpg?a=b%20c"]


@pytest.mark.slow
def test_a_file_that_is_too_large_is_not_read_to_its_end(server):
    server.answers["/1.jpg"] = [whole(bytes(2**20))]
    assert len(web.fetch(f"{server.at}/1.jpg", 1000, LOCAL)) == 1001


@pytest.mark.slow
def test_an_address_may_have_spaces_letters_of_any_script_and_redirects(server):
    server.answers["/a%20caf%C3%A9.jpg?q=%C3%A9"] = [(302, b"/there.jpg", 0)]
    server.answers["/there.jpg"] = [whole()]
    assert web.fetch(f"{server.at}/a café.jpg?q=é#part", 2**20, LOCAL) == JPEG


@pytest.mark.slow
@pytest.mark.parametrize("passing", [503, 429, 500, (200, JPEG[:100], len(JPEG))])
def test_what_passes_is_asked_again(server, passing):
    """An answer cut short, too: a picture with its end missing would be refused for ever."""
    server.answers["/1.jpg"] = [passing, passing, whole()]
    assert web.fetch(f"{server.at}/1.jpg", 2**20, LOCAL) == JPEG
    assert len(server.asked) == 3


@pytest.mark.slow
def test_a_server_that_stays_away_may_be_asked_another_time(server):
    server.answers["/1.jpg"] = [503]
    assert refusal(f"{server.at}/1.jpg").reason == Reason.IMAGE_AWAY
    assert len(server.asked) == remote.ATTEMPTS


@pytest.mark.slow
@pytest.mark.parametrize("status", [404, 403, 410, 401, 501])
def test_a_no_is_an_answer(server, status):
    server.answers["/1.jpg?secret=1"] = [status]
    bad = refusal(f"{server.at}/1.jpg?secret=1")
    assert bad.reason == Reason.IMAGE_FETCH and f"HTTP {status}" in bad.detail
    assert len(server.asked) == 1 and "secret" not in bad.detail


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://[",
        "http://127.0.0.1:99999/a",
        "http://\0/",
        "http://a b/",
        "http://\ud83d/",
    ],
)
def test_what_is_no_address_is_refused_for_good(address):
    assert refusal(address).reason == Reason.IMAGE_FETCH


@pytest.mark.slow
def test_nobody_at_the_port_may_pass(server):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert refusal(f"http://127.0.0.1:{port}/1.jpg").reason == Reason.IMAGE_AWAY


@pytest.fixture
def silent(monkeypatch):
    """A host that takes connections and says nothing; the connections it took."""
    monkeypatch.setattr(web, "_failures", {})
    monkeypatch.setattr(web, "READ_TIMEOUT_S", 0.05)
    monkeypatch.setattr(web, "TOTAL_TIMEOUT_S", 0.12)
    held = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take():
            while True:
                try:
                    held.append(listening.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", held
    for one in held:
        one.close()


def test_a_silent_host_is_left_alone_after_some_pictures(silent):
    """A shard of a thousand of its pictures would take hours."""
    address, held = silent
    found = [refusal(f"{address}/{i}.jpg") for i in range(20)]
    assert {bad.reason for bad in found} == {Reason.IMAGE_AWAY}
    assert "skipped" in found[-1].detail and "skipped" not in found[0].detail
    assert len(held) <= web.FAILURES_BEFORE_SKIP * remote.ATTEMPTS


@pytest.mark.slow
def test_a_host_that_is_back_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(web, "SKIP_S", 0.0)
    server.answers["/1.jpg"] = [503] * remote.ATTEMPTS * web.FAILURES_BEFORE_SKIP + [whole()]
    for _ in range(web.FAILURES_BEFORE_SKIP):
        refusal(f"{server.at}/1.jpg")
    assert web.fetch(f"{server.at}/1.jpg", 2**20, LOCAL) == JPEG
    assert not web._failures


@pytest.mark.slow
def test_an_address_is_fetched_wherever_it_stands(server, tmp_path):
    """In Parquet as in caption files, and no other kind of address in any of them."""
    server.answers["/1.jpg"] = [whole()]
    images = {"good": f"{server.at}/1.jpg", "gone": f"{server.at}/2.jpg", "file": "file:///etc/x"}
    keys, expected = list(images), {"gone": "IMAGE_FETCH", "file": "PATH_OUTSIDE"}
    for kind in ("parquet", "jsonl", "csv"):
        (tmp_path / kind).mkdir()
    columns = {"key": keys, "image": list(images.values()), "caption": ["a cat"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "parquet" / "a.parquet")
    (tmp_path / "jsonl" / "captions.jsonl").write_bytes(
        b"".join(json_line(key=k, file_name=images[k], caption="a cat") for k in keys)
    )
    lines = [f"{k},{images[k]},a cat\n" for k in keys]
    (tmp_path / "csv" / "captions.csv").write_text("key,file,caption\n" + "".join(lines))
    for kind in ("parquet", "jsonl", "csv"):
        asked = len(server.asked)
        rows, rejected = collect_rows(source_at(tmp_path / kind, key="key"))
        assert not rows and len(server.asked) == asked
        assert {bad.key: bad.reason.name for bad in rejected} == {
            "good": "URL_HOST",
            "gone": "URL_HOST",
            "file": "PATH_OUTSIDE",
        }
        rows, rejected = collect_rows(source_at(tmp_path / kind, key="key", urls=["127.0.0.1"]))
        assert [(row.key, row.image) for row in rows] == [("good", JPEG)]
        assert {bad.key: bad.reason.name for bad in rejected} == expected


# -- who may be asked ----------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch):
    """``names[host]`` → its IP addresses; every other host is looked up as ever."""
    known, look_up = {}, socket.getaddrinfo

    def found(host, port, *given, **more):
        if host not in known:
            return look_up(host, port, *given, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    return known


@pytest.mark.parametrize(
    ("urls", "address"),
    [
        ([], "http://a.example/1.jpg"),
        (["a.example"], "http://b.example/1.jpg"),
        (["a.example"], "http://sub.a.example/1.jpg"),
        (["*.a.example"], "http://a.example/1.jpg"),
        (["*.a.example"], "http://bada.example/1.jpg"),
        (["a.example"], "http://a.example@b.example/1.jpg"),
        (["a.example"], "http://a.example:80@b.example:80/1.jpg"),
        (["a.example"], "http://127.0.0.1/1.jpg"),
        (["a.example"], "http://2130706433/1.jpg"),
        (["10.0.0.0/8"], "http://[::1]/1.jpg"),
    ],
)
def test_a_host_that_is_not_named_is_not_even_looked_up(names, urls, address, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert refusal(address, Hosts.of(urls)).reason == Reason.URL_HOST


@pytest.mark.parametrize(
    "ip",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::1",
    ],
)
def test_a_name_may_not_stand_for_a_private_address(names, ip, monkeypatch):
    names["a.example"] = [ip]
    monkeypatch.setattr(socket, "create_connection", None)
    for scheme in ("http", "https"):
        bad = refusal(f"{scheme}://a.example/1.jpg", Hosts.of(["a.example"]))
        assert bad.reason == Reason.URL_HOST and ip in bad.detail


@pytest.mark.parametrize("ip", ["169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0"])
def test_a_link_local_address_is_refused_even_by_name(ip):
    assert not Hosts.of([ip, "0.0.0.0/0", "::/0"]).may_connect(ip)


@pytest.mark.slow
def test_a_private_address_is_asked_if_its_network_is_named(server, names):
    server.answers["/1.jpg"] = [whole()]
    names["a.example"] = ["10.255.255.1", "127.0.0.1"]
    port = server.server_port
    address = f"http://someone:secret@A.EXAMPLE:{port}/1.jpg"
    assert web.fetch(address, 2**20, Hosts.of(["a.example", "127.0.0.0/8"])) == JPEG
    assert refusal(address, Hosts.of(["127.0.0.0/8"])).reason == Reason.URL_HOST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("http://b.example/2.jpg", Reason.URL_HOST),
        ("//b.example/2.jpg", Reason.URL_HOST),
        ("http://127.0.0.2/2.jpg", Reason.URL_HOST),
        ("http://inside.example/2.jpg", Reason.URL_HOST),
        ("file:///etc/passwd", Reason.IMAGE_FETCH),
        ("ftp://127.0.0.1/2.jpg", Reason.IMAGE_FETCH),
        ("/1.jpg", Reason.IMAGE_FETCH),
    ],
)
def test_a_redirect_is_checked_like_the_first_address(server, names, to, reason):
    names["inside.example"] = ["10.0.0.1"]
    server.answers["/1.jpg"] = [(302, to.encode(), 0)]
    bad = refusal(f"{server.at}/1.jpg", Hosts.of(["127.0.0.1", "inside.example"]))
    assert bad.reason == reason
    assert set(server.asked) == {"/1.jpg"} and len(server.asked) <= web.MAX_REDIRECTS + 1


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_drips_is_left_at_the_deadline(monkeypatch, start):
    """Each byte comes well before the timeout of a socket; the answer has no length."""
    monkeypatch.setattr(web, "_failures", {})
    monkeypatch.setattr(web, "TOTAL_TIMEOUT_S", 0.3)
    with dripping_kit.dripping(start, b"x") as address:
        assert refusal(f"{address}/1.jpg").reason == Reason.IMAGE_AWAY


@pytest.mark.parametrize(
    "host", ["http://a.example", "a.example/x", "a.example:80", "*", "*.*.example", "", "a b", "*a"]
)
def test_what_is_no_host_is_refused_when_the_spec_is_read(host):
    with pytest.raises(ValueError, match="names hosts without scheme"):
        source_at("/data", urls=[host])
