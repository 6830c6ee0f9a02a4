"""Hosts in hundredths of a second: forked from one process that has imported everything, where each would import it itself.

To fork after importing chromadb is safe; after opening a database it is not, and the nursery opens none.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace

_MODULE = "aiochroma.host"


class HostNursery:
    """Stands in for the module ``subprocess`` where hosts are started; whatever is no host is started as ever."""

    DEVNULL = subprocess.DEVNULL
    CalledProcessError = subprocess.CalledProcessError

    def __init__(self):
        self._turns = threading.Lock()
        self._asking, answering = socket.socketpair()
        with answering:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(answering.fileno())], pass_fds=[answering.fileno()]
            )

    def close(self):
        """End the nursery; the hosts that came from it go on."""
        self._asking.close()
        self._process.wait()

    def run(self, command, **options):
        """Run a command to its end, as `subprocess.run` does; a host's end is when it has left for the background."""
        if command[0] != sys.executable or _MODULE not in command:
            return subprocess.run(command, **options)
        told, ready = options["pass_fds"]
        order = {
            "directory": command[command.index(_MODULE) + 1],
            "folder": options["cwd"],
            "environment": dict(options["env"]),
        }
        with self._turns:
            socket.send_fds(self._asking, [json.dumps(order).encode() + b"\n"], [told, ready])
            code = int(self._asking.recv(16))
        if code:
            raise subprocess.CalledProcessError(code, command)
        return subprocess.CompletedProcess(command, code)


def open_through_hosts(nursery):
    """Have a host open each directory that does not say otherwise; return a function that ends that.

    Where the hosts' sockets are is told by ``AIOCHROMA_RUNTIME_DIR``.
    """
    from aiochroma.client.options import PersistentOptions
    from aiochroma.host import reaching

    resolve, module = PersistentOptions.resolve, reaching.subprocess

    def through_a_host(options):
        return resolve(options if options.process else replace(options, process="shared", host_idle=0.0))

    PersistentOptions.resolve, reaching.subprocess = through_a_host, nursery

    def end():
        PersistentOptions.resolve, reaching.subprocess = resolve, module

    return end


def _serve(answering):
    """Start what is asked for, until nobody asks any more."""
    import aiochroma.host.opening
    import aiochroma.host.server  # noqa: F401 - whatever a host imports
    from aiochroma.backend.importing import import_chromadb

    import_chromadb()
    while True:
        order, descriptors, _, _ = socket.recv_fds(answering, 2**20, 2)
        if not order:
            return
        while not order.endswith(b"\n"):
            order += answering.recv(2**20)
        child = os.fork()
        if not child:
            answering.close()
            _be_host(*descriptors, **json.loads(order))
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        answering.send(str(os.waitstatus_to_exitcode(status)).encode())


def _be_host(told, ready, directory, folder, environment):
    """Be what the command would have started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    from aiochroma.host.__main__ import main

    sys.exit(main([directory, "--detached", str(told), str(ready)]))


if __name__ == "__main__":
    # Whoever interrupts the tests ends it by no longer asking.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as answering:
        _serve(answering)
