"""Pictures on an unreachable server: the version is made without them, and the next has them."""

from http.server import BaseHTTPRequestHandler

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_kit import NODE, embed, picture, plan_of, write_source, write_spec
from web_server import Server

from pipelines.data import web
from pipelines.store import remote
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def server(monkeypatch):
    """Has ``/0.png`` and ``/1.png``; the latter only once ``back`` is set."""
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(web, "_failures", {})
    pictures = [picture(np.random.default_rng(i)) for i in range(2)]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            which = int(self.path[1])
            there = which == 0 or self.server.back
            self.send_response(200 if there else 503)
            self.send_header("Content-Length", str(len(pictures[which]) if there else 0))
            self.end_headers()
            self.wfile.write(pictures[which] if there else b"")

        def log_message(self, *_):
            pass

    found = Server(Handler)
    found.back = False
    with found.running():
        yield found


def keys(version):
    paths = [version.store.full(version.path(i)) for i in range(len(version))]
    return sorted(k for p in paths for k in pq.read_table(p)["key"].to_pylist())


@pytest.mark.slow
def test_the_next_version_has_what_this_one_lacks(tmp_path, encoders, server):
    source, store = tmp_path / "source", Store.at(str(tmp_path / "store"))
    source.mkdir()
    urls = [f"{server.url}/{i}.png" for i in range(2)]
    table = {"key": ["web-0", "web-1"], "image": urls, "caption": ["a cat", "a dog"]}
    pq.write_table(pa.table(table), source / "web.parquet")
    hosts = ["127.0.0.1", "127.0.0.0/8"]
    spec = write_spec(tmp_path / "spec.yaml", source, encoders, urls=hosts)

    verdict, manifest = embed(spec, store.root)
    first = Version.open(store, verdict.folder)
    assert keys(first) == ["web-0"]
    assert manifest["info"]["quarantined"] == {"image's server is away": 1}
    assert plan_of(spec, store.root).verdicts[NODE].cached  # one dead host stops no pipeline

    server.back = True
    write_source(source / "more.parquet", 1, rows=2)
    verdict, manifest = embed(spec, store.root)
    second = Version.open(store, verdict.folder)
    assert keys(second) == ["more-0", "more-1", "web-0", "web-1"]
    assert not manifest["info"]["quarantined"]
    assert keys(first) == ["web-0"] and first.missing() == []
