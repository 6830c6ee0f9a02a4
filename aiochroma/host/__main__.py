"""The host process, ``python -m aiochroma.host DIRECTORY``: started by the first client that needs it."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aiochroma._errors import InvalidInputError
from aiochroma._logging import EventLogger, get_logger, private_log_file
from aiochroma._types import JsonObject
from aiochroma.host.reaching import HOST_LOG, detach

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiochroma.backend.chroma import ChromaBackend
    from aiochroma.backend.embedded import TakeLock
    from aiochroma.core.config import EngineOptions, Location
    from aiochroma.host.server import HostServer

__all__ = ["IDLE_SECONDS", "main", "open_for_long", "serve"]

log: EventLogger = get_logger("aiochroma.host")

IDLE_SECONDS = 60.0
SETUP_VARIABLE = "AIOCHROMA_HOST_SETUP"
"""Names a function that every host calls before it opens its directory, such as one that sets up telemetry."""


def serve(
    directory: str,
    *,
    idle: float | None,
    options: JsonObject | None = None,
    announce: Callable[[BaseException | None], None] = lambda _: None,
    to_terminal: bool = False,
) -> int:
    """Be the host of a directory until it ends; return the exit code.

    Args:
        directory: The canonical directory.
        idle: Ends after this many seconds without a client; None for never.
        options: How the database is served, as clients send it.
        announce: Called once: with None when it listens, or with the error why it never will.
        to_terminal: Keep standard error instead of the log file.
    """
    from aiochroma.host.messages import options_from_json
    from aiochroma.host.server import HostServer

    _set_up()

    def listening(error: BaseException | None) -> None:
        if error is None:
            # The directory is there and ours from now on.
            _log_into(Path(directory), to_terminal=to_terminal)
        announce(error)

    server = HostServer(Path(directory), options_from_json(options or {}), idle, open_for_long, listening)
    _forward_events(server)
    return server.run()


def open_for_long(location: Location, options: EngineOptions, take_lock: TakeLock) -> ChromaBackend:
    """Open a database, as a process does that does nothing else from then on.

    What was imported stays: some 90,000 objects, which a full collection of garbage would look at each time, for 60 ms in which
    no request is served. The collector is told to pass over them.
    """
    from aiochroma.host.opening import open_embedded

    backend = open_embedded(location, options, take_lock)
    gc.freeze()
    return backend


def _set_up() -> None:
    """Call the function that the environment names: ``package.module:function``."""
    named = os.environ.get(SETUP_VARIABLE)
    if not named:
        return
    module, _, function = named.partition(":")
    try:
        getattr(importlib.import_module(module), function)()
    except Exception as error:
        raise InvalidInputError(
            f"{SETUP_VARIABLE}={named!r} does not name a function, as `package.module:function`, that can be called in a host: "
            f"{type(error).__name__}: {error}"
        ) from error


def _log_into(directory: Path, *, to_terminal: bool) -> None:
    """Write the log beside the data; what native code has to say goes there as well."""
    path = directory / HOST_LOG
    root = logging.getLogger("aiochroma")
    root.setLevel(logging.INFO)
    handler: logging.Handler
    if to_terminal:
        handler = logging.StreamHandler()
    else:
        try:
            handler = private_log_file(path)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            # The clients are told of what matters all the same.
            log.warning("host.not_logged", path=str(path), error=str(error))
            return
        os.dup2(descriptor, 2)
        os.close(descriptor)
    handler.setFormatter(_JsonLines() if not to_terminal else logging.Formatter("%(asctime)s %(message)s"))
    root.addHandler(handler)
    faulthandler.enable(2)


class _JsonLines(logging.Formatter):
    """One line of JSON for each event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        values = {name: value for name, value in vars(record).items() if name.startswith("aiochroma_")}
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "pid": record.process,
            "level": record.levelname.lower(),
            **{name.removeprefix("aiochroma_"): value for name, value in values.items()},
            "message": record.getMessage(),
        }
        return json.dumps(line, default=str)


def _forward_events(server: HostServer) -> None:
    """Have warnings logged by the clients, too."""

    class Forwarding(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event = getattr(record, "aiochroma_event", None)
            if event is not None:
                values = {
                    name.removeprefix("aiochroma_"): value
                    for name, value in vars(record).items()
                    if name.startswith("aiochroma_") and name != "aiochroma_event"
                }
                try:
                    server.forward_event(record.levelname.lower(), event, values)
                except Exception:  # noqa: BLE001 - whatever is wrong with it, logging does no harm
                    self.handleError(record)

    logging.getLogger("aiochroma").addHandler(Forwarding(logging.WARNING))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a host that a client starts, which says what it is told over two pipes."""
    parser = argparse.ArgumentParser(prog="python -m aiochroma.host", description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS)
    parser.add_argument("--detached", nargs=2, type=int, metavar=("TOLD", "READY"))
    given = parser.parse_args(arguments)
    if given.detached is None:
        return serve(os.path.realpath(given.directory), idle=given.idle, to_terminal=True)
    values, announce = detach(*given.detached)
    idle = values.get("idle")
    try:
        return serve(
            given.directory,
            idle=IDLE_SECONDS if idle is None else float(idle),
            options=values.get("options"),
            announce=announce,
        )
    except BaseException as error:
        announce(error)
        raise


if __name__ == "__main__":
    sys.exit(main())
