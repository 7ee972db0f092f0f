"""A server whose answers never end."""

import contextlib
import socket
import threading


@contextlib.contextmanager
def dripping(start, drip):
    """A server that answers every request with ``start``, then with ``drip`` for ever."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer(connection):
            with connection, contextlib.suppress(OSError):
                connection.recv(2**16)
                connection.sendall(start)
                while not stop.wait(0.01):
                    connection.sendall(drip)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(
                        target=answer, args=(listening.accept()[0],), daemon=True
                    ).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        stop.set()
