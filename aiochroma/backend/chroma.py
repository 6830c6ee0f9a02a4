"""The one module that starts Chroma and calls it; everything here runs on the thread that owns it.

Chroma's ``System`` is built directly, not through ``chromadb.PersistentClient``: the registry behind that is neither safe
for concurrent first use nor aware of two spellings of one path, and both have cost people their vectors. What the
``System`` yields is a ``ServerAPI``, whose methods are the operations of our requests. Of the process's own resources Chroma
depends on open files while it is open, and holds memory after it has closed.

Chroma's settings are made of what the program was given and of nothing else. Its own ``Settings()`` read every environment
variable of a field's name, and ``.env`` in the working directory: a foreign file there could replace the authorities that are
trusted, or send a local database's texts to a server.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiochroma._clock import monotonic
from aiochroma._errors import StoreUnavailableError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._types import JsonObject
from aiochroma.backend.chroma_records import (
    ChromaRecords,
    Database,
    database_of,
    in_this_process,
    read_records,
    refuse_too_large,
    server_api,
)
from aiochroma.backend.faults import is_panic
from aiochroma.backend.id_listing import IdListing
from aiochroma.backend.importing import import_chromadb
from aiochroma.backend.limits import check_collection_metadata
from aiochroma.backend.protocol import BackendInfo, Capabilities
from aiochroma.core.operations import Effect, Lane, Operation, Result
from aiochroma.disk.layout import SQLITE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from chromadb.api import ServerAPI
    from chromadb.config import Settings, System
    from typing_extensions import Unpack

    from aiochroma.backend.protocol import WriteHook
    from aiochroma.core.config import EngineOptions, Location
    from aiochroma.core.request import Request

__all__ = [
    "ChromaBackend",
    "chroma_settings",
    "collections_within_limit",
    "give_memory_back",
    "raise_descriptor_limit",
    "start_chroma",
]

log: EventLogger = get_logger("aiochroma.backend")

_IN_PROCESS = "chromadb.api.rust.RustBindingsAPI"
"""Whatever the caller's settings say: a database of this process never talks to a server."""

_DELETED_AT_ONCE = 1000
_COUNTS_AT_ONCE = 8
"""Each holds the interpreter for about a millisecond."""


def start_chroma(location: Location, options: EngineOptions) -> System:
    """Start Chroma on a directory, or in memory.

    chromadb is imported here, on the DB thread: it takes half a second, and the event loop goes on meanwhile.
    """
    settings = chroma_settings(
        options.settings, is_persistent=location.kind == "persistent", chroma_api_impl=_IN_PROCESS
    )
    from chromadb.config import System

    if location.path:
        settings.persist_directory = location.path
        raise_descriptor_limit()
    system = System(settings)
    server_api(system)
    system.start()
    return system


