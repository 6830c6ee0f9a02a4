"""Programs in processes of their own, as their users start them, and commands of the command line in this one."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import httpx

PATIENCE = 60.0
"""Seconds after which something that should happen never will; only to tell slow from never."""

MODE = "shared" if os.environ.get("AIOCHROMA_TEST_PROCESS") == "shared" else "persistent"
"""How a directory is open where a test does not say: in this process, or, where suites run through hosts, in another one."""


def serving_threads():
    """Return the threads of this process that serve databases, or that ask the processes which do."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith(("aiochroma-db", "aiochroma-link"))
    ]


def free_port():
    """Return a port for a program to listen at: none that the system gives to a connection before the program is there."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def until(condition, what, seconds=PATIENCE):
    """Return the first true value of a condition; errors of a program that is not there yet count as false."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            value = condition()
        except (httpx.TransportError, ConnectionError):
            value = None
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"it never happened: {what}")


def state_of(pid):
    """Return the letter that the system has for the state of a process; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def is_alive(pid):
    """Whether a process still runs; a zombie does not."""
    return state_of(pid) not in {None, "Z", "X"}


def without_settings():
    """Return the environment without what configures a database: a program's configuration must come from its test alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CHROMA_")}


class Done(NamedTuple):
    """A program that has ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def python(*arguments, typed="", cwd=None, patience=2 * PATIENCE, **environment):
    """Run Python to its end in a process of its own, at most for so many seconds."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=typed,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=patience,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def printed_by(*arguments, **how):
    """Run Python, which must succeed, and return what it printed."""
    done = python(*arguments, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def error_without(package, module):
    """Return what an import of a module says in a process in which a package is not installed."""
    code = f"import sys\nsys.modules[{package!r}] = None\ntry: import {module}\nexcept ImportError as error: print(error)"
    return printed_by("-c", code)


def command(*arguments, typed=b"", cwd=None, encoding="utf-8", **environment):
    """Run a command of the command line to its end: in this process, since Python and Chroma take a second to start."""
    import pytest

    from aiochroma.__main__ import main
    from aiochroma.cli import app

    streams = [io.TextIOWrapper(io.BytesIO(typed), "utf-8")]
    streams += [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        # Signals are for this process, whose tests go on.
        patch.setattr(app, "_ENDING_SIGNALS", ())
        patch.setattr(sys, "argv", ["aiochroma", *map(str, arguments)])
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        for name, value in environment.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            main()
    printed = [stream.buffer.getvalue().decode(encoding) for stream in streams[1:]]
    return Done(ended.value.code or 0, *printed)


class Program:
    """A child process, its output in a file, ended at the end of the block."""

    def __init__(self, command, log, *, directory=None, **environment):
        self._command = [str(part) for part in command]
        self._directory = directory
        self._environment = {
            **without_settings(),
            **{name: str(value) for name, value in environment.items()},
        }
        self._log = Path(log)
        self.process = None

    def start(self):
        """Start it, for the first time or again; returns itself."""
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

    def __enter__(self):
        return self.start()

    def __exit__(self, *error):
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def stop(self, how=signal.SIGTERM):
        """Ask it to end, and return its exit code."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)

    def output(self):
        return self._log.read_text(errors="replace")

    def when_listening(self, port):
        """Return when it takes connections at a port."""
        self._when(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, f"port {port}")

    def when_up(self, url):
        """Return its first answer to a request, whatever the status."""
        return self._when(lambda: httpx.get(url, trust_env=False), f"an answer from {url}")

    def _when(self, condition, what):
        def ask():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output()}"
            return condition()

        return until(ask, what)


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
    """`chroma run`, on the same port whenever it is started."""

    def __init__(self, directory, log):
        self.directory, self.port = Path(directory), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        program = Path(sys.executable).with_name("chroma")
        super().__init__(
            [program, "run", "--path", directory, "--host", "127.0.0.1", "--port", self.port], log
        )

    def start(self):
        super().start()
        self.when_up(f"{self.url}/api/v2/heartbeat")
        return self
