"""What the messages between a client and its host hold: written by one side and read by the other.

Here is also what may travel beside plain data. Importing this module is light; making the codec imports chromadb, so it is made
on the link's thread.

Chroma's configurations hold embedding functions, which cannot travel. The client lets Chroma turn the configuration into JSON
(which checks it and registers the function's class in the client), and the host gives Chroma an object that answers with
what the JSON says.
"""

from __future__ import annotations

import builtins
import dataclasses
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aiochroma._clock import monotonic
from aiochroma._distribution import version
from aiochroma._errors import AiochromaError, ForeignError, error_from_dict, error_to_dict
from aiochroma._types import JsonObject, MetadataView, Vector
from aiochroma.core.config import EngineOptions
from aiochroma.core.connection import BackendInfo, Capabilities
from aiochroma.core.operations import OPERATIONS
from aiochroma.core.request import Arguments, Request
from aiochroma.core.stats import observer
from aiochroma.disk.findings import CollectionRecovery, RecoveryReport
from aiochroma.disk.ownership import Owner
from aiochroma.host.wire import FRAME_LIMIT, PROTOCOL, Codec, FrameKind, Plain, ProtocolError, frame
from aiochroma.records import spec
from aiochroma.records.history import Entry
from aiochroma.records.ranking import ScoreParts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chromadb.config import Settings

    from aiochroma.core.calls import Ticket

__all__ = [
    "LARGE",
    "Received",
    "error_from_wire",
    "error_to_wire",
    "event_values",
    "make_codec",
    "message_frames",
    "options_from_json",
    "options_to_json",
    "received",
    "records_of",
    "request_from_wire",
    "request_to_wire",
    "travelling",
    "versions",
]


class VectorRows:
    """A list of equally long vectors, which travels as one array and arrives as a list again.

    Args:
        vectors: Arrays of one dimension, one length and one type.
    """

    __slots__ = ("vectors",)

    def __init__(self, vectors: list[Vector]) -> None:
        self.vectors: list[Vector] = vectors

    def to_plain(self) -> Plain:
        """Return them as one array; Chroma's 32-bit numbers as their bytes."""
        import numpy as np

        if self.vectors[0].dtype == np.float32:
            return [len(self.vectors), b"".join([vector.tobytes() for vector in self.vectors])]
        return np.stack(self.vectors)

    @staticmethod
    def from_plain(plain: Plain) -> list[Vector]:
        """Return the vectors."""
        import numpy as np

        if type(plain) is not list:
            return list(plain)
        count, numbers = plain
        return list(np.frombuffer(numbers, np.float32).reshape(count, -1).copy())

    @staticmethod
    def fitting(value: Plain) -> Plain:
        """Return a list of vectors as rows, or the value itself where it is no such list."""
        if type(value) is not list or not value or type(value[0]).__module__ != "numpy":
            return value
        first = value[0]
        shape, dtype = first.shape, first.dtype
        if len(shape) != 1 or not dtype.isnative or dtype.kind not in "fiu":
            return value
        kind = type(first)
        if all(type(vector) is kind and vector.shape == shape and vector.dtype == dtype for vector in value):
            return VectorRows(value)
        return value


_ROW_FIELDS = ("embeddings", "query_embeddings", "vectors")
_ROWS_AT_ONCE = 512
"""The most vectors stacked into one array: more would hold the interpreter for longer."""

_REPORTS: tuple[type, ...] = (BackendInfo, Capabilities, Owner, RecoveryReport, CollectionRecovery)

_SPACES = ["cosine", "l2", "ip"]


