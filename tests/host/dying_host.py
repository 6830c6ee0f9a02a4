"""A host that writes down every request that it begins, dies of those that it is told to die of, and looks around often.

Its DB thread can be told to live on when it has said that it ends, until it is waited for.

It is started in place of the interpreter, so its arguments are those of ``python -P -m aiochroma.host ...``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from aiochroma.backend.embedded import EmbeddedBackend
from aiochroma.core import connection, worker
from aiochroma.host import peer, server
from aiochroma.host.__main__ import main

carry_out = EmbeddedBackend.execute
deliver = worker.deliver
send = peer.Peer._sent
journal = os.open(os.environ["DYING_HOST_JOURNAL"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def fail_once(outcomes):
    worker.deliver = deliver
    raise MemoryError("the thread dies of this")


def send_and_end(self, data):
    if threading.current_thread() is threading.main_thread():
        peer.Peer._sent = send
        os.kill(os.getpid(), signal.SIGTERM)
    return send(self, data)


def end_late():
    """Let the thread that announces its end live on until another waits for it, and let no limit end that wait."""
    awaited = threading.Event()
    announce, join = connection._Ended.announce, connection.Serving.join

    def announce_and_stay(self):
        announce(self)
        awaited.wait()

    def let_go_and_join(self, timeout=None):
        awaited.set()
        return join(self, timeout)

    connection._Ended.announce, connection.Serving.join = announce_and_stay, let_go_and_join
    server._DRAIN_SECONDS = 3600.0


def execute(self, request, deadline=None):
    arguments = request.arguments
    what = arguments.get("name") or arguments.get("where") or ""
    os.write(journal, f"{request.operation} {what}\n".encode())
    if arguments.get("name") == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    if arguments.get("name") == "poison of the thread":
        worker.deliver = fail_once
    if arguments.get("name") == "gate":
        # A pipe: it is opened when another process opens its other end.
        Path(os.environ["DYING_HOST_GATE"]).read_text()
    if arguments.get("name") == "signal":
        peer.Peer._sent = send_and_end
    return carry_out(self, request, deadline)


EmbeddedBackend.execute = execute
if os.environ.get("DYING_HOST_ENDS_LATE"):
    end_late()
server._LOOK_SECONDS = float(os.environ.get("DYING_HOST_LOOK_SECONDS", server._LOOK_SECONDS))
sys.exit(main(sys.argv[sys.argv.index("aiochroma.host") + 1 :]))
