r"""Events of the library: structured for structlog, plain sentences for the standard library's loggers.

A library must not configure logging. So an event goes to structlog where the program has imported and configured it, with
its values, and else to the standard library's logger of the same name, where the program's own levels and
handlers decide (nothing below WARNING by default). structlog itself is imported by the program, never from here: that would
be a fifth of the time that ``import aiochroma`` takes.

At WARNING and above a record of the standard library is one plain sentence that begins with ``aiochroma:``; the values are
attributes of the record (``record.aiochroma_database``). One event about one database is written at most once in ten seconds;
the next line says how many were left out.

Names, ids and errors come from others. So characters of a value that a terminal would obey, or that would begin a line of
their own, are written out (``\x1b``, ``\n``) before a renderer, a handler or a processor sees it. A traceback keeps its lines,
each indented.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import printable
from aiochroma._types import JsonObject

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SENTENCES", "EventLogger", "get_logger", "private_log_file"]

_QUIET_SECONDS = 10.0
_SUBJECTS = ("database", "server", "collection", "namespace", "thread", "path")
"""Values that say what an event is about: the first that is there tells two events of one kind apart."""

SENTENCES = {
    "backup.leftover_removed": "{path} was removed: {hint}",
    "backup.not_deleted": "the backup {path} is one too many and could not be deleted: {error}",
    "backup.not_noted": "the backup {path} could not be noted in {source}, whose log is not cut because of that: {error}",
    "backup.unreadable": "the backup {backup} cannot be read: {error}",
    "chroma.untested": "chromadb {version} is newer than what this release was tested with ({tested})",
    "chunks.not_deleted": "chunks that belong to nothing are left in {collection} until it is swept: {error}",
    "collection.contained": "what Chroma cannot read in {database} is out of the way: {change}",
    "collection.unusable": "the collection {collection} of {database} cannot be used: {reason}",
    "index.from_own_file": "{vectors} vectors of {collection} came from aiochroma's own index",
    "index.rebuild_tried_in_child": "a rebuild of the index of collection {collection} did not end; a child process tries it",
    "index.recovered": (
        "the vector index of {collection} was damaged: {from_log} vectors are in the log, {from_index} were read from it, "
        "{missing} are nowhere; its files are in {quarantine}"
    ),
    "lock.renewed": "the lock file of {directory} was deleted while it was open; it was locked again",
    "log.incomplete": "{database} is not durable yet: the log lacks vectors of {collections}",
    "log.not_cut": "what the log of {database} need not keep any more stays in it until next time: {error}",
    "log.not_refilled": "some vectors of {database} are in Chroma's index alone until next time: {error}",
    "log.not_noted": "how far the log of {database} goes was not noted, and is next time: {error}",
    "owner.not_written": "who owns {directory} could not be written down: {error}",
    "worker.still_running": "{thread} has not ended: {hint}",
    "database.close_failed": "{database} was not closed cleanly: {error}",
    "database.exit_while_running": "{database} was still at work when the program ended",
    "database.failed": "{database} cannot be used: {error}",
    "database.fault": "{operation!s} failed in {database}: {error} (recognised as {fault})",
    "database.locked": "process {pid} holds SQLite's lock on {database}; waiting up to {waiting_seconds} s",
    "database.many_collections": (
        "{collections} collections are in use, about as many as Chroma keeps loaded with the open files that this process may "
        "have: raise the limit (`ulimit -n`), or use scopes in place of namespaces"
    ),
    "database.moved": "the files of {database} were replaced while it was open; it was opened again",
    "database.not_durable": "{database} was opened first without `durable=True`, which holds from the next opening on",
    "database.still_open": "Chroma has not closed the files of {database}",
    "database.unsafe_file_system": "{database} is on a file system that is not safe for it: {warning}",
    "embedder.slower": "{function} is used as it is, which is slower: {reason}",
    "embedder.fallback": "the embedder is {embedder}, because {reason}; it {hint}",
    "host.cannot_accept": "the host of {database} cannot accept a client: {reason}",
    "host.dropped_client": "the host of {database} sent the client {client} away: {reason}",
    "host.killed": "the host of {database} was ended in the middle of a call",
    "host.lost": "the process {pid} that serves {database} is gone ({reason}); it, or the next one, is reached again",
    "host.not_logged": "the host's log {path} cannot be written: {error}",
    "host.refused_client": "the host of {database} refused a client: {reason}",
    "host.socket_was_deleted": "the socket of the host of {database} was deleted; {hint}",
    "index.filled": "missing vectors of {collection} were made again: {filled} filled, left: {left}",
    "index.from_backup": "{vectors} vectors of {collection} were taken from the backup {backup}",
    "index.rebuilding": "rebuilding the vector index of {collection} ({number} of {of}, {vectors} vectors from the log)",
    "index.rebuilt": "the vector index of {collection} was rebuilt in {seconds} s",
    "export.left_out": "{left_out} records of {namespace} were left out of the export, because no import takes them: {first}",
    "mcp.refused_session": "a session was refused: {reason}",
    "mcp.session_failed": "a session ended by an error:\n{traceback}",
    "memory.degraded": "{operation} gave an empty result, because the store failed: {error}",
    "memory.not_compacted": "an index that is full of dead entries was not made again in the background: {reason}",
    "memory.not_taken_back": "chunks of texts that were not remembered in {namespace} are left until it is swept: {error}",
    "memory.taken_back": "texts of {namespace} were not remembered, and their chunks were deleted again: {ids}",
    "memory.unowned_chunks": "{deleted} chunks in {namespace} belonged to no memory and were deleted; they were of {of}",
    "memory.sweep_failed": "expired memories were not swept: {error}",
    "page.failed": "the page shows an error instead of its content: {error}",
    "plan.failed": "requests of {database} are served one by one, because the plan failed: {error}",
    "memory.codes_incomplete": "a recall compares no tokens of some memories: {error}",
    "recall.not_reranked": "the hits are in the order of their scores: {error}",
    "recall.by_words_only": "the question could not be embedded and was asked by its words alone: {error}",
    "recall.namespace_failed": "the namespace {namespace} gave no hits: {error}",
    "request.abandoned_failure": "{operation} failed in {database} after its caller had gone: {error}",
    "request.failed": "the request for {path} was answered with an error: {error}",
    "request.slow": "{operation} took long in {database}: {wait_ms} ms in the queue, {run_ms} ms at work",
    "retriever.namespace_failed": "the namespace {namespace} gave no documents: {error}",
    "server.certificate_not_verified": "the certificate of {server} is not verified: {hint}",
    "server.unencrypted_credentials": "credentials for {server} are sent unencrypted: {hint}",
    "store.in_use_by_worker": (
        "the worker {pid} of this service has the store open, so this one answers with 503: let the workers share it "
        '(CHROMA_PROCESS=shared, or process="shared"), or run one worker'
    ),
    "store.left_out": "{records} records in {collection} of another program are no items and are left out: {first}",
    "store.unavailable": "the store is unavailable: {reason}; the next attempt is in {next_attempt_seconds} s",
    "server_index.put_back": "the server has an older state of {collection} than before, which is read again whole",
    "server_index.not_kept": "what was read of the server's memories cannot stay in {file} ({error}); it is {hint}",
    "text_index.failed": "the full-text index failed ({error}); it is {hint}",
    "text_index.not_followed": "the full-text index of {collection} did not follow a write: {error}",
    "text_index.set_aside": "{file} could not be used ({error}); it was moved to {quarantine}, and is made again",
    "text_index.watermark_failed": "the full-text index could not note how far it goes: {error}",
}
"""What the standard library's loggers write for an event at WARNING and above; the fields are the event's values."""


def _message(event: str, values: JsonObject) -> str:
    """Return the sentence of an event, or its name and values where it has none."""
    sentence = SENTENCES.get(event)
    if sentence is not None:
        try:
            return "aiochroma: " + sentence.format(**values)
        except (KeyError, ValueError):
            pass
    return f"aiochroma: {event}" + "".join(f" {name}={value}" for name, value in values.items())


def _described(name: str, value: object) -> object:
    """Return what is written of a value: of an error its kind and what it says, no representation of either."""
    if name == "traceback":
        # Indented: an error's message may have a line that looks like one of the log.
        return "\n".join(f"    {printable(line)}" for line in str(value).splitlines())
    if isinstance(value, BaseException):
        return printable(f"{type(value).__name__}: {value}" if str(value) else type(value).__name__)
    # The representations of lists and the like write out what their texts hold.
    return printable(str(value)) if isinstance(value, (str, os.PathLike)) else value


class _Throttle:
    """Lets one event of a kind through in ten seconds, and counts the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def admit(self, key: tuple[str, ...]) -> int | None:
        """Return how many events like this were left out since the last one, or None where this one is left out too."""
        now = monotonic()
        with self._lock:
            since, left_out = self._seen.get(key, (-_QUIET_SECONDS, 0))
            if now - since < _QUIET_SECONDS:
                self._seen[key] = (since, left_out + 1)
                return None
            if len(self._seen) > 1000:
                self._seen.clear()
            self._seen[key] = (now, 0)
            return left_out

    def forget(self) -> None:
        """Let every event through again, as after a start."""
        with self._lock:
            self._seen.clear()