def make_codec() -> Codec:
    """Return the codec that clients and hosts of this version share."""
    from chromadb.api.types import IndexingStatus, ReadLevel, Schema
    from chromadb.auth import UserIdentity
    from chromadb.base_types import SparseVector
    from chromadb.config import Settings
    from chromadb.execution.expression.plan import Search
    from chromadb.types import Collection

    from aiochroma.backend.schemas import StoredSchema

    codec = Codec()
    codec.register(10, Collection, dict, lambda fields: Collection(**fields))
    codec.register(12, ReadLevel, lambda level: level.value, ReadLevel)
    codec.register(15, Schema, Schema.serialize_to_json, StoredSchema)
    codec.register(16, _StoredConfiguration, _StoredConfiguration.to_plain, _configuration)
    # Chroma says that it does not search so on a single machine; it does not look at the search.
    codec.register(17, Search, Search.to_dict, dict)
    codec.register(18, type(Path()), str, Path)
    codec.register(19, Settings, settings_to_json, settings_from_json)
    own = enumerate((*_REPORTS, *_of_searches()), start=20)
    for code, kind in ((11, UserIdentity), (13, SparseVector), (14, IndexingStatus), *own):
        fields = _WITHIN.get(kind) or _Fields(kind)
        codec.register(code, kind, fields.to_plain, fields.from_plain)
    codec.register(126, VectorRows, VectorRows.to_plain, VectorRows.from_plain)
    codec.register(127, Entry, tuple, Entry._make)
    return codec


def _of_searches() -> list[type]:
    """Return every dataclass that searches are made of, in an order that both sides have."""
    classes = [each for each in vars(spec).values() if isinstance(each, type)]
    own = [each for each in classes if dataclasses.is_dataclass(each) and each.__module__ == spec.__name__]
    return sorted([*own, ScoreParts], key=lambda each: each.__name__)


def settings_to_json(settings: Settings) -> JsonObject:
    """Return Chroma's settings as plain data."""
    return settings.model_dump(mode="json")


def settings_from_json(values: JsonObject) -> Settings:
    """Return Chroma's settings as they were, whatever this process's environment and working directory say."""
    from chromadb.config import Settings

    return Settings(_env_file=None, **values)  # type: ignore[call-arg] # an argument of pydantic-settings


class _Fields:
    """How a dataclass travels: as the list of all its fields; both sides are of one version.

    To encode what is in them as a registered type each time would take longer than all the rest.

    Args:
        kind: The class.
        one: The fields that hold an instance of another dataclass, and how that travels.
        many: The fields that hold a tuple of such.
    """

    def __init__(
        self, kind: type, one: Mapping[str, _Fields] | None = None, many: Mapping[str, _Fields] | None = None
    ) -> None:
        self.kind: type = kind
        self._names = [field.name for field in dataclasses.fields(kind)]
        self._one = [(self._names.index(name), fields) for name, fields in (one or {}).items()]
        self._many = [(self._names.index(name), fields) for name, fields in (many or {}).items()]

    def to_plain(self, value: object) -> list[Plain]:
        """Return the fields."""
        if type(value) is not self.kind:
            raise TypeError(f"{value!r:.100} cannot be sent to another process as {self.kind.__name__}.")
        plain: list[Plain] = [getattr(value, name) for name in self._names]
        for position, fields in self._one:
            plain[position] = fields.to_plain(plain[position])
        for position, fields in self._many:
            plain[position] = [fields.to_plain(each) for each in plain[position]]
        return plain

    def from_plain(self, values: list[Plain]) -> object:
        """Return the instance as it was, and not as its constructor would make it."""
        for position, fields in self._one:
            values[position] = fields.from_plain(values[position])
        for position, fields in self._many:
            values[position] = tuple([fields.from_plain(each) for each in values[position]])
        made: object = object.__new__(self.kind)
        vars(made).update(zip(self._names, values, strict=True))
        return made


_HIT = _Fields(
    spec.SearchHit,
    {"score": _Fields(ScoreParts)},
    {"before": _Fields(spec.Neighbour), "after": _Fields(spec.Neighbour)},
)
_WITHIN: dict[type, _Fields] = {
    spec.SearchHit: _HIT,
    spec.SearchResult: _Fields(spec.SearchResult, many={"hits": _HIT}),
    spec.CollectionSearch: _Fields(spec.CollectionSearch, {"spec": _Fields(spec.SearchSpec)}),
}


