"""What may travel between a client and its host beside plain data.

Importing this module is light; making the codec imports chromadb, so it is made on the link's thread.

Chroma's configurations hold embedding functions, which cannot travel. The client lets Chroma turn the configuration into JSON
(which checks it and registers the function's class in the client), and the host gives Chroma an object that answers with
what the JSON says.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiochroma._types import JsonObject, MetadataView
from aiochroma.core.connection import BackendInfo, Capabilities
from aiochroma.disk.ownership import Owner
from aiochroma.disk.recovery import CollectionRecovery, RecoveryReport
from aiochroma.host.codec import Codec, Rows
from aiochroma.records import spec
from aiochroma.records.history import Entry
from aiochroma.records.ranking import ScoreParts

if TYPE_CHECKING:
    import enum
    from collections.abc import Mapping

    from chromadb.config import Settings


__all__ = ["make_codec", "received", "register_dataclass", "travelling"]

_ROW_FIELDS = ("embeddings", "query_embeddings", "vectors")
_ROWS_AT_ONCE = 512
"""The most vectors stacked into one array: more would hold the interpreter for longer."""

_REPORTS: tuple[type[Any], ...] = (BackendInfo, Capabilities, Owner, RecoveryReport, CollectionRecovery)
_SPACES = ["cosine", "l2", "ip"]


def make_codec() -> Codec:
    """Return the codec that clients and hosts of this version share."""
    from chromadb.api.types import IndexingStatus, ReadLevel, Schema
    from chromadb.auth import UserIdentity
    from chromadb.base_types import SparseVector
    from chromadb.config import Settings
    from chromadb.execution.expression.plan import Search
    from chromadb.types import Collection

    codec = Codec()
    codec.register(10, Collection, dict, lambda fields: Collection(**fields))
    register_dataclass(codec, 11, UserIdentity)
    register_enum(codec, 12, ReadLevel)
    register_dataclass(codec, 13, SparseVector)
    register_dataclass(codec, 14, IndexingStatus)
    codec.register(15, Schema, Schema.serialize_to_json, _StoredSchema)
    codec.register(16, _StoredConfiguration, _StoredConfiguration.to_plain, _configuration)
    # Chroma says that it does not search so on a single machine; it does not look at the search.
    codec.register(17, Search, Search.to_dict, dict)
    codec.register(18, type(Path()), str, Path)
    codec.register(19, Settings, settings_to_json, settings_from_json)
    for code, kind in enumerate((*_REPORTS, *_of_searches()), start=20):
        register_dataclass(codec, code, kind)
    codec.register(127, Entry, tuple, Entry._make)
    return codec


def _of_searches() -> list[type[Any]]:
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


def register_dataclass(codec: Codec, code: int, kind: type[Any]) -> None:
    """Let a dataclass travel with all its fields, so that one that is added travels, too. Both sides are of one version."""
    names = [field.name for field in dataclasses.fields(kind)]

    def from_plain(values: list[Any]) -> Any:
        # As it was, and not as its constructor would make it.
        made = object.__new__(kind)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(made, name, value)
        return made

    codec.register(code, kind, lambda value: [getattr(value, name) for name in names], from_plain)


def register_enum(codec: Codec, code: int, kind: type[enum.Enum]) -> None:
    """Let the members of an enumeration travel."""
    codec.register(code, kind, lambda member: member.value, kind)


# -- requests ----------------------------------------------------------------------------------------------------------


def travelling(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return arguments as they travel: plain ones, and the vectors in arrays of a few hundred each.

    Raises:
        ValueError: Chroma finds something wrong with a configuration.
    """
    plain = dict(arguments)
    rows: dict[str, list[Any]] = {}
    for name in _ROW_FIELDS:
        fitting = Rows.fitting(plain.get(name))
        if type(fitting) is Rows:
            vectors = plain.pop(name)
            rows[name] = [
                Rows(vectors[start : start + _ROWS_AT_ONCE])
                for start in range(0, len(vectors), _ROWS_AT_ONCE)
            ]
    for name in ("configuration", "new_configuration"):
        if plain.get(name):
            plain[name] = _StoredConfiguration(_as_json(name, plain[name], plain.get("metadata")))
    return plain, rows


def received(arguments: dict[str, Any], rows: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return the arguments that :func:`travelling` was given."""
    for name, blocks in rows.items():
        arguments[name] = [vector for block in blocks for vector in block]
    return arguments


def _as_json(name: str, configuration: Any, metadata: Any) -> JsonObject:
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


def _function(stored: MetadataView | None) -> Any:
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


class _StoredSchema:
    """A collection's schema as Chroma writes it down."""

    def __init__(self, json: JsonObject) -> None:
        self._json = json

    def serialize_to_json(self) -> JsonObject:
        """Return what Chroma writes down."""
        return self._json