class ChromaBackend:
    """A database that Chroma has open.

    Args:
        system: Chroma's system, started.

    Attributes:
        api: Chroma.
        hook: What follows the writes, or None.
        unusable: By id, collections that Chroma must not be let near, and why; the others are not affected.
    """

    def __init__(self, system: System) -> None:

        self._system = system
        self.api: ServerAPI = in_this_process(server_api(system))
        self.records: ChromaRecords = ChromaRecords(self.api)
        self._used: set[str] = set()
        self._counts: dict[str, int] = {}
        self._changed: set[str] = set()
        self._with_lists: set[str] = set()
        self._entries: dict[str, int] = {}
        self._thresholds: dict[str, int] = {}
        self.unusable: Mapping[str, str] = {}
        self.hook: WriteHook | None = None
        persistent = system.settings.is_persistent
        file = Path(system.settings.persist_directory) / SQLITE_FILE if persistent else None
        self._listing = IdListing(self.records, file)
        self._own: dict[str, Callable[..., Any]] = {
            "count_documents": self.count_documents,
            "list_ids": self.list_ids,
        }
        self._further: dict[str, Callable[..., Any]] = {}

    @property
    def capabilities(self) -> Capabilities:
        """See :class:`aiochroma.backend.protocol.Backend`."""
        return Capabilities(full_text=self.hook is not None, history=self.hook is not None)

    def describe(self) -> BackendInfo:
        """See :class:`aiochroma.backend.protocol.Backend`."""
        return BackendInfo(self.capabilities, self._system.settings)

    def stop_retrying(self) -> None:
        """See :class:`aiochroma.backend.protocol.Backend`; nothing is repeated here."""

    def execute(self, request: Request, deadline: float | None = None) -> Any:  # noqa: ARG002 - nothing waits or is repeated here
        """See :class:`aiochroma.backend.protocol.Backend`."""
        try:
            return self._carry_out(request)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise StoreUnavailableError(
                f"Chroma's native code failed in the middle of `{request.row.label}`: {error}"
            ) from error

    def _carry_out(self, request: Request) -> Any:
        """Carry out one call and return Chroma's result."""
        row, arguments = request.row, request.arguments
        self._note_use(request.collection)
        if request.collection and not row.reads_first:
            self._load(arguments)
        if self.hook is not None and (row.lane is Lane.CATALOG or row.lane is Lane.BARRIER):
            self.hook.collections_changed(renamed=row.renames)
        if row.lane is Lane.WRITE:
            self._changed.add(request.collection)
            self._note_lists(request)
        own = self._own.get(row.name) or self._further.get(row.name)
        if own is not None:
            result = own(**arguments)
        elif row.result is Result.RECORDS or row.result is Result.ROWS:
            return read_records(self.api, request)
        elif row.effect is Effect.DROPS_COLLECTION:
            return self._delete_collection(arguments)
        else:
            if arguments.get("where") or arguments.get("where_document"):
                refuse_too_large(arguments)
            result = self._called(row, arguments)
        if row.effect is Effect.DROPS_ALL:
            self._forget_all()
        elif row.lane is Lane.WRITE and row.name not in self._further:
            self._follow_write(request)
        return result

    def _load(self, arguments: Any) -> None:
        searches = arguments.get("collections")
        for collection in (
            [one.collection_id for one in searches] if searches else [arguments["collection_id"]]
        ):
            self.records.load(collection, **database_of(arguments))

    def _called(self, row: Operation, arguments: Mapping[str, Any]) -> Any:
        """Call Chroma; ids that have no record are left out of what does nothing to them, and count as if they were given."""
        method: Callable[..., Any] = getattr(self.api, row.name)
        if row.name == "delete_database" and self._with_lists:
            self._delete_all_lists({"tenant": arguments["tenant"], "database": arguments["name"]})
        check_collection_metadata(arguments.get("metadata") or arguments.get("new_metadata"))
        ids = arguments.get("ids") or ()
        if not row.of_known or len(ids) < _LOOKED_UP_FROM or arguments.get("where") or arguments.get("limit"):
            return method(**arguments)
        found = self.records.get(
            arguments["collection_id"], ids=list(ids), include=[], **database_of(arguments)
        )
        known = set(found["ids"])
        # With the first one Chroma says what is wrong with the others.
        rows = [at for at, id in enumerate(ids) if id in known] or [0]
        columns = {name: values for name in row.record_fields if (values := arguments.get(name)) is not None}
        some = {name: [values[at] for at in rows] for name, values in columns.items()}
        result = method(**arguments) if len(rows) == len(ids) else method(**{**arguments, **some})
        return {"deleted": len(ids)} if row.result is Result.DELETED else result

    def until_rewrite(self, collection: str) -> int | None:
        """See :class:`aiochroma.core.connection.Rewriting`; known of collections to which many records were written at once."""
        threshold = self._thresholds.get(collection)
        return threshold - self._entries[collection] if threshold else None

    def _follow_write(self, request: Request) -> None:
        self._count_entries(request)
        if self.hook is not None:
            self.hook.after_write(request)

    def _count_entries(self, request: Request) -> None:
        """Count the entries of Chroma's log that the index on the disk lacks: one for each record that is written."""
        arguments, collection = request.arguments, request.collection
        records = len(arguments.get("ids") or ())
        entries = self._entries.get(collection, 0)
        threshold = self._thresholds.get(collection)
        if threshold is None and records >= _LOOKED_UP_FROM:
            stored = self.api.get_collection_by_id(arguments["collection_id"], **database_of(arguments))
            settings = stored.configuration_json.get("hnsw") or {}
            threshold = self._thresholds[collection] = int(settings.get("sync_threshold") or 0)
            entries = entries % threshold if threshold else 0
        entries += records
        self._entries[collection] = 0 if threshold and entries >= threshold else entries

    def work(self) -> bool:
        """Do a slice of what the follower has left to do; return whether there is more."""
        return self.delete_unwanted() or (self.hook is not None and self.hook.work())

    def delete_unwanted(self) -> bool:
        """Delete a slice of what nothing needs any more; return whether there was one.

        What cannot be deleted now is found when it is swept.
        """
        request = None if self.hook is None else self.hook.next_deletion()
        if request is None:
            return False
        try:
            self.execute(request, monotonic())
        except Exception as error:  # noqa: BLE001 - no caller asked for it
            log.warning("chunks.not_deleted", collection=request.collection, error=error)
        return True

    def settle(self) -> None:
        """Delete all that nothing needs any more."""
        while self.delete_unwanted():
            pass

    def follow(self, hook: WriteHook) -> None:
        """Have every write followed from now on, and offer the operations that the follower adds."""
        self.hook, self._further = hook, hook.operations()

    def _note_use(self, collection: str) -> None:
        """Note that a collection is used, and say so once when there are more than Chroma can keep loaded."""
        if not collection or collection in self._used:
            return
        self._used.add(collection)
        most = collections_within_limit()
        if self._system.settings.is_persistent and most is not None and len(self._used) == most:
            log.warning("database.many_collections", collections=len(self._used))

    def _note_lists(self, request: Request) -> None:
        """Note that a collection in memory has lists in its metadata; of a directory's, SQLite itself deletes them."""
        if not self._system.settings.is_persistent and any(
            isinstance(value, list)
            for metadata in request.arguments.get("metadatas") or ()
            for value in (metadata or {}).values()
        ):
            self._with_lists.add(request.collection)

    def _delete_lists(self, collection: str, database: Database) -> None:
        """Delete the records of a collection: their lists outlive it otherwise, and show in later records of the same rows."""
        ids = self.records.get(collection, include=[], **database)["ids"]
        for start in range(0, len(ids), _DELETED_AT_ONCE):
            self.records.delete(collection, ids[start : start + _DELETED_AT_ONCE], **database)
        self.records.get(
            collection, limit=1, include=[], **database
        )  # Deletes them: until then it is only logged.
        self._with_lists.discard(collection)

    def _delete_all_lists(self, database: Database) -> None:
        """Do the same for all collections of a database that is about to be deleted."""
        for one in self.records.collections(**database):
            if str(one.id) in self._with_lists:
                self._delete_lists(str(one.id), database)

    def _delete_collection(self, arguments: Any) -> None:
        """Delete a collection and what follows it, which goes by the id that cannot be looked up afterwards."""
        collection = str(self.api.get_collection(**arguments).id)
        if collection in self._with_lists:
            self._delete_lists(collection, database_of(arguments))
        self.api.delete_collection(**arguments)
        self.records.dropped(collection)
        self._used.discard(collection)
        self._counts.pop(collection, None)
        self._entries.pop(collection, None)
        self._changed.discard(collection)
        if self.hook is not None:
            self.hook.forget_collection(collection)

    def _forget_all(self) -> None:
        self.records.dropped()
        self._used.clear()
        self._counts.clear()
        self._changed.clear()
        if self.hook is not None:
            self.hook.forget_everything()

    def count_documents(self, tenant: str, database: str) -> int:
        """Return how many records a database holds, without holding the interpreter for long.

        Counts are kept; those of collections that changed since are taken again, a few at a time, so the number may lag
        behind in a store with very many collections.
        """
        collections = self.api.list_collections(tenant=tenant, database=database)
        stale = [
            entry
            for entry in collections
            if str(entry.id) not in self.unusable
            and (str(entry.id) not in self._counts or str(entry.id) in self._changed)
        ]
        for entry in stale[:_COUNTS_AT_ONCE]:
            self._counts[str(entry.id)] = self.records.count(entry.id, tenant=tenant, database=database)
            self._changed.discard(str(entry.id))
        return sum(self._counts.get(str(entry.id), 0) for entry in collections)

    def list_ids(
        self,
        collection_id: UUID | str,
        listing: int,
        limit: int | None = None,
        offset: int | None = None,
        **database: Unpack[Database],
    ) -> JsonObject:
        """Return the ids of a large read, or None in their place as long as they are not there."""
        start = offset or 0
        end = None if limit is None else start + limit
        ids = self._listing.exactly(listing, str(collection_id), database, end)
        return {"ids": None if ids is None else ids[start:end]}

    def close(self) -> None:
        """Let go of the database."""
        self._listing.close()
        self._own, self._further = {}, {}
        if self.hook is not None:
            self.hook.close({})
            self.hook = None
        del self.api, self.records
        self._system.stop()


