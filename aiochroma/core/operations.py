"""What every operation is: the one table that planning, carrying out, repeating, following and sending requests read.

A row is plain data. Nothing outside of this module compares the names of operations. An operation without a row is a barrier
of which nothing is assumed: it is merged with none, never cut and never repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "OPERATIONS",
    "RECORD_FIELDS",
    "Effect",
    "Lane",
    "Merge",
    "Operation",
    "Repeat",
    "Result",
    "Space",
    "operation_of",
]


class Lane(IntEnum):
    """How a request is ordered against the others; see the guarantees in :mod:`aiochroma.core.worker`."""

    READ = 0
    """Looks, changes nothing: may pass queued writes."""
    CATALOG = 1
    """Creates a collection, tenant or database: in order among its kind, before record writes."""
    WRITE = 2
    """Changes records of one collection: in order within the collection."""
    BARRIER = 3
    """Changes what others may be looking at: after everything before it, before everything after it."""


class Merge(Enum):
    """Which requests that wait at the same moment become one call."""

    NONE = "none"
    EQUAL = "equal"
    """Those with equal arguments share one result."""
    QUERIES = "queries"
    """Those that differ in their queries only: one call with all queries."""
    GET_BY_ID = "get by id"
    """Those that differ in their ids only and ask for nothing but ids: one call with all ids."""
    RECORDS = "records"
    """Neighbouring ones of one kind with different ids: one call with all records."""


class Result(Enum):
    """What a result looks like, so that it can be taken apart and put together."""

    PLAIN = "plain"
    """Anything; it belongs to the whole call."""
    RECORDS = "records"
    """Chroma's result of ``get``: a list for each field, vectors in an array."""
    ROWS = "rows"
    """One entry per query, in a list or in each field of Chroma's result of ``query``."""
    DELETED = "deleted"
    """A mapping with the number of records under ``deleted``."""
    IDS = "ids"
    """Those of the ids for which something was done."""
    BY_ID = "by id"
    """A mapping whose keys are some of the ids."""
    HITS = "hits"
    """A list of mappings, each with its ``id``."""


class Effect(Enum):
    """What an operation does to records."""

    NONE = "none"
    WRITES = "writes"
    DELETES = "deletes"
    DROPS_COLLECTION = "drops a collection"
    DROPS_ALL = "drops all collections"


class Repeat(Enum):
    """Whether a call may be made twice without a difference, in its effect or in its result."""

    ALWAYS = "always"
    NEVER = "never"
    BY_ID = "by id"
    """Where it names its records by id and by nothing else: the second time a filter or a limit matches other records."""
    GET_OR_CREATE = "get or create"
    """Whether it takes one that is there already."""


class Space(Enum):
    """How much room on the disk an operation needs."""

    NONE = "none"
    LITTLE = "little"
    """It takes something away, and writes little for that."""
    MUCH = "much"


RECORD_FIELDS = ("ids", "embeddings", "metadatas", "documents", "uris")
"""Arguments of Chroma's writes that have one entry per record."""


@dataclass(frozen=True)
class Operation:
    """One kind of request.

    Attributes:
        name: A method of Chroma's ``ServerAPI``, or an operation that this package adds.
        lane: How it is ordered against the others.
        merge: Which of them are merged.
        result: What its result looks like.
        returns: The class of a plain result, where Chroma says what it is.
        record_fields: Arguments that have one entry per record; a long write is cut along them.
        query_fields: Arguments that have one entry per query.
        searched_field: The argument that has one entry per collection, where each query searches several; else empty.
        vector_fields: Arguments that hold vectors, one per entry; they travel as one array.
        effect: What it does to records.
        gives_vectors: The records that it writes can be found by their vectors afterwards, even if they had lost them.
        repeat: Whether it may be repeated after it may have been carried out.
        space: How much room on the disk it needs.
        paged: A large result is read in pages, and many questions are asked in pages.
        reads_first: It reads the collection before anything else, with the interpreter released.
        opens: It opens the database again, so the database need not be usable before.
        finds: It finds or makes a collection, or is asked when a client opens, which bulk writing does before it begins: no sign
            that somebody else is there.
        of_known: It does nothing to ids that have no record; Chroma takes as long for them all the same.
        renames: It gives a collection another name or other metadata.
    """

    name: str
    lane: Lane = Lane.BARRIER
    merge: Merge = Merge.NONE
    result: Result = Result.PLAIN
    returns: type = object
    record_fields: tuple[str, ...] = ()
    query_fields: tuple[str, ...] = ()
    searched_field: str = ""
    vector_fields: tuple[str, ...] = ()
    effect: Effect = Effect.NONE
    gives_vectors: bool = False
    repeat: Repeat = Repeat.NEVER
    space: Space = Space.MUCH
    paged: bool = False
    reads_first: bool = False
    opens: bool = False
    finds: bool = False
    of_known: bool = False
    renames: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name.lstrip("_")

    def may_be_repeated(self, arguments: Mapping[str, object]) -> bool:
        """Whether a call with these arguments may be made twice without a difference."""
        if self.repeat is Repeat.BY_ID:
            return not any(arguments.get(name) is not None for name in ("where", "where_document", "limit"))
        if self.repeat is Repeat.GET_OR_CREATE:
            return bool(arguments.get("get_or_create"))
        return self.repeat is Repeat.ALWAYS