def travelling(arguments: Arguments) -> tuple[JsonObject, dict[str, list[VectorRows]]]:
    """Return arguments as they travel: plain ones, and the vectors in arrays of a few hundred each.

    Raises:
        ValueError: Chroma finds something wrong with a configuration.
    """
    plain = dict(arguments)
    rows: dict[str, list[VectorRows]] = {}
    for name in _ROW_FIELDS:
        fitting = VectorRows.fitting(plain[name]) if name in plain else None
        if type(fitting) is VectorRows:
            vectors = plain.pop(name)
            rows[name] = [
                VectorRows(vectors[start : start + _ROWS_AT_ONCE])
                for start in range(0, len(vectors), _ROWS_AT_ONCE)
            ]
    for name in ("configuration", "new_configuration"):
        if plain.get(name):
            plain[name] = _StoredConfiguration(_as_json(name, plain[name], plain.get("metadata")))
    return plain, rows


def received(arguments: JsonObject, rows: Mapping[str, list[list[Vector]]]) -> JsonObject:
    """Return the arguments that :func:`travelling` was given."""
    for name, blocks in rows.items():
        arguments[name] = [vector for block in blocks for vector in block]
    return arguments


def _as_json(name: str, configuration: Plain, metadata: Plain) -> JsonObject:
    from chromadb.api import collection_configuration as chroma

    if name == "configuration":
        return chroma.create_collection_configuration_to_json(configuration, metadata)
    return chroma.update_collection_configuration_to_json(configuration)


class _StoredConfiguration:
    """A collection's configuration as Chroma writes it down."""

    def __init__(self, json: JsonObject) -> None:
        self.json = json

    def to_plain(self) -> JsonObject:
        return self.json


def _configuration(json: JsonObject) -> JsonObject:
    """Return the configuration that Chroma turns into this JSON."""
    return {**json, "embedding_function": _function(json.get("embedding_function"))} if json else json


def _function(stored: MetadataView | None) -> object:
    """Return an object that answers what Chroma asks an embedding function; of a class of its own, as Chroma goes by that."""
    if stored is None or stored.get("type") == "legacy":
        return None
    name, config = stored["name"], stored["config"]
    answers = {
        "name": staticmethod(lambda: name),
        "get_config": lambda _: config,
        "is_legacy": lambda _: False,
        "default_space": lambda _: _SPACES[0],
        "supported_spaces": lambda _: _SPACES,
        "validate_config": staticmethod(lambda _: None),
        "build_from_config": staticmethod(lambda _: _function(stored)),
    }
    return type("StoredFunction", (), answers)()


LARGE = 64
"""Messages of more records than this are encoded and sent in segments."""

_SHARED_OPTIONS = (
    "max_write_slice_ms",
    "vector_cache_mb",
    "lock_timeout",
    "durable",
    "allow_missing_vectors",
)
"""What of a client's options concerns the host; the others are matters of the client alone."""


class Received(NamedTuple):
    """A request as the host receives it."""

    request: Request
    deadline: float | None
    carrier: dict[str, str]


def versions() -> JsonObject:
    """Return what must be equal on both sides, as it is here."""
    return {"protocol": PROTOCOL, "aiochroma": version(), "chromadb": metadata.version("chromadb")}


def options_to_json(options: EngineOptions) -> JsonObject:
    """Return what a client asks of the host."""
    values = {name: getattr(options, name) for name in _SHARED_OPTIONS}
    settings = options.settings
    return {**values, "settings": None if settings is None else settings_to_json(settings)}


def options_from_json(values: MetadataView) -> EngineOptions:
    """Return what a client asks of the host.

    Raises:
        ProtocolError: They are no options.
    """
    try:
        settings = values.get("settings")
        return EngineOptions(
            settings=None if settings is None else settings_from_json(settings),
            **{name: values.get(name) for name in _SHARED_OPTIONS},
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"The options cannot be read: {type(error).__name__}") from None