_LOOKED_UP_FROM = 16
"""Chroma writes an unknown id to its log and applies it, in 0.8 ms; to look it up takes a hundredth of that."""

_ENOUGH_DESCRIPTORS = 65_536
_DESCRIPTORS_PER_COLLECTION = 16
"""An index takes four or five; Chroma begins to unload indexes long before the limit, and one that was never written to its files
cannot be loaded again."""


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may, because Chroma's cache of indexes is a share of that number.

    With the usual soft limit of 1,024 a database with some sixty collections is opened again and again.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wish = _ENOUGH_DESCRIPTORS if hard == unlimited else min(hard, _ENOUGH_DESCRIPTORS)
    if soft != unlimited and soft < wish:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wish, hard))
        except (OSError, ValueError):
            return  # The system allows less than it says; `collections_within_limit` goes by what holds.


def collections_within_limit() -> int | None:
    """Return how many collections Chroma keeps loaded safely under the present limit of open files; None where there is none."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft // _DESCRIPTORS_PER_COLLECTION


def give_memory_back() -> None:
    """Have the C library return what Chroma's threads have freed; only glibc keeps it, for every thread that ever was."""
    if not sys.platform.startswith("linux"):
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # Another C library, which keeps nothing.
    trim(0)


def chroma_settings(given: Settings | None, **fixed: object) -> Settings:
    """Return settings for a database; chromadb is imported here, which takes half a second.

    Args:
        given: The caller's own, which are not changed; None for Chroma's defaults.
        fixed: Fields that are decided by us.

    Raises:
        InvalidInputError: chromadb cannot be imported, because a variable or ``.env`` has a value that its settings refuse.
    """
    import_chromadb()
    from chromadb.config import Settings

    # Without its constructor, which is what reads the environment.
    settings = Settings.model_construct() if given is None else given.model_copy(deep=True)
    for name, value in {"anonymized_telemetry": False, **fixed}.items():
        setattr(settings, name, value)
    return settings