def _read(name: str, merge: Merge = Merge.EQUAL, **more: Any) -> Operation:
    return Operation(name, Lane.READ, merge, repeat=Repeat.ALWAYS, space=Space.NONE, **more)


def _write(name: str, effect: Effect = Effect.WRITES, **more: Any) -> Operation:
    more = {"record_fields": RECORD_FIELDS, "vector_fields": ("embeddings",), "repeat": Repeat.ALWAYS, **more}
    return Operation(name, Lane.WRITE, Merge.RECORDS, effect=effect, **more)


def _deletion(name: str, **more: object) -> Operation:
    more = {"record_fields": ("ids",), "vector_fields": (), "space": Space.LITTLE, **more}
    return _write(name, Effect.DELETES, **more)


_CHROMA = (
    # Records.
    _write("_add"),
    _write("_update", of_known=True),
    _write("_upsert", gives_vectors=True),
    _deletion("_delete", result=Result.DELETED, repeat=Repeat.BY_ID, of_known=True),
    _read("_get", Merge.GET_BY_ID, result=Result.RECORDS, paged=True, reads_first=True),
    _read(
        "_query",
        Merge.QUERIES,
        result=Result.ROWS,
        query_fields=("query_embeddings",),
        vector_fields=("query_embeddings",),
        paged=True,
        reads_first=True,
    ),
    _read("_count", returns=int),
    *(_read(name) for name in ("_fork_count", "_get_indexing_status", "_peek", "_search")),
    # Collections.
    _read("count_collections", returns=int),
    *(_read(name, finds=True) for name in ("list_collections", "get_collection", "get_collection_by_id")),
    Operation("create_collection", Lane.CATALOG, repeat=Repeat.GET_OR_CREATE, finds=True),
    Operation("get_or_create_collection", Lane.CATALOG, repeat=Repeat.ALWAYS, finds=True),
    Operation("delete_collection", effect=Effect.DROPS_COLLECTION, space=Space.LITTLE),
    Operation("_fork"),
    Operation("_modify", renames=True),
    # Tenants and databases.
    *(_read(name, finds=True) for name in ("get_database", "get_tenant")),
    _read("list_databases"),
    *(Operation(name, Lane.CATALOG) for name in ("create_database", "create_tenant")),
    Operation("delete_database", effect=Effect.DROPS_ALL, space=Space.LITTLE),
    # The whole.
    _read("get_max_batch_size", returns=int, finds=True),
    _read("get_version", returns=str),
    *(_read(name) for name in ("get_settings", "get_user_identity", "heartbeat")),
    Operation("reset", effect=Effect.DROPS_ALL, space=Space.LITTLE),
    *(Operation(name) for name in ("attach_function", "detach_function", "get_attached_function")),
)

_MEMORIES = (
    _write("remember", record_fields=(*RECORD_FIELDS, "codes"), result=Result.BY_ID, gives_vectors=True),
    _write("change_memories", record_fields=(*RECORD_FIELDS, "codes"), result=Result.HITS),
    _write("code_memories", Effect.NONE, record_fields=("ids", "codes"), vector_fields=()),
    _deletion("forget_memories", result=Result.IDS, repeat=Repeat.NEVER),
    # After what its caller has left: chunks and memories are of two collections, and a write that was cut goes on by itself.
    Operation("drop_chunks", repeat=Repeat.ALWAYS, space=Space.LITTLE),
    _read(
        "search_memories",
        Merge.QUERIES,
        result=Result.ROWS,
        query_fields=("query_embeddings", "queries", "query_tokens"),
        searched_field="collections",
        vector_fields=("query_embeddings",),
        reads_first=True,
    ),
    *(
        _read(name, reads_first=True)
        for name in (
            "similar_memories",
            "list_memories",
            "count_memories",
            "memory_ids",
            "index_memories",
            "memories_without_code",
            "memory_writings",
        )
    ),
    _read("read_memories", Merge.QUERIES, result=Result.ROWS, query_fields=("ids",), reads_first=True),
    *(_read(name) for name in ("memory_history", "memory_namespaces")),
)

_OURS = (
    _read("count_documents"),
    _read("list_ids", reads_first=True),
    _read("missing_vectors"),
    _read("worn_collections"),
    # Chroma is not asked, so its index need not be loaded.
    _deletion("drop_records", reads_first=True),
    _write(
        "fill_vectors",
        record_fields=("ids", "documents", "embeddings"),
        result=Result.IDS,
        gives_vectors=True,
    ),
    Operation("copy_files", space=Space.NONE),
    Operation("erase_traces"),
    Operation("reopen", opens=True),
)

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {row.name: row for row in (*_CHROMA, *_MEMORIES, *_OURS)}
)
"""All operations by name."""


def operation_of(name: str) -> Operation:
    """Return the row of an operation; of one that has none nothing is assumed."""
    return OPERATIONS.get(name) or Operation(name)
