"""Opening, guarding and closing a database directory; everything here runs on its DB thread.

Opening takes the lock that keeps other processes out, looks the files over before Chroma's native code sees them, repairs
what can be repaired, sets what makes Chroma fast, and then lets Chroma open. While it is open every call first makes sure
that the files are still the same, and every write that no other process holds SQLite's lock and that there is room on the
disk: Chroma would wait for the lock with the interpreter held, for up to 1000 s, and does not come back from a full disk.

What fails all the same is looked up in a table: waiting, opening again, or repairing and opening again, then the call is
repeated where that is harmless. What nothing helps against is raised at once.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from aiochroma._clock import monotonic
from aiochroma._errors import AiochromaError, DatabaseCorruptError, DatabaseMovedError, StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject, Vector
from aiochroma.backend.chroma import ChromaBackend, give_memory_back, start_chroma
from aiochroma.backend.faults import (
    RESERVED_BYTES,
    FaultKind,
    StorageFault,
    WriteOutcome,
    classify,
    error_of,
    full_disk_error,
    is_about_arguments,
    is_full,
    is_panic,
    opening_error,
    unknown_outcome,
)
from aiochroma.backend.preparation import MissingVectors, drop_unfollowed, prepare_directory
from aiochroma.backend.protocol import BackendInfo, Capabilities, FailedCall, call_repeatedly
from aiochroma.core.connection import Aside
from aiochroma.core.operations import Lane, Space
from aiochroma.disk.closed_indexes import ClosedIndexes
from aiochroma.disk.copying import copy_database, stamps_of
from aiochroma.disk.dropping import Droppings
from aiochroma.disk.erasing import UnusedRooms, scrub
from aiochroma.disk.findings import note_clean_close
from aiochroma.disk.layout import refuse_without_descriptors
from aiochroma.disk.recovery import DroppedIndexes, worn_collections
from aiochroma.disk.retained_log import RetainedLog, cut_log, flushed
from aiochroma.disk.schema import log_positions
from aiochroma.disk.sqlite_file import LockProbe, file_identity, wait_until_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiochroma.backend.preparation import OwnFile, Prepared
    from aiochroma.backend.protocol import MakeHook, WriteHook
    from aiochroma.core.config import EngineOptions, Location
    from aiochroma.core.request import Request
    from aiochroma.disk.erasing_own import ErasedHistory
    from aiochroma.disk.findings import PreflightReport, RecoveryReport
    from aiochroma.disk.ownership import Ownership

    TakeLock = Callable[[Path, float], Ownership]

__all__ = ["EmbeddedBackend"]

log: EventLogger = get_logger("aiochroma.backend")

_ATTEMPTS, _RETRY_SECONDS = 6, 30.0  # of a call without a deadline
_REPAIR_SECONDS = 60.0
"""A fault that comes back so soon after a repair is not repaired once more, but reported."""
_LITTLE_BYTES = 2**20


class EmbeddedBackend(ChromaBackend):
    """A database directory that this process owns, opened when the object is made, on its DB thread.

    Args:
        location: Where it is.
        options: How it is opened.
        make_hook: Makes what follows its writes.
        take_lock: Takes the owner's lock, at every opening; called with the directory and the seconds to wait.
        own_file: Our own file that follows Chroma's writes, read while Chroma is closed.

    Raises:
        DatabasePathError: The path is a file, or there is no permission to write in it.
        DatabaseInUseError: Another process, or a plain chromadb client of this one, has it open.
        DatabaseLockedError: Another process holds SQLite's lock.
        DatabaseCorruptError: It is damaged beyond what may be repaired without being asked.
        DatabaseFormatError: A newer Chroma wrote it.
        StoreUnavailableError: The disk is full.

    Attributes:
        preflight: What the files looked like before Chroma opened them.
        recovery: What had to be repaired then.
        missing: The records that have no vector, as far as they were not written since.
    """

    preflight: PreflightReport
    recovery: RecoveryReport

    def __init__(
        self,
        location: Location,
        options: EngineOptions,
        make_hook: MakeHook,
        take_lock: TakeLock,
        own_file: OwnFile,
    ) -> None:
        self._location, self._options, self._own_file = location, options, own_file
        self._make_hook, self._take_lock = make_hook, take_lock
        self._directory = Path(location.path)
        self._identity = file_identity(self._directory)
        self._is_open = self._wants_reopening = False
        self._rooms = UnusedRooms(self._directory)
        self._log: RetainedLog | None = None
        self._droppings = Droppings(self._directory)
        self._repaired_at = -_REPAIR_SECONDS
        self._open()

    # -- calls ---------------------------------------------------------------------------------------------------------

    def execute(self, request: Request, deadline: float | None = None) -> Any:
        """Carry out one call; see :class:`aiochroma.backend.protocol.Backend`.

        Raises:
            DatabaseMovedError: The files are gone.
            DatabaseLockedError: Another process held SQLite's lock until the deadline; nothing was written.
            StoreUnavailableError: Any other fault of the storage, with Chroma's error as its cause; nothing was written.
            OutcomeUnknownError: A write that may have happened failed, and could not be repeated.
            DatabaseCorruptError: The collection is one that Chroma must not be let near; others can be used.
        """
        if (reason := self.unusable.get(request.collection)) is not None:
            collection = f"The collection {request.collection} of {str(self._directory)!r}"
            raise DatabaseCorruptError(f"{collection} cannot be used: {reason}.", problems=(reason,))
        try:
            return self._attempt(request, deadline)
        except FailedCall as fault:
            return self._repeat(request, deadline, fault)

    def _attempt(self, request: Request, deadline: float | None) -> Any:
        """Make a call once.

        Raises:
            FailedCall: The storage failed.
        """
        if not request.row.opens:
            self._make_ready(request, deadline)
        try:
            result = self._carry_out(request)
            self._indexes.close_new()
        except AiochromaError:
            raise
        except BaseException as error:
            known = isinstance(error, Exception) or is_panic(error)
            fault = self._fault(request, error) if known else None
            if fault is None:
                if request.lane is Lane.WRITE and self.hook is not None and not is_about_arguments(error):
                    self.hook.distrust(request.collection)
                raise
            if fault.sent and self.hook is not None:
                self.hook.distrust(request.collection)
            raise fault from error
        if request.lane is Lane.WRITE:
            if self.missing:
                self.missing.forget(request)
            if self._log is not None:
                self._log.wrote(len(request.arguments.get("ids") or ("any",)))
        return result

    def _make_ready(self, request: Request, deadline: float | None) -> None:
        """Make sure that a call can be carried out, and will not block the interpreter."""
        # What deletes beside this thread has the lock itself.
        writing = request.lane is not Lane.READ and request.row.name != "drop_records"
        lacks_room = (writing or self._wants_reopening) and self._lacks_room(request)
        if not (lacks_room and self._wants_reopening and self._is_open):
            # On a full disk it could not be opened again, and reading goes on without that.
            self._follow_files()
        if writing:
            self._droppings.wait()
        self._probe.wait(deadline, writing=writing)
        if writing and lacks_room:
            raise full_disk_error(self._directory)

    def _lacks_room(self, request: Request) -> bool:
        """Tell whether the disk is too full for a call; what only takes something away needs little."""
        space = request.row.space
        if space is Space.NONE and request.lane is not Lane.READ:
            return False
        return is_full(self._directory, _LITTLE_BYTES if space is Space.LITTLE else RESERVED_BYTES)

    def _fault(self, request: Request, error: BaseException) -> FailedCall | None:
        """Look an error up, and note what has to be done before the next call; None where the storage is not to blame."""
        found = classify(error)
        if found.name == "unrecognised":
            return None
        known_loss = found.name == "index_incomplete" and bool(self.missing)
        again = found.kind is FaultKind.TRANSIENT or found.kind is FaultKind.MOVED
        if found.kind is FaultKind.CORRUPT and not known_loss:
            again = monotonic() - self._repaired_at > _REPAIR_SECONDS
            self._repaired_at = monotonic()
        if found.reopen_first or (again and found.kind is not FaultKind.TRANSIENT):
            self._wants_reopening = True
        sent = request.lane is not Lane.READ and found.outcome is not WriteOutcome.NOT_WRITTEN
        log.warning(
            "database.fault",
            database=str(self._directory),
            fault=found.name,
            operation=request.operation,
            error=str(error),
        )
        return StorageFault(error, found, sent=sent, permanent=not again)

    def _repeat(self, request: Request, deadline: float | None, first: FailedCall) -> Any:
        """Repeat a call that failed, with growing pauses, as long as that may help and does no harm."""
        pending, failed = [first], [first]

        def attempt() -> Any:
            if pending:
                raise pending.pop()
            return self._attempt(request, deadline)

        try:
            return call_repeatedly(
                attempt,
                repeatable=request.row.may_be_repeated(request.arguments),
                attempts=_ATTEMPTS,
                deadline=monotonic() + _RETRY_SECONDS if deadline is None else deadline,
                stopped=threading.Event(),
                on_retry=lambda _, fault: failed.append(fault),
            )
        except StorageFault as fault:
            if fault.sent:
                raise unknown_outcome(fault.cause, self._directory, fault.found.outcome) from fault.cause
            raise error_of(fault.found, fault.cause, self._directory) from fault.cause
        except StoreUnavailableError as error:
            # It could not be opened again. Had an earlier attempt reached the log?
            sent = [fault for fault in failed if isinstance(fault, StorageFault) and fault.sent]
            if not sent:
                raise
            raise unknown_outcome(error, self._directory, sent[-1].found.outcome) from sent[-1].cause

    def work(self) -> bool:
        """Do a slice of what is left to do for our own files, then note how far they go; return whether there is more."""
        if super().work():
            return True
        if self._is_open and self._log is not None:
            self._log.work()
        self._dropped.remove()
        self._rooms.blank()
        return False

    def _delete_collection(self, arguments: Any) -> None:
        self._dropped.expect()
        super()._delete_collection(arguments)

    # -- opening and closing -------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """See :class:`aiochroma.backend.protocol.Backend`."""
        return Capabilities(full_text=True, history=True, files=True)

    def describe(self) -> BackendInfo:
        """See :class:`aiochroma.backend.protocol.Backend`."""
        owner = self._ownership.owner if self._is_open else None  # It could not be opened again.
        known = self.capabilities, self._system.settings, owner, self.recovery, bool(self.missing)
        return BackendInfo(*known)

    def close(self) -> None:
        """Let Chroma close its files, then give up the ownership. Idempotent."""
        if self._is_open and not self._wants_reopening:
            self.settle()
        self._close()

    def _close(self) -> None:
        if not self._is_open:
            return
        try:
            self._let_go()
        finally:
            self._ownership.release()
            give_memory_back()

    def _let_go(self) -> None:
        """Let Chroma close its files; the directory stays ours."""
        self._is_open = False
        if self._log is not None:
            self._log.close()
        self._droppings.close()
        hook = self.hook
        self.hook: WriteHook | None = None
        with contextlib.ExitStack() as stack:
            if hook is not None:
                stack.callback(self._close_hook, hook)
                hook.stop()
            # Closing any descriptor of the file drops all locks that this process has on it, so the probe's come last.
            stack.callback(self._probe.close)
            self._dropped.remove(now=True)
            super().close()
            self._indexes.close_new(now=True)
            self._own["reopen"] = self._reopen  # Asked for again where opening fails.
            if not wait_until_closed(self._directory, but_for=self._probe.descriptors):
                log.warning("database.still_open", database=str(self._directory))
            self._rooms.blank(now=True)

    def _close_hook(self, hook: WriteHook) -> None:
        """Tell what followed the writes how far the log goes, in terms of the database that it belongs to; then cut the log."""
        if file_identity(self._directory) != self._identity:
            hook.close({})
            return
        can_cut = wait_until_closed(self._directory, timeout_seconds=0.0) and flushed(self._directory)
        hook.close(log_positions(self._directory))
        if can_cut:
            cut_log(self._directory, self._own_file.noted())
        note_clean_close(self._directory)

    def _open(self) -> None:
        begun = monotonic()
        refuse_without_descriptors(self._directory)
        self._ownership = self._take_lock(self._directory, self._options.lock_timeout or 0.0)
        if warning := self._ownership.warning:
            log.warning("database.unsafe_file_system", database=str(self._directory), warning=warning)
        try:
            # Shared memory, which the write-ahead journal needs, does not work where locks do not.
            prepared = prepare_directory(
                self._directory,
                self._location,
                self._options,
                write_ahead=warning is None,
                own_file=self._own_file,
            )
            self._indexes = ClosedIndexes(self._directory)
            super().__init__(start_chroma(self._location, self._options))
        except BaseException as error:  # noqa: BLE001 - raised again, or ours instead
            self._ownership.release()
            self._raise_instead(error)
        self._opened(prepared)
        log.info(
            "database.ready",
            database=str(self._directory),
            seconds=round(monotonic() - begun, 3),
            preflight_seconds=round(self.preflight.seconds, 3),
        )

    def _opened(self, prepared: Prepared) -> None:
        self.preflight, self.recovery = prepared.preflight, prepared.recovery
        self.unusable: dict[str, str] = {
            entry.collection_id: entry.unusable for entry in self.preflight.collections if entry.unusable
        }
        self._entries.update((entry.collection_id, entry.pending) for entry in self.preflight.collections)
        self.missing: MissingVectors = MissingVectors(self.api, prepared)
        self._own.update(
            reopen=self._reopen,
            reset=self._reset,
            copy_files=self._copy_files,
            erase_traces=self._erase_traces,
            fill_vectors=self.missing.fill,
            missing_vectors=self.missing.listed,
            worn_collections=partial(worn_collections, self._directory),
            drop_records=self._droppings.drop,
        )
        self._dropped = DroppedIndexes(self._directory, give_memory_back)
        self._identity = file_identity(self._directory)
        self._probe = LockProbe(self._directory)
        self._wants_reopening = False
        self._is_open = True
        try:
            hook = self._make_hook(self.api, self._directory, prepared.log, self._options)
            self.follow(hook)
            self._log = RetainedLog(self._directory, hook) if prepared.log.is_kept else None
            self.missing.finish_recovery(prepared, hook)
            self._indexes.close_new()
        except BaseException as error:  # noqa: BLE001 - raised again, or ours instead
            self._close()
            self._raise_instead(error)

    def _raise_instead(self, error: BaseException) -> NoReturn:
        replacement = opening_error(error, self._directory)
        raise replacement from (error.__cause__ if replacement is error else error)

    def _reopen(self) -> None:
        self._close()
        self._open()

    def _reset(self) -> bool:
        """Have Chroma drop its tables and make them again; what we set in them is set again before the next call."""
        self._wants_reopening = self.api.reset()
        return self._wants_reopening

    def _follow_files(self) -> None:
        """Open again when the files were replaced behind our back, or when the last call left Chroma unfit for use.

        Raises:
            DatabaseMovedError: There are no files; a new database is not made in their place without being asked.
        """
        identity = file_identity(self._directory)
        if self._is_open and identity == self._identity and not self._wants_reopening:
            self._keep_lock()
            return
        if identity is None:
            raise DatabaseMovedError(
                f"The files of {str(self._directory)!r} were moved away or deleted while the database was open. Put them back, "
                "or restore a backup: the next request finds them. `reset_connection()` starts with an empty database instead."
            )
        if identity != self._identity:
            log.warning("database.moved", database=str(self._directory), hint="was replaced; opened again")
        self._reopen()

    def _keep_lock(self) -> None:
        """Notice when the lock file was deleted: another process could become a second owner.

        Raises:
            DatabaseInUseError: One has. The database is closed here, before anything more is written.
        """
        if self._ownership.is_held:
            return
        try:
            self._ownership.renew()
        except BaseException:
            self._close()
            raise

    def _copy_files(self, target: str) -> Aside[None]:
        """Copy the files beside the thread; the result is for how many seconds writing stood still.

        Reads go on meanwhile. Some of them write: Chroma applies what is in the log of a collection when that is first used,
        and aiochroma's index catches up. What was copied then may not fit together, so it is copied again while reads wait, too.
        """
        begun, before = monotonic(), stamps_of(self._directory)

        def finish(_: None) -> float:
            if stamps_of(self._directory) != before:
                log.info("backup.copied_again", database=str(self._directory), hint="a read had written")
                copy_database(self._directory, Path(target))
            return monotonic() - begun

        return Aside(partial(copy_database, self._directory, Path(target)), finish)

    def _erase_traces(
        self,
        texts: Sequence[str],
        vectors: Sequence[Vector],
        history: ErasedHistory | None,
    ) -> JsonObject:
        """Remove all that is dead, with Chroma closed meanwhile; return the receipt as plain data; see ``disk.erasing.scrub``."""
        import numpy as np

        patterns = [np.asarray(vector, dtype="<f4").tobytes() for vector in vectors]
        self.settle()
        try:
            self._let_go()
            drop_unfollowed(self._directory, self._own_file)
            receipt = scrub(self._directory, texts=texts, vectors=patterns, history=history)
        finally:
            self._rooms.watch()
            self._ownership.release()
            self._open()
        return receipt.as_dict()
