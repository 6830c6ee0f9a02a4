"""The full-text index beside Chroma: written in the same request as Chroma, searched in the same request as the vectors.

Chroma is the truth and the index follows it. Every write to a collection that is indexed goes to Chroma first and then to
the index, whoever makes it. A collection whose index may have missed something (the process died, or another program wrote
to it) is indexed again from Chroma's documents before it is searched.

Everything here runs on the DB thread.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, TypeVar

from aiochroma._logging import get_logger
from aiochroma.records.filters import filter_of
from aiochroma.records.history import HISTORY_FILE, ChangeLog
from aiochroma.records.record import CREATED_AT, Place, Record, place_in_order, stub
from aiochroma.records.searching import Candidates, SearchingRecords, most_covering, most_near
from aiochroma.text.index import IndexedText, Neighbour, TextIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from chromadb.api import ServerAPI

    from aiochroma.core.request import Request
    from aiochroma.records.spec import SearchSpec

__all__ = ["TEXT_INDEX_FILE", "LocalIndex"]

log = get_logger("aiochroma.text")

T = TypeVar("T")

TEXT_INDEX_FILE = "aiochroma-text.sqlite3"

_PAGE = 500
_POOL = 2
"""So many times as many as the text gives are looked at: what is not looked at lends its neighbours nothing."""
_WRITES_BY_ID = frozenset({"_add", "_update", "_upsert"})


class LocalIndex(SearchingRecords):
    """Keeps the collections that a memory uses in a full-text index.

    Args:
        api: Chroma.
        file: The index's own file, or None to keep it in memory.
        positions: For each collection how far its log went when the database was opened; what the index noted when it
            was closed last must be the same.
    """

    def __init__(self, api: ServerAPI, file: Path | None, positions: Mapping[str, int]) -> None:
        super().__init__(api)
        self._file = file
        self._positions = dict(positions)
        self._index: TextIndex | None = None
        self._history: ChangeLog | None = None
        self._current: set[str] = set()

    # -- memories ------------------------------------------------------------------------------------------------------

    def _log(self) -> ChangeLog:
        if self._history is None:
            self._history = ChangeLog(
                ":memory:" if self._file is None else self._file.with_name(HISTORY_FILE)
            )
        return self._history

    def _known(self, collection_id: Any, ids: list[str], place: Place) -> dict[str, Record]:
        try:
            self._bring_up_to_date(str(collection_id), place)
            known = self._open_index().places(str(collection_id), ids)
        except sqlite3.DatabaseError as error:
            self._lose(str(collection_id), error)
            return super()._known(collection_id, ids, place)
        return self._reader.records(collection_id, [id for id in ids if id in known], None, place)

    def _last_position(self, collection_id: Any, thread: str, place: Place) -> float | None:
        try:
            self._bring_up_to_date(str(collection_id), place)
            return self._open_index().last_position(str(collection_id), thread)
        except sqlite3.DatabaseError as error:
            self._lose(str(collection_id), error)
            return None

    def _written(
        self,
        collection: str,
        ids: Sequence[str],
        documents: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]],
        known: Mapping[str, Record],
    ) -> None:
        rows = []
        for id, document, metadata in zip(ids, documents, metadatas, strict=True):
            old = known[id]["metadata"] if id in known else {}
            merged = {name: value for name, value in {**old, **metadata}.items() if value is not None}
            rows.append(_row(id, document, merged))
        self._follow(collection, lambda index: index.upsert(collection, rows))

    def _deleted(self, collection: str, ids: Sequence[str]) -> None:
        self._follow(collection, lambda index: index.delete(collection, ids))

    def _follow(self, collection: str, change: Callable[[TextIndex], object]) -> None:
        if collection not in self._current:
            return
        try:
            change(self._open_index())
        except sqlite3.ProgrammingError as error:
            self._current.discard(collection)
            log.warning("text_index.not_followed", collection=collection, error=str(error))
        except sqlite3.DatabaseError as error:
            # The record is safe in Chroma. The collection is indexed again before it is searched.
            self._lose(collection, error)

    # -- following Chroma's writes -------------------------------------------------------------------------------------

    def after_write(self, request: Request) -> None:
        """Bring the index up to date after a write that Chroma has carried out."""
        collection = str(request.arguments["collection_id"])
        arguments, ids = request.arguments, request.arguments.get("ids")
        if request.operation in _WRITES_BY_ID and ids:
            # What became of a record depends on what was there before; Chroma knows.
            self._follow(collection, lambda index: self._copy(index, collection, _place(arguments), ids))
        elif (
            request.operation == "_delete"
            and ids
            and not arguments.get("where")
            and not arguments.get("where_document")
        ):
            self._deleted(collection, ids)
        else:
            self._current.discard(collection)

    def distrust(self, collection: str) -> None:
        """Index a collection again before it is searched: a write to it failed that may have happened."""
        self._current.discard(collection)

    def forget_collection(self, collection: str) -> None:
        """Drop a collection that is gone."""
        self._current.discard(collection)
        self.collections_changed()
        if self._index is not None:
            self._index.delete_namespace(collection)

    def forget_everything(self) -> None:
        """Drop all collections."""
        self._current.clear()
        self.collections_changed()
        if self._index is not None:
            self._index.clear()

    # -- searching -----------------------------------------------------------------------------------------------------

    def _candidates(
        self,
        collection_id: Any,
        query_embeddings: Sequence[Any],
        queries: Sequence[str],
        spec: SearchSpec,
        reach: int,
        chunks: str,
        place: Place,
    ) -> Candidates:
        where = filter_of(spec)
        collection = str(collection_id)
        found: list[dict[str, Record]] = [{} for _ in queries]
        if spec.mode != "text" and query_embeddings[0] is not None:
            # A chunk names its memory in its metadata, so where there are chunks that is needed at once.
            numbers_first = where is None and self._parts.holder(chunks, place) is None
            found = self._search_vectors(
                collection_id,
                query_embeddings,
                most_near(spec, reach),
                where,
                chunks,
                place,
                details=not numbers_first,
            )
        if spec.mode != "vector":
            self._twice(
                collection,
                lambda: self._search_text(found, collection_id, queries, spec, reach, where, place),
            )
        return Candidates([list(records.values()) for records in found])

    def _complete(self, collection_id: Any, found: Sequence[Sequence[Record]], place: Place) -> None:
        """Add document and metadata to what has none yet and is there."""
        missing = [record for records in found for record in records if record["metadata"] is None]
        kept = self._kept(collection_id, list(dict.fromkeys(record["id"] for record in missing)), place)
        for record in missing:
            if record["id"] in kept:
                record["document"], record["metadata"] = kept[record["id"]]

    def _kept(self, collection_id: Any, ids: list[str], place: Place) -> dict[str, tuple[str, Any]]:
        """Return text and metadata of the memories that are there, of ids."""
        collection = str(collection_id)
        kept: dict[str, tuple[str, Any]] = {}
        if self._is_current(collection):
            try:
                kept = self._open_index().read(collection, ids)
            except sqlite3.DatabaseError as error:
                self._lose(collection, error)
        missing = [id for id in ids if id not in kept]
        for id, record in self._reader.records(collection_id, missing, None, place).items():
            kept[id] = (record["document"], record["metadata"])
        return kept

    def _search_text(
        self,
        found: list[dict[str, Record]],
        collection_id: Any,
        queries: Sequence[str],
        spec: SearchSpec,
        reach: int,
        where: Mapping[str, Any] | None,
        place: Place,
    ) -> None:
        collection = str(collection_id)
        self._bring_up_to_date(collection, place)
        index = self._open_index()
        allowed = None
        if where:
            result: Any = self._api._get(collection_id, where=dict(where), include=[], **place)  # noqa: SLF001
            allowed = set(result["ids"])
        limit = most_covering(spec, reach)
        for query, candidates in zip(queries, found, strict=True):
            for hit in index.search(
                collection, query, limit, pool=_POOL * limit, also=list(candidates), ids_allowed=allowed
            ):
                record = candidates.setdefault(hit.id, stub(hit.id, None))
                record.update(text=hit.score, own=hit.own, place=hit.place)

    def _neighbours(
        self, collection_id: Any, ids: list[str], window: int, place: Place
    ) -> list[tuple[str, int, Record]]:
        pairs = self._twice(str(collection_id), lambda: self._pairs(str(collection_id), ids, window, place))
        records = {pair.neighbour: stub(pair.neighbour, None) for pair in pairs}
        self._complete(collection_id, [list(records.values())], place)
        return [
            (pair.id, pair.offset, records[pair.neighbour])
            for pair in pairs
            if records[pair.neighbour]["metadata"] is not None
        ]

    def _pairs(self, collection: str, ids: list[str], window: int, place: Place) -> list[Neighbour]:
        self._bring_up_to_date(collection, place)
        return self._open_index().neighbours(collection, ids, window)

    def _twice(self, collection: str, look: Callable[[], T]) -> T:
        """Look something up; in an index that turns out to be damaged once more, when it has been made anew."""
        try:
            return look()
        except sqlite3.DatabaseError as error:
            self._lose(collection, error)
            return look()

    # -- keeping in step -----------------------------------------------------------------------------------------------

    def close(self, positions: Mapping[str, int]) -> None:
        """Note how far the index goes, and close its file.

        Args:
            positions: For each collection how far its log goes, read after Chroma has closed.
        """
        if self._history is not None:
            self._history.close()
            self._history = None
        if self._index is None:
            return
        try:
            known = set(self._index.namespaces())
            for collection in self._current:
                self._index.set_watermark(collection, str(positions.get(collection, 0)))
            for collection in known - set(positions) if positions else ():
                self._index.delete_namespace(collection)
        except sqlite3.DatabaseError as error:
            log.warning("text_index.watermark_failed", error=str(error))
        self._index.close()
        self._index = None

    def _bring_up_to_date(self, collection: str, place: Place) -> None:
        if not self._is_current(collection):
            self._rebuild(collection, place)

    def _is_current(self, collection: str) -> bool:
        """Tell whether the index has all of a collection."""
        if collection in self._current:
            return True
        try:
            index = self._open_index()
            mark = index.watermark(collection)
            if mark is None or mark != str(self._positions.get(collection)):
                return False
            # From here on the file runs ahead of the mark; should the process die, it is not believed.
            index.set_watermark(collection, "open")
        except sqlite3.DatabaseError as error:
            self._lose(collection, error)
            return False
        self._current.add(collection)
        return True

    def _rebuild(self, collection: str, place: Place) -> None:
        index = self._open_index()
        index.delete_namespace(collection)
        index.set_watermark(collection, "open")
        offset = 0
        while True:
            result: Any = self._api._get(  # noqa: SLF001 - Chroma's own name
                collection, limit=_PAGE, offset=offset, include=["documents", "metadatas"], **place
            )
            if result["ids"]:
                index.upsert(collection, _rows(result["ids"], result["documents"], result["metadatas"]))
            offset += len(result["ids"])
            if len(result["ids"]) < _PAGE:
                break
        self._current.add(collection)
        if offset:
            log.info("text_index.rebuilt", collection=collection, records=offset)

    def _copy(self, index: TextIndex, collection: str, place: Place, ids: Sequence[str]) -> None:
        result: Any = self._api._get(collection, ids=list(ids), include=["documents", "metadatas"], **place)  # noqa: SLF001
        index.upsert(collection, _rows(result["ids"], result["documents"], result["metadatas"]))

    def _open_index(self) -> TextIndex:
        if self._index is None:
            self._index = TextIndex.open_or_recreate(self._file if self._file is not None else ":memory:")
        return self._index

    def _lose(self, collection: str, error: Exception) -> None:
        if isinstance(error, sqlite3.ProgrammingError):
            raise error  # Nothing is wrong with what is in the file.
        log.warning(
            "text_index.failed",
            collection=collection,
            error=str(error),
            hint="indexed again at the next search",
        )
        self._current.clear()
        self._positions.clear()
        try:
            self._open_index().recreate()
        except (sqlite3.DatabaseError, OSError):
            self._index = None


def _place(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {name: arguments[name] for name in ("tenant", "database") if name in arguments}


def _rows(ids: Sequence[str], documents: Sequence[Any], metadatas: Sequence[Any]) -> list[IndexedText]:
    return [
        _row(id, document or "", metadata or {})
        for id, document, metadata in zip(ids, documents, metadatas or [None] * len(ids), strict=True)
    ]


def _row(id: str, document: str, metadata: Mapping[str, Any]) -> IndexedText:
    thread, position = place_in_order(metadata)
    created = metadata.get(CREATED_AT)
    return IndexedText(
        id, document, thread, position, metadata, created if isinstance(created, (int, float)) else None
    )
