"""Programs in processes of their own, as their users start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

PATIENCE = 60.0
"""Seconds after which something that should happen never will; only to tell slow from never."""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(condition, what):
    """Return the first true value of a condition; errors of a program that is not there yet count as false."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            value = condition()
        except httpx.TransportError:
            value = None
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"it never happened: {what}")


class Program:
    """A child process, its output in a file, ended at the end of the block."""

    def __init__(self, command, log, *, directory=None, **environment):
        # Its configuration must come from here alone.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHROMA_")}
        self._command = [str(part) for part in command]
        self._directory = directory
        self._environment = {**inherited, **{name: str(value) for name, value in environment.items()}}
        self._log = Path(log)
        self.process = None

    def __enter__(self):
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._directory,
            )
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise

    def stop(self, how=signal.SIGTERM):
        """Ask it to end, and return its exit code."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def output(self):
        return self._log.read_text(errors="replace")

    def when_up(self, url):
        """Return its first answer to a request, whatever the status."""

        def ask():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output()}"
            return httpx.get(url, trust_env=False)

        return until(ask, f"an answer from {url}")


class Service(Program):
    """An application under uvicorn, or under gunicorn with uvicorn's workers."""

    def __init__(self, application, log, *options, directory=None, server="uvicorn", **environment):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = {
            "uvicorn": ["--port", self.port, "--no-access-log"],
            "gunicorn": [
                "--bind",
                f"127.0.0.1:{self.port}",
                "--worker-class",
                "uvicorn_worker.UvicornWorker",
            ],
        }
        super().__init__(
            [sys.executable, "-m", server, application, *given[server], *options],
            log,
            directory=directory,
            **environment,
        )

    def health(self):
        return httpx.get(f"{self.url}/health/chromadb", trust_env=False, timeout=PATIENCE)


class ChromaServer(Program):
    """`chroma run`."""

    def __init__(self, directory, log):
        self.port = free_port()
        program = Path(sys.executable).with_name("chroma")
        super().__init__(
            [program, "run", "--path", directory, "--host", "127.0.0.1", "--port", self.port], log
        )

    def __enter__(self):
        super().__enter__()
        self.when_up(f"http://127.0.0.1:{self.port}/api/v2/heartbeat")
        return self
