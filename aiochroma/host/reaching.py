"""Reaching the host of a directory, and starting one where there is none: exactly one, whoever asks at the same moment.

Here are also the first words between a client and a host, and the questions that tools ask.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock

from aiochroma._clock import lock_within, monotonic
from aiochroma._errors import (
    ClosedError,
    DatabaseInUseError,
    SettingsConflictError,
    StoreUnavailableError,
    error_from_dict,
    error_to_dict,
)
from aiochroma._types import JsonObject, MetadataView
from aiochroma.disk.copying import PYTHON_VARIABLE, ChildError, interpreter, package_environment
from aiochroma.disk.ownership import acquire, read_owner
from aiochroma.host.sockets import connect, is_served, socket_address
from aiochroma.host.wire import Codec, FrameKind, Message, MessageReader, ProtocolError, json_frame

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from aiochroma.core.config import EngineOptions, Location
    from aiochroma.disk.ownership import Ownership

__all__ = [
    "HOST_LOG",
    "LEAVING_SECONDS",
    "Meeting",
    "acquire_after_host",
    "ask",
    "detach",
    "meet",
    "reach",
    "start_detached",
]

HOST_LOG = "aiochroma-host.log"
"""In the database's directory."""

_LOCK_SECONDS = 0.02
_REACH_SECONDS = 60.0
_STARTS = 3
_LOOK_MILLISECONDS = 50
_HOST_PYTHON_VARIABLE = "AIOCHROMA_HOST_PYTHON"
_START_VARIABLE = "AIOCHROMA_HOST_START"
LEAVING_SECONDS = 10.0
"""For how long a host is waited for that is going."""


class _SilentError(StoreUnavailableError):
    """A host that was started ended, and did not say why."""


def reach(directory: str, values: MetadataView, stopped: Callable[[], bool]) -> socket.socket:
    """Return a connection to the host of a directory; starts one where none listens.

    Args:
        directory: The canonical directory.
        values: What a host that is started is told: options, and for how long it stays without clients.
        stopped: Whether it is no longer needed.

    Raises:
        DatabaseInUseError: A program that does not share it has the directory.
        StoreUnavailableError: No host could be started, or the one that was cannot be reached.
        ClosedError: All its callers have gone.
    """
    starting = filelock.FileLock(socket_address(directory).with_suffix(".starting"), thread_local=False)
    # A host that is started waits for the directory as long as its client would.
    patience = _REACH_SECONDS + float(values.get("options", {}).get("lock_timeout") or 0.0)
    until = monotonic() + patience
    refused: Exception | None = None
    silent = 0
    while monotonic() < until:
        if stopped():
            raise _unneeded(directory)
        connected = connect(directory)
        if connected is not None:
            return connected
        if os.environ.get(_START_VARIABLE) == "never":
            raise StoreUnavailableError(
                f"No host serves {directory!r}, and {_START_VARIABLE}=never leaves it to others to start one (`aiochroma host`)."
            )
        with contextlib.suppress(filelock.Timeout), lock_within(starting, _LOCK_SECONDS):
            # Whoever had the lock before may have started one.
            connected = connect(directory)
            if connected is not None:
                return connected
            try:
                start_detached(
                    "aiochroma.host", directory, values, log=HOST_LOG, patience=patience, stopped=stopped
                )
            except DatabaseInUseError as error:
                if not _is_passing(error, directory):
                    raise
                refused = error
                time.sleep(_LOCK_SECONDS)
            except _SilentError as error:
                # Killed in that very moment, it may be; but not each time.
                silent += 1
                if silent >= _STARTS:
                    raise StoreUnavailableError(
                        f"The host of {directory!r} ended {silent} times without saying why; its log is "
                        f"{str(Path(directory) / HOST_LOG)!r}."
                    ) from error
    raise StoreUnavailableError(
        f"The host of {directory!r} could not be reached within {patience:.0f} s."
    ) from refused


def acquire_after_host(
    directory: str | os.PathLike[str],
    wait_seconds: float = 0.0,
    *,
    create: bool = True,
    role: str = "program",
    socket_path: str = "",
) -> Ownership:
    """Become the only owner of a directory, as :func:`aiochroma.disk.ownership.acquire` does; a host that is going is waited for.

    A host that ends stops listening first, and lets go of the directory last.

    Raises:
        DatabaseInUseError: Another process owns it, or a host that listens.
        DatabasePathError: The directory cannot be used.
    """
    until = monotonic() + LEAVING_SECONDS
    while True:
        try:
            return acquire(directory, wait_seconds, create=create, role=role, socket_path=socket_path)
        except DatabaseInUseError as error:  # noqa: PERF203 - it waits for another process
            if monotonic() > until or not _is_passing(error, directory) or is_served(directory):
                raise
            time.sleep(_LOCK_SECONDS)


