"""The namespaces of a memory and their records: a collection for each."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

from aiochroma._errors import EmbedderError, EmbedderMismatchError
from aiochroma.embedding.identity import is_alike, is_same_name
from aiochroma.memory.namespaces import collection_name, namespace_of, parts_name
from aiochroma.memory.opened import OpenStore
from aiochroma.memory.recall import Hit, hit_from
from aiochroma.records.filters import plain
from aiochroma.records.record import PART_OF, PARTS, WRITING, part_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aiochroma.memory.items import Item
    from aiochroma.memory.opened import Embedded

__all__ = ["Namespace", "Store"]

T = TypeVar("T")

NAMESPACE = "aiochroma:namespace"
EMBEDDER = "aiochroma:embedder"
DIMENSIONS = "aiochroma:dimensions"
FINGERPRINT = "aiochroma:embedder_fingerprint"
PARTS_FOR = "aiochroma:parts_for"

_PARTS_AT_ONCE = 256
_DELETED_AT_ONCE = 64


class Namespace:
    """A namespace that exists: its collection's place in Chroma.

    Attributes:
        name: The namespace.
        place: The arguments that every operation on its collection has.
        parts: The name of the collection that holds the parts of its long texts.
    """

    __slots__ = ("name", "parts", "place")

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.place = {"collection_id": model.id, "tenant": model.tenant, "database": model.database}
        self.parts = parts_name(name)


class Store(OpenStore):
    """A collection for each namespace, on an open client; arguments as :class:`OpenStore`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._namespaces: dict[str, Namespace] = {}

    def _opened_anew(self) -> None:
        self._namespaces.clear()

    # -- namespaces ----------------------------------------------------------------------------------------------------

    async def find(
        self, names: Sequence[str], *, any_embedder: bool = False
    ) -> dict[str, Namespace | Exception | None]:
        """Look namespaces up, all at the same time; each once.

        Args:
            names: Their names.
            any_embedder: Also those of other embedders, for what compares no vectors.

        Returns:
            For each name the namespace, None where it does not exist, or the exception.
        """
        from chromadb.errors import NotFoundError

        unknown = [name for name in names if name not in self._namespaces]
        found: dict[str, Namespace | Exception | None] = {
            name: self._namespaces[name] for name in names if name in self._namespaces
        }
        client = self._client
        operations = [
            (
                "get_collection",
                {"name": collection_name(name), "tenant": client.tenant, "database": client.database},
            )
            for name in unknown
        ]
        answers = await self.port.submit_many(client, operations) if operations else []
        for name, answer in zip(unknown, answers, strict=True):
            if answer.error is None:
                found[name] = await self._known(name, answer.result, any_embedder=any_embedder)
            elif isinstance(answer.error, NotFoundError):
                found[name] = None
            elif isinstance(answer.error, Exception):
                found[name] = answer.error
            else:
                raise answer.error
        return found

    async def existing(self, name: str, *, any_embedder: bool = False) -> Namespace | None:
        """Return a namespace, or None where there is none."""
        found = (await self.find([name], any_embedder=any_embedder))[name]
        if isinstance(found, Exception):
            raise found
        return found

    async def on(
        self,
        name: str,
        work: Callable[[Namespace], Awaitable[T]],
        *,
        absent: T,
        any_embedder: bool = False,
    ) -> T:
        """Do something with a namespace; ``absent`` is the outcome where there is none."""
        from chromadb.errors import NotFoundError

        for attempt in (1, 2):
            namespace = await self.existing(name, any_embedder=any_embedder)
            if namespace is None:
                break
            try:
                return await work(namespace)
            except NotFoundError:
                # Somebody has deleted it, and perhaps made it anew.
                self.drop(name)
                if attempt == 2:
                    raise
        return absent

    async def on_made(self, name: str, work: Callable[[Namespace], Awaitable[T]]) -> T:
        """Do something with a namespace, which is made where there is none."""
        from chromadb.errors import NotFoundError

        try:
            return await work(await self.made(name))
        except NotFoundError:
            self.drop(name)
            return await work(await self.made(name))

    async def made(self, name: str) -> Namespace:
        """Return a namespace, making it where there is none."""
        known = await self.existing(name)
        if known is not None:
            return known
        embedder = self.embedder
        fingerprint = await self.fingerprint()
        model = await self.submit(
            "get_or_create_collection",
            name=collection_name(name),
            configuration={"hnsw": {"space": "cosine"}},
            metadata={
                NAMESPACE: name,
                EMBEDDER: embedder.identity,
                DIMENSIONS: embedder.dimensions,
                FINGERPRINT: fingerprint,
            },
            tenant=self._client.tenant,
            database=self._client.database,
        )
        namespace = await self._known(name, model)
        if isinstance(namespace, Exception):
            raise namespace
        return namespace

    async def _known(self, name: str, model: Any, *, any_embedder: bool = False) -> Namespace | Exception:
        metadata = model.metadata or {}
        stored = metadata.get(EMBEDDER)
        if await self._is_mine(metadata):
            namespace = self._namespaces[name] = Namespace(name, model)
            return namespace
        if any_embedder and stored is not None:
            return Namespace(name, model)  # Not kept: the next call may want to compare vectors.
        return EmbedderMismatchError(
            f"The namespace {name!r} holds vectors of {_described(stored, metadata)} and this memory embeds with "
            f"{_described(self.embedder.identity, {DIMENSIONS: self.embedder.dimensions})}. Vectors of different embedders "
            "cannot be compared: open the memory with the first one, or embed the texts again in another namespace."
        )

    async def _is_mine(self, metadata: Mapping[str, Any]) -> bool:
        """Tell whether this memory's embedder made a namespace's vectors; see :mod:`aiochroma.embedding.identity`."""
        stored, embedder = metadata.get(EMBEDDER), self.embedder
        fingerprint, dimensions = metadata.get(FINGERPRINT), metadata.get(DIMENSIONS)
        if not isinstance(stored, str):
            return False
        same = is_same_name(stored, embedder.identity)
        if None not in {dimensions, embedder.dimensions} and dimensions != embedder.dimensions:
            return False
        if not isinstance(fingerprint, str) or (same and embedder.is_certain):
            return same
        try:
            alike = is_alike(fingerprint, await self.fingerprint())
        except EmbedderError:
            return same  # Its failure is told where its vectors are needed.
        return alike and dimensions in {None, embedder.dimensions}

    def drop(self, name: str) -> None:
        """Forget what is known of a namespace that may be gone."""
        self._namespaces.pop(name, None)

    async def names(self) -> list[str]:
        """Return the names of all namespaces, sorted."""
        models = await self.submit(
            "list_collections",
            limit=None,
            offset=None,
            tenant=self._client.tenant,
            database=self._client.database,
        )
        names = []
        for model in models:
            metadata = model.metadata or {}
            if EMBEDDER in metadata:
                names.append(metadata.get(NAMESPACE) or namespace_of(model.name) or model.name)
        return sorted(names)

    # -- records -------------------------------------------------------------------------------------------------------

    def _audit(self, namespace: Namespace) -> str | None:
        return namespace.name if self._history else None

    async def write(
        self,
        namespace: Namespace,
        items: Sequence[Item],
        embedded: Sequence[Embedded],
        *,
        bulk: bool,
        exact: bool = False,
        dedupe: bool = False,
    ) -> dict[str, str]:
        """Write items whose ids are all different, as one request.

        Args:
            namespace: Where.
            items: What; see ``distinct``.
            embedded: The vectors of each.
            bulk: Yield to others.
            exact: Leave nothing of what was there before.
            dedupe: Refresh what was said before in its thread.

        Returns:
            Other ids, of texts whose own id belongs to a memory that was changed to another text since.
        """
        writings = await self._write_parts(namespace, items, embedded)
        moved: dict[str, str] = await self.submit(
            "remember",
            bulk=bulk,
            **namespace.place,
            ids=[item.id for item in items],
            embeddings=[entry.vector for entry in embedded],
            documents=[item.text for item in items],
            metadatas=[
                {
                    **item.metadata,
                    **item.own,
                    **writings.get(item.id, {}),
                }
                for item in items
            ],
            uris=None,
            parts=namespace.parts,
            exact=exact,
            dedupe=dedupe,
            history_namespace=self._audit(namespace),
        )
        return moved

    async def _write_parts(
        self, namespace: Namespace, items: Sequence[Item], embedded: Sequence[Embedded]
    ) -> dict[str, dict[str, Any]]:
        """Write the parts of long texts, and return what their memories are to say about them.

        The parts come first: a memory that is there has all its parts.
        """
        long = {item.id: entry.parts for item, entry in zip(items, embedded, strict=True) if entry.parts}
        if not long:
            return {}
        place = {"tenant": self._client.tenant, "database": self._client.database}
        holder = await self.submit(
            "get_or_create_collection",
            name=namespace.parts,
            configuration={"hnsw": {"space": "cosine"}},
            metadata={PARTS_FOR: namespace.name},
            **place,
        )
        writings: dict[str, dict[str, Any]] = {
            id: {WRITING: uuid.uuid4().hex, PARTS: len(parts)} for id, parts in long.items()
        }
        rows = [
            (part_id(writings[id][WRITING], number), id, text, vector)
            for id, parts in long.items()
            for number, (text, vector) in enumerate(parts)
        ]
        for start in range(0, len(rows), _PARTS_AT_ONCE):
            page = rows[start : start + _PARTS_AT_ONCE]
            await self.submit(
                "_upsert",
                bulk=len(rows) > _PARTS_AT_ONCE,
                collection_id=holder.id,
                ids=[row[0] for row in page],
                embeddings=[row[3] for row in page],
                metadatas=[{PART_OF: row[1]} for row in page],
                documents=[row[2] for row in page],
                uris=None,
                **place,
            )
        return writings

    async def change(
        self,
        namespace: Namespace,
        id: str,
        values: Mapping[str, Any],
        *,
        action: str,
        item: Item | None = None,
        embedded: Embedded | None = None,
    ) -> Hit | None:
        """MemoryChange a memory that is there, and return it as it is then.

        Args:
            namespace: Where.
            id: Which.
            values: Metadata to set; None takes a value away.
            action: What the history calls it.
            item: Its new text, or None.
            embedded: The vectors of that.
        """
        writing: dict[str, Any] = {}
        if item is not None and embedded is not None:
            writing = (await self._write_parts(namespace, [item], [embedded])).get(id, {})
        changed = await self.submit(
            "change_memories",
            atomic=True,
            **namespace.place,
            ids=[id],
            embeddings=None if embedded is None else [embedded.vector],
            metadatas=[{**values, **writing}],
            documents=None if item is None else [item.text],
            uris=None,
            parts=namespace.parts,
            action=action,
            history_namespace=self._audit(namespace),
        )
        return (
            hit_from(namespace.name, id, changed[0]["document"], changed[0]["metadata"]) if changed else None
        )

    async def read(
        self,
        namespace: Namespace,
        ids: list[str],
        *,
        embeddings: bool = False,
    ) -> list[tuple[Hit, Any]]:
        """Return records by id, each with its vector if that is wanted (else None)."""
        include = ["metadatas", "documents", *(["embeddings"] if embeddings else [])]
        result = await self.submit(
            "_get",
            **namespace.place,
            ids=ids,
            where=None,
            where_document=None,
            limit=None,
            offset=None,
            include=include,
        )
        vectors = result["embeddings"] if embeddings else [None] * len(result["ids"])
        return [
            (hit_from(namespace.name, id, document, metadata), vector)
            for id, document, metadata, vector in zip(
                result["ids"], result["documents"], result["metadatas"], vectors, strict=True
            )
        ]

    async def forget(
        self, namespace: Namespace, ids: Sequence[str], *, action: str, expired_only: bool = False
    ) -> int:
        """Delete memories by id, or those of them that have expired, and return how many there were."""
        forgotten = 0
        for start in range(0, len(ids), _DELETED_AT_ONCE):
            forgotten += await self.submit(
                "forget_memories",
                atomic=True,
                **namespace.place,
                ids=list(ids[start : start + _DELETED_AT_ONCE]),
                parts=namespace.parts,
                action=action,
                expired_only=expired_only,
                history_namespace=self._audit(namespace),
            )
        return forgotten

    async def ids(self, namespace: Namespace, where: Mapping[str, Any] | None = None) -> list[str]:
        """Return the ids of all records, or of those that pass a filter."""
        result = await self.submit(
            "_get",
            **namespace.place,
            ids=None,
            where=plain(where) if where else None,
            where_document=None,
            limit=None,
            offset=None,
            include=[],
        )
        ids: list[str] = result["ids"]
        return ids

    async def count(self, namespace: Namespace) -> int:
        """Return how many memories there are."""
        count: int = await self.submit("_count", **namespace.place)
        return count

    async def forget_namespace(self, namespace: Namespace) -> int:
        """Delete a namespace and all that belongs to it, and return how many memories it held."""
        from chromadb.errors import NotFoundError

        forgotten = 0
        if self._history:
            forgotten = await self.forget(namespace, await self.ids(namespace), action="forget")
        forgotten += await self.count(namespace)
        self.drop(namespace.name)
        place = {"tenant": self._client.tenant, "database": self._client.database}
        await self.submit("delete_collection", name=collection_name(namespace.name), **place)
        with contextlib.suppress(NotFoundError):  # It had no long texts.
            await self.submit("delete_collection", name=namespace.parts, **place)
        return forgotten


def _described(identity: str | None, metadata: Mapping[str, Any]) -> str:
    """Return how messages call an embedder; two of one name differ in their dimensions, or in what they return."""
    if identity is None:
        return "an unknown embedder (of another program)"
    dimensions = metadata.get(DIMENSIONS)
    return f"{identity!r} ({dimensions} dimensions)" if dimensions is not None else repr(identity)
