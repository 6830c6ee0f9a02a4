"""Real Chroma servers, and a relay that can hold, lose or refuse what goes through it."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from programs import PATIENCE, ChromaServer, Program, free_port

import aiochroma

SERVER_EXAMPLE = Path(__file__).parents[2] / "examples" / "server"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for all tests that do no harm to it."""
    folder = tmp_path_factory.mktemp("server")
    with ChromaServer(folder / "data", folder / "log") as started:
        yield started


@pytest.fixture
def own_server(tmp_path):
    """A server that the test may stop, kill and start again."""
    with ChromaServer(tmp_path / "own", tmp_path / "own.log") as started:
        yield started


_names = itertools.count()


@pytest.fixture
def name():
    """A name of a collection that nobody else uses."""
    return f"collection-{os.getpid()}-{next(_names)}"


class Seen:
    """A request that came through the relay."""

    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.body = method, path, headers, body

    @property
    def operation(self):
        """The last part of the path: `query`, `upsert`, ..."""
        return self.path.partition("?")[0].rpartition("/")[2]


class Relay(socketserver.ThreadingMixIn, HTTPServer):
    """Passes requests on to a server and notes them.

    `rule` decides what becomes of a request: None passes it on; ``"lose-request"`` closes the connection instead;
    ``"lose-response"`` passes it on and then closes the connection; a tuple (status, headers, body) answers for the server.
    `hold` names operations that wait until they are released.
    """

    daemon_threads = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, upstream_port):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self.port = self.server_address[1]
        self.seen = []
        self.in_flight = 0
        self.most_in_flight = {}
        self.rule = lambda seen: None
        self._held_operations = set()
        self._condition = threading.Condition()
        self._released = True
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="relay")

    def start(self):
        self._thread.start()
        return self

    def stop(self):
        self.release()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that went away is no news."""

    def hold(self, *operations):
        """Let these operations wait from now on."""
        self._held_operations, self._released = set(operations), False

    def release(self):
        """Let all go on."""
        with self._condition:
            self._released = True
            self._condition.notify_all()

    def wait_until_held(self, count):
        """Return when so many requests are waiting here."""
        with self._condition:
            assert self._condition.wait_for(lambda: self.in_flight >= count, PATIENCE), (
                f"only {self.in_flight} came"
            )

    def operations(self):
        return [seen.operation for seen in self.seen]

    def count(self, operation):
        return self.operations().count(operation)

    def enter(self, seen):
        self.seen.append(seen)
        with self._condition:
            self.in_flight += 1
            same = self.most_in_flight.setdefault(seen.path, [0, 0])
            same[0] += 1
            same[1] = max(same)
            self._condition.notify_all()
            if seen.operation in self._held_operations:
                assert self._condition.wait_for(lambda: self._released, PATIENCE), "nobody released it"

    def leave(self, seen):
        with self._condition:
            self.in_flight -= 1
            self.most_in_flight[seen.path][0] -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body of an answer are two small packets; without this the second waits 40 ms for the first.
    disable_nagle_algorithm = True
    timeout = PATIENCE

    def log_message(self, *arguments):
        """Say nothing."""

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        seen = Seen(self.command, self.path, dict(self.headers.items()), body)
        self.server.enter(seen)
        try:
            self._answer(seen, self.server.rule(seen))
        finally:
            self.server.leave(seen)

    do_GET = do_POST = do_PUT = do_DELETE = _pass_on  # noqa: N815 - http.server's names

    def _answer(self, seen, what):
        if what == "lose-request":
            self._hang_up()
            return
        status, headers, body = what if isinstance(what, tuple) else self._from_upstream(seen)
        if what == "lose-response":
            self._hang_up()
            return
        self.send_response_only(status)
        for key, value in headers.items():
            if key.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _from_upstream(self, seen):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=PATIENCE)
        try:
            connection.request(seen.method, seen.path, seen.body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def _hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(server):
    """A relay before the server."""
    started = Relay(server.port).start()
    yield started
    started.stop()


@pytest.fixture
async def client(server):
    """A client of the server."""
    async with aiochroma.AsyncHttpClient("127.0.0.1", server.port) as opened:
        yield opened


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A private authority and a certificate for 127.0.0.1, made as the example makes them."""
    folder = tmp_path_factory.mktemp("certificates")
    _make_certificates(folder)
    return folder


@pytest.fixture(scope="session")
def other_certificates(tmp_path_factory):
    """Those of another authority."""
    folder = tmp_path_factory.mktemp("other-certificates")
    _make_certificates(folder)
    return folder


def _make_certificates(folder):
    script = SERVER_EXAMPLE / "make-certificates.sh"
    subprocess.run(
        ["sh", str(script), "127.0.0.1", str(folder)], check=True, capture_output=True, timeout=PATIENCE
    )


TOKEN = "Q7w" + "0123456789abcdef" * 3


@pytest.fixture
def token():
    """The token that the proxy demands."""
    return TOKEN


class Proxy(Program):
    """Debian's nginx with the example's own configuration."""

    def __init__(self, directory, upstream_port, certificates):
        self.port, self.health_port = free_port(), free_port()
        self._values = {
            "CHROMA_AUTH_TOKEN": TOKEN,
            "CHROMA_UPSTREAM": f"127.0.0.1:{upstream_port}",
            "CHROMA_LISTEN": f"127.0.0.1:{self.port}",
            "CHROMA_HEALTH_LISTEN": f"127.0.0.1:{self.health_port}",
            "CHROMA_CERTIFICATES": str(certificates),
        }
        super().__init__(
            [nginx_program(), "-p", directory, "-c", directory / "nginx.conf"],
            directory / "output",
            directory=directory,
        )

    def start(self):
        template = (SERVER_EXAMPLE / "nginx" / "chroma.conf.template").read_text()
        # As nginx's image does it: only what is in the environment is filled in.
        filled = re.sub(r"\$\{(\w+)\}", lambda match: self._values.get(match[1], match[0]), template)
        (self._directory / "chroma.conf").write_text(filled)
        temporary = "".join(
            f"    {kind}_temp_path {self._directory}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        main = self._directory / "nginx.conf"
        # Started by root, its workers would be somebody who may not write here.
        user = "user root;\n" if os.geteuid() == 0 else ""
        main.write_text(
            f"{user}daemon off;\nworker_processes 1;\npid {self._directory}/pid;\nerror_log {self._directory}/error.log;\n"
            f"events {{}}\nhttp {{\n    access_log {self._directory}/access.log;\n{temporary}"
            f"    include {self._directory}/chroma.conf;\n}}\n"
        )
        super().start()
        self.when_listening(self.port)
        return self

    def errors(self):
        return (self._directory / "error.log").read_text()


def nginx_program():
    # Debian puts it where only root looks.
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def proxy_before(port, directory, certificates):
    if nginx_program() is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    directory.mkdir()
    with Proxy(directory, port, certificates) as started:
        yield started


@pytest.fixture
def proxy(server, tmp_path, certificates):
    """nginx before the server, with TLS and a token, as in the example."""
    with proxy_before(server.port, tmp_path / "nginx", certificates) as started:
        yield started


@pytest.fixture
def proxy_to(tmp_path, certificates):
    """Put nginx before any server."""
    return lambda port: proxy_before(port, tmp_path / "nginx-to", certificates)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """Nothing from the machine's own configuration gets into a test."""
    for variable in list(os.environ):
        if variable.startswith("CHROMA_") or variable.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
            monkeypatch.delenv(variable)