def request_to_wire(ticket: Ticket) -> list[object]:
    """Return a request as it travels. No clock is shared: a deadline travels as the seconds that are left.

    Where this process is observed it says, too, which call it belongs to.
    """
    request = ticket.request
    arguments, rows = travelling(request.arguments)
    left = None if ticket.deadline is None else max(0.0, ticket.deadline - monotonic())
    watching = observer()
    carrier = {} if watching is None else watching.carrier(ticket.context)
    return [request.operation, arguments, rows, request.bulk, request.atomic, left, carrier]


def request_from_wire(plain: Plain) -> Received:
    """Return a request.

    Raises:
        ProtocolError: The value is not a request.
    """
    try:
        operation, arguments, rows, bulk, atomic, left, carrier = plain
        if operation not in OPERATIONS:
            raise ProtocolError(f"The unknown operation {operation!r} came.")
        request = Request(operation, received(arguments, rows), bool(bulk), bool(atomic))
        carrier = {str(key): str(value) for key, value in carrier.items()} if carrier else {}
        return Received(request, None if left is None else monotonic() + float(left), carrier)
    except (TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"A request cannot be read: {type(error).__name__}: {error}") from None


def records_of(value: object) -> int:
    """Return about how many records there are in arguments or in a result."""
    if type(value) is not dict:
        return len(value) if type(value) is list else 0
    ids, queries = value.get("ids"), value.get("query_embeddings")
    return max(len(ids) if type(ids) is list else 0, len(queries) if type(queries) is list else 0)


def message_frames(
    codec: Codec, kind: FrameKind, number: int, value: object, *, large: bool
) -> Iterator[bytes]:
    """Return the frames of a message; a large one is encoded a segment at a time.

    Raises:
        TypeError: There is something in it that does not travel. Frames may have been yielded before: ``CANCEL`` makes the
            other side drop them.
    """
    if not large:
        body = codec.encode(value)
        if len(body) <= FRAME_LIMIT // 4:
            return iter((frame(kind, number, body),))
    return _segments(codec, kind, number, value)


def _segments(codec: Codec, kind: FrameKind, number: int, value: object) -> Iterator[bytes]:
    segment = b""
    for following in codec.segments(value):
        if segment:
            yield frame(FrameKind.SEGMENT, number, segment)
        segment = following
    yield frame(kind, number, segment)


def event_values(values: MetadataView) -> JsonObject:
    """Return an event's values as they travel: texts, numbers, and the texts of everything else."""
    return {
        name: value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
        for name, value in values.items()
    }


_PLAIN = (str, bytes, int, float, bool, type(None))


def error_to_wire(error: BaseException) -> list[object]:
    """Return an error as plain data: what it is, the arguments of one of Python's own, and where it happened."""
    kind = type(error)
    arguments = None
    if kind.__module__ == "builtins" and all(type(value) in _PLAIN for value in error.args):
        arguments = list(error.args)
    expected = isinstance(error, AiochromaError) or kind.__module__.startswith("chromadb.")
    frames = None if expected else "".join(traceback.format_tb(error.__traceback__))
    return [error_to_dict(error), arguments, frames]


def error_from_wire(plain: Plain) -> Exception:
    """Return the error again; one that cannot be made here, such as a panic of native code, is a ``RuntimeError`` that names it.

    Raises:
        ProtocolError: This is no error.
    """
    try:
        described, arguments, frames = plain
        error = error_from_dict(described)
        if arguments is not None:
            error = _of_python(str(described["type"]), arguments, error)
    except Exception as problem:  # noqa: BLE001 - whatever is wrong with it
        raise ProtocolError(f"An error cannot be decoded: {type(problem).__name__}: {problem}") from None
    if isinstance(error, ForeignError):
        cause = error.__cause__
        error = RuntimeError(f"{error.type_name.rpartition('.')[2]}: {error.args[1]}")
        error.__cause__ = cause
    if frames and sys.version_info >= (3, 11):
        error.add_note(f"In the host process:\n{frames}".rstrip())
    return error


def _of_python(name: str, arguments: list[object], otherwise: Exception) -> Exception:
    """Make one of Python's own errors from its arguments."""
    kind = getattr(builtins, name.removeprefix("builtins."), None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return otherwise
    error = kind(*arguments)
    error.__cause__ = otherwise.__cause__
    return error
