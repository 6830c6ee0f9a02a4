"""Erasing: forgetting in such a way that no file of the directory holds the bytes any more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError
from aiochroma._types import JsonObject, Vector, Where
from aiochroma.disk.erasing import ErasureReceipt
from aiochroma.memory.forgetting import delete, drop, selection
from aiochroma.memory.listing import matching_ids
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.opening import Call
from aiochroma.records.history import database_key
from aiochroma.records.record import CHUNK_OF

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiochroma.client.session import Session
    from aiochroma.memory.store import Namespace, Store

__all__ = ["erase_traces", "erasing", "refuse_unerasable"]

_AT_ONCE = 256


def erasing(
    id: str | None,
    *,
    namespace: str | None,
    where: Where | None,
    thread: str | None,
    scope: object,
) -> Call[ErasureReceipt]:
    """Erase what is selected; see ``Memory.erase``."""
    whole = id is None and where is None and thread is None and scope is None
    if whole and namespace is None:
        raise InvalidInputError("`erase` needs an `id`, a `where`, `thread` or `scope`, or a `namespace`.")
    chosen = (
        None
        if whole
        else selection("erase", id, namespace=namespace, where=where, thread=thread, scope=scope)
    )
    if whole:
        collection_name(namespace or "")

    async def work(store: Store) -> ErasureReceipt:
        session = store.client.session
        refuse_unerasable(session)
        traces = _Traces()
        database = database_key(**store.database)
        for name in [str(namespace)] if chosen is None else await chosen.namespaces(store):

            async def of_one(place: Namespace) -> int:
                if chosen is None:
                    ids = await matching_ids(store, place, None)
                else:
                    ids = await chosen.ids(store, place)
                await traces.read(store, place, ids)
                if chosen is None:
                    return await drop(store, place, noted=False)
                return await delete(store, place, ids, action="forget", noted=False)

            traces.erased += await store.on(name, of_one, absent=0, any_embedder=True)
        return await erase_traces(
            session,
            erased=traces.erased,
            texts=traces.texts,
            vectors=traces.vectors,
            history=traces.ids,
            history_database=database,
        )

    return Call("erase", work, None)


class _Traces:
    """What is to be found in no file any more.

    Attributes:
        erased: How many memories are erased.
        texts: Their texts.
        vectors: Their vectors, and those of the chunks of long texts.
        ids: Their ids by namespace.
    """

    def __init__(self) -> None:
        self.erased = 0
        self.texts: list[str] = []
        self.vectors: list[Vector] = []
        self.ids: dict[str, list[str]] = {}

    async def read(self, store: Store, namespace: Namespace, ids: list[str]) -> None:
        """Read what is to be erased."""
        self.ids[namespace.name] = ids
        for start in range(0, len(ids), _AT_ONCE):
            page = ids[start : start + _AT_ONCE]
            await self._add(store, namespace.place, ids=page, where=None)
            chunk_collection = await self._chunk_collection(store, namespace)
            if chunk_collection is not None:
                await self._add(store, chunk_collection, ids=None, where={CHUNK_OF: {"$in": page}})

    async def _add(self, store: Store, place: Mapping[str, Any], **which: object) -> None:
        found = await store.submit(
            "_get",
            **place,
            **which,
            where_document=None,
            limit=None,
            offset=None,
            include=["documents", "embeddings"],
        )
        self.texts += [text for text in found["documents"] if text]
        self.vectors += list(found["embeddings"])

    async def _chunk_collection(self, store: Store, namespace: Namespace) -> dict[str, Any] | None:
        from chromadb.errors import NotFoundError

        try:
            model = await store.submit("get_collection", name=namespace.parts, **store.database)
        except NotFoundError:
            return None
        return {**namespace.place, "collection_id": model.id}


def refuse_unerasable(session: Session) -> None:
    """Refuse before anything is forgotten where the files are out of reach.

    Raises:
        InvalidInputError: The database is a server's.
    """
    info = session.describe()
    if info.mode == "http":
        raise InvalidInputError(
            f"{info.name} keeps its files elsewhere: nothing can be erased from them here. `forget` deletes the records; erase "
            "the files with `aiochroma erase` where they are, with the server stopped."
        )


async def erase_traces(
    session: Session,
    *,
    erased: int,
    texts: Sequence[str],
    vectors: Sequence[Vector],
    history: Mapping[str, Sequence[str]] | None,
    history_database: str = "",
) -> ErasureReceipt:
    """Remove all that is dead from the files of a database, and look for what must not be there any more.

    Requests wait meanwhile: the database is closed and opened again.

    Args:
        session: A client's session.
        erased: How many memories were forgotten before.
        texts: Their texts.
        vectors: Their vectors.
        history: By namespace their ids, whose entries leave the history; None takes the texts out of all entries.
        history_database: What the history calls their Chroma database; see :func:`aiochroma.records.history.database_key`.

    Raises:
        InvalidInputError: The database is a server's.
        StoreUnavailableError: A file cannot be written, or an index is damaged.
    """
    refuse_unerasable(session)
    if not session.describe().capabilities.files:
        return ErasureReceipt(erased=erased, texts=len(texts), vectors=len(vectors))
    found: JsonObject = await session.submit(
        "erase_traces",
        texts=list(texts),
        vectors=list(vectors),
        history=None if history is None else {name: list(ids) for name, ids in history.items()},
        history_database=history_database,
    )
    found.pop("is_complete")
    return replace(ErasureReceipt(**found), erased=erased)
