"""Wherever in its answer a server dies, the user reads the cause in two words."""

import socket
import struct
import threading
import uuid

import pytest
from mlflow import MlflowClient

from pipelines.lineage.delivery import one_line

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DEATHS = {
    "before its answer": b"",
    "amid its first line": b"HTT",
    "amid its body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "amid a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n{",
    "between two chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
}


def serve(listening, answer, reset):
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        client.recv(65536)
        client.sendall(answer)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("death", DEATHS)
def test_a_server_that_dies_while_it_answers(death, reset, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening, DEATHS[death], reset))
        thread.start()
        port = listening.getsockname()[1]
        # MLflow keeps a client per address; a new path gives this test its own.
        client = MlflowClient(f"http://127.0.0.1:{port}/{uuid.uuid4().hex}")
        with pytest.raises(Exception) as refused:
            client.search_runs(["0"])
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    words = one_line(refused.value)
    assert words in {"connection closed", "connection reset", "connection aborted"}, refused.value


def test_an_error_without_a_known_cause_loses_only_the_address():
    text = "API request to http://10.0.0.1:5000/api/2.0/mlflow failed with exception disk full"
    assert one_line(Exception(text)) == "disk full"