def _is_passing(error: DatabaseInUseError, directory: str | os.PathLike[str]) -> bool:
    """Whether a directory was refused for this moment only: by a host, or by an owner that has let go since."""
    owner = read_owner(directory)
    return error.pid is not None if owner is None else owner.role == "host"


def start_detached(
    module: str,
    directory: str,
    values: MetadataView,
    *,
    log: str,
    patience: float = _REACH_SECONDS,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Start a process that serves a directory, and wait until it listens.

    Args:
        module: What is run; its first act is :func:`detach`.
        directory: The canonical directory.
        values: What it is told.
        log: The name of its log in the directory.
        patience: For how long it is waited for, in seconds.
        stopped: Whether it is no longer needed; asked now and then.

    Raises:
        AiochromaError: It cannot serve the directory; its own error.
        _SilentError: It ended without saying why.
    """
    told_reader, told_writer = os.pipe()
    ready_reader, ready_writer = os.pipe()
    try:
        try:
            # It forks once more and this process ends at once: the host is no child of this process.
            subprocess.run(  # noqa: S603 - our own interpreter and module
                [
                    *interpreter(_HOST_PYTHON_VARIABLE),
                    "-m",
                    module,
                    directory,
                    "--detached",
                    str(told_reader),
                    str(ready_writer),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=package_environment(),
                pass_fds=(told_reader, ready_writer),
                start_new_session=True,
                check=True,
            )
        except ChildError as error:
            raise StoreUnavailableError(f"No server of {directory!r} could be started: {error}.") from error
        except (OSError, subprocess.CalledProcessError) as error:
            raise StoreUnavailableError(
                f"No server of {directory!r} could be started: {error}. {PYTHON_VARIABLE} names the Python interpreter to use."
            ) from error
        finally:
            os.close(told_reader)
            os.close(ready_writer)
        with contextlib.suppress(BrokenPipeError), open(told_writer, "wb", closefd=False) as told:
            told.write(json.dumps(values).encode())
        os.close(told_writer)
        told_writer = -1
        answer = _answer(ready_reader, directory, patience, stopped)
    finally:
        if told_writer >= 0:
            os.close(told_writer)
        os.close(ready_reader)
    if answer is None:
        raise _SilentError(
            f"The process that serves {directory!r} ended without saying why; its log is {str(Path(directory) / log)!r}."
        )
    if answer.get("error") is not None:
        raise error_from_dict(answer["error"])


def detach(told: int, ready: int) -> tuple[JsonObject, Callable[[BaseException | None], None]]:
    """Be the process that :func:`start_detached` starts: no child of its starter.

    Args:
        told: The pipe to read the values from.
        ready: The pipe to answer over.

    Returns:
        The values, and a function to call once this process is ready (with None), or with the error why it never will be. Only
        its first call counts.
    """
    if os.fork():
        os._exit(0)
    with open(told, "rb") as reader:
        values: JsonObject = json.loads(reader.read() or b"{}")
    answer = open(ready, "wb", buffering=0)  # noqa: SIM115 - a descriptor; closed by what is returned

    def announce(error: BaseException | None) -> None:
        if not answer.closed:
            with contextlib.suppress(OSError), answer:
                reason = None if error is None else error_to_dict(error)
                answer.write(json.dumps({"error": reason}).encode() + b"\n")

    return values, announce


def _answer(ready: int, directory: str, patience: float, stopped: Callable[[], bool]) -> JsonObject | None:
    """Wait for what a host says that has been started; None where it ended, or said nothing for too long."""
    data = b""
    until = monotonic() + patience
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    while not data.endswith(b"\n"):
        if stopped():
            raise _unneeded(directory)
        if not poll.poll(_LOOK_MILLISECONDS):
            if monotonic() < until:
                continue
            return None
        received = os.read(ready, 65536)
        if not received:
            return None
        data += received
    answer: JsonObject = json.loads(data)
    return answer


def _unneeded(directory: str) -> ClosedError:
    return ClosedError(f"The database {directory!r} was closed before its host could be reached.")


_ANSWER_SECONDS = 15.0
_GREETINGS = 5
_PAUSE_SECONDS = 0.01


def _greet(
    connected: socket.socket,
    reader: MessageReader,
    location: Location,
    options: EngineOptions,
    began: float,
) -> tuple[JsonObject | None, list[Message]]:
    """Say who we are and what we want.

    Returns:
        The host's welcome, and what came together with it; None instead of a welcome where the host goes, to make room for one
        of our version, or for one that tries again what it could not open.

    Raises:
        SettingsConflictError: The host is of another version and has other clients, or serves with other options.
        ProtocolError: The answer cannot be read.
        OSError: The connection ended.
    """
    # Late, here and below: it names all that a search is made of, and whoever only starts a process says nothing.
    from aiochroma.host.messages import options_to_json, versions

    hello = {
        **versions(),
        "pid": os.getpid(),
        "path": location.path,
        "options": options_to_json(options),
        "began": began,
    }
    answer, *early = _exchange(connected, reader, json_frame(FrameKind.HELLO, hello))
    kind, _, value = answer
    if not isinstance(value, dict):
        raise ProtocolError("The host's answer cannot be read.")
    if kind is FrameKind.WELCOME:
        return value, early
    if kind is not FrameKind.REFUSED:
        raise ProtocolError(f"A message of the kind {kind.name} came instead of a welcome.")
    if value.get("going"):
        return None, []
    if value.get("reason") == "versions":
        raise SettingsConflictError(_other_version(location, value))
    names = ", ".join(f"`{name}`" for name in value.get("names") or ())
    raise SettingsConflictError(
        f"{location.name} is already open in the host process {value.get('pid')} with different {names}. Open it with the same "
        "ones, or leave them out to share what is open."
    )


def _other_version(location: Location, value: JsonObject) -> str:
    from aiochroma.host.messages import versions

    theirs, ours = value.get("mine") or {}, versions()
    different = ", ".join(
        f"{name} {theirs.get(name)} there and {ours[name]} here"
        for name in ours
        if theirs.get(name) != ours[name]
    )
    return (
        f"{location.name} is served by the host process {value.get('pid')}, which has {value.get('clients')} clients and another "
        f"version: {different}. Restart those programs with the same versions, or end the host with "
        f"`aiochroma host {location.path} --stop --force`."
    )


def ask(connected: socket.socket, kind: FrameKind, value: object = None) -> Message:
    """Ask a host something that needs no welcome, and return its answer.

    Raises:
        ProtocolError: The answer cannot be read.
        OSError: The connection ended.
    """
    return _exchange(connected, MessageReader(Codec()), json_frame(kind, value))[0]


def _exchange(connected: socket.socket, reader: MessageReader, question: bytes) -> list[Message]:
    """Send, and return the messages that come as the answer."""
    until = monotonic() + _ANSWER_SECONDS
    connected.settimeout(_ANSWER_SECONDS)
    connected.sendall(question)
    while monotonic() < until:
        data = connected.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        messages = list(reader.feed(data))
        if messages:
            return messages
    raise TimeoutError("no answer came")


class Meeting(NamedTuple):
    """A connection to a host that serves us.

    Attributes:
        connected: The connection.
        reader: Puts its messages together.
        codec: Encodes and decodes them.
        welcome: What the host said of itself.
        early: The messages that came together with the welcome.
    """

    connected: socket.socket
    reader: MessageReader
    codec: Codec
    welcome: JsonObject
    early: list[Message]


def meet(
    location: Location, options: EngineOptions, codec: Codec | None, stopped: Callable[[], bool]
) -> Meeting:
    """Reach the host of a directory, or start one, and be welcomed by it.

    Args:
        location: The database.
        options: How it is to be served.
        codec: The codec, if it has been made.
        stopped: Whether it is no longer needed.

    Raises:
        AiochromaError: That is not possible.
    """
    from aiochroma.backend.importing import import_chromadb
    from aiochroma.host.messages import make_codec, options_to_json

    failed, began = 0, monotonic()
    while True:
        values = {"options": options_to_json(options), "idle": options.host_idle}
        connected = reach(location.path, values, stopped)
        try:
            # Chroma is imported while the host begins.
            import_chromadb()
            codec = codec or make_codec()
            reader = MessageReader(codec)
            welcome, early = _greet(connected, reader, location, options, began)
        except (OSError, ProtocolError) as error:
            # It went in this very moment; or it cannot begin.
            connected.close()
            failed += 1
            if failed >= _GREETINGS:
                raise StoreUnavailableError(
                    f"The process that serves {location.name} ended {failed} times before it had begun; its log is "
                    f"{str(Path(location.path) / HOST_LOG)!r}."
                ) from error
        except BaseException:
            connected.close()
            raise
        else:
            if welcome is not None:
                return Meeting(connected, reader, codec, welcome, early)
            connected.close()
        time.sleep(_PAUSE_SECONDS)