_throttle = _Throttle()


class EventLogger:
    """A named logger; each event is a short name and keyword values.

    Logging never fails a request or ends a thread: what a program's own log processors raise goes to stderr, as what its
    handlers raise does in :mod:`logging`.
    """

    __slots__ = ("_name", "_standard")

    def __init__(self, name: str) -> None:
        self._name = name
        self._standard = logging.getLogger(name)

    def _write(self, level: int, event: str, values: JsonObject) -> None:
        try:
            structlog = sys.modules.get("structlog")
            configured = structlog is not None and structlog.is_configured()
            if not configured and not self._standard.isEnabledFor(level):
                return
            values = {name: _described(name, value) for name, value in values.items()}
            if level >= logging.WARNING:
                subject = next((str(values[name]) for name in _SUBJECTS if name in values), "")
                left_out = _throttle.admit((self._name, event, subject))
                if left_out is None:
                    return
                if left_out:
                    values["left_out"] = left_out
            if structlog is not None and configured:
                getattr(structlog.get_logger(self._name), logging.getLevelName(level).lower())(
                    event, **values
                )
            else:
                self._write_sentence(level, event, values)
        except Exception:  # noqa: BLE001 - see the class docstring
            traceback.print_exc()

    def _write_sentence(self, level: int, event: str, values: JsonObject) -> None:
        left_out = values.get("left_out")
        message = _message(event, values) + (f" ({left_out} more like it before)" if left_out else "")
        extra = {"aiochroma_event": event, **{f"aiochroma_{name}": value for name, value in values.items()}}
        # As an argument: texts of users hold percent signs.
        self._standard.log(level, "%s", message, extra=extra)

    def debug(self, event: str, **values: object) -> None:
        """Log at DEBUG."""
        self._write(logging.DEBUG, event, values)

    def info(self, event: str, **values: object) -> None:
        """Log at INFO."""
        self._write(logging.INFO, event, values)

    def warning(self, event: str, **values: object) -> None:
        """Log at WARNING, at most once in ten seconds for each subject."""
        self._write(logging.WARNING, event, values)

    def error(self, event: str, **values: object) -> None:
        """Log at ERROR, at most once in ten seconds for each subject."""
        self._write(logging.ERROR, event, values)


def get_logger(name: str) -> EventLogger:
    """Return the logger of that name; by convention ``aiochroma.<part>``."""
    return EventLogger(name)


_LOG_BYTES = 2**20


def private_log_file(path: Path) -> logging.Handler:
    """Make what writes a log that is closed to others, also after a new one was begun because it had grown too large.

    Raises:
        OSError: It cannot be written, or is a named pipe without a reader.
    """
    # Late: no program needs it but those that run in the background.
    from logging.handlers import RotatingFileHandler

    class PrivateFile(RotatingFileHandler):
        def _open(self) -> io.TextIOWrapper:
            return io.TextIOWrapper(open(self.baseFilename, "ab", opener=_open_privately), encoding="utf-8")

    return PrivateFile(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)
