"""A bot's memory: remember texts, recall them by meaning and by their words, over any number of namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from aiochroma.memory.changes import Changes, MemoryChange, change_from
from aiochroma.memory.degraded import NoItems, NoNumber
from aiochroma.memory.items import check_id, check_k
from aiochroma.memory.namespaces import collection_name
from aiochroma.memory.question import question_from
from aiochroma.memory.recall import Hit, Mode, NamespaceSearch, Recall, has_passed
from aiochroma.memory.recalling import answer, similar
from aiochroma.memory.transfer import export_file, import_file
from aiochroma.memory.writing import WritingMemory
from aiochroma.records.spec import VECTOR_WEIGHT

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime, timedelta

__all__ = ["Memory"]


class Memory(WritingMemory):
    """Texts that can be found again, in namespaces, on one directory.

    A namespace is a collection of its own (cosine distance). One that does not exist yet is empty. A memory may be used
    from any number of event loops and tasks at once, and opens with ``async with`` (or ``await memory.open()``).

    Args:
        path: The directory, made if it does not exist; None keeps everything in memory.
        embedder: Turns texts into vectors: an :class:`~aiochroma.Embedder`, a Chroma embedding function, or a
            synchronous or asynchronous callable. Default: static word vectors where the extra ``local`` is installed,
            else hashed n-grams; neither needs a network.
        on_failure: ``"raise"``: errors are raised. ``"degrade"``: a store that is unavailable gives empty and falsy
            results that carry the error, and a log line; only wrong arguments are raised. What a chat window needs.
        timeout: Limit for each call, in seconds; None for none. See also :class:`aiochroma.deadline`.
        durable: Keep every vector in Chroma's log as well, so that a broken index can be rebuilt completely.
        client: A client to use in place of one of its own; it stays open when the memory is closed.
        split_chars: Embed longer texts in parts of at most so many characters, split where sentences end (extra ``long``).
            Default: as the embedder says how much it reads; the offline ones read everything.
        history: Note every change made through this memory, with what was there before, in a file beside the database; see
            :meth:`history`.
        sweep_every: Let a write that comes so many seconds after the last sweep sweep all namespaces afterwards; None: only
            :meth:`sweep` does.

    On a Chroma server (``client=await AsyncHttpClient(...)``, or :meth:`from_env`) there is no full-text index. Candidates are
    then the memories nearest by meaning, and the nearest among those that contain a word of the question as it is spelled
    there; their texts are compared with the question here. A memory that does neither is not found by its words, rarity of
    words is judged among the candidates, neighbours in a thread lend nothing to each other, and ``history`` is refused.

    Raises:
        InvalidInputError: An argument is wrong.
    """

    # -- recalling -----------------------------------------------------------------------------------------------------

    async def recall(
        self,
        query: str,
        *,
        namespaces: Mapping[str, int | NamespaceSearch] | Iterable[str] | str | None = None,
        k: int = 5,
        max_distance: float | Literal["auto"] | None = None,
        where: Mapping[str, Any] | None = None,
        mode: Mode = "hybrid",
        vector_weight: float = VECTOR_WEIGHT,
        since: datetime | float | None = None,
        until: datetime | float | None = None,
        half_life: float | timedelta | None = None,
        diversity: float = 0.0,
        window: int = 0,
    ) -> Recall:
        """Find what was remembered about something.

        The question is embedded once and all namespaces are searched at the same time. A namespace that fails loses none
        of the others' hits: see ``Recall.errors``. Expired memories are never returned and take nobody's place.

        Args:
            query: The question.
            namespaces: A name, several names, or a mapping from names to ``k`` or to a :class:`NamespaceSearch`; default all. One
                that does not exist is empty.
            k: How many hits each namespace may give.
            max_distance: The largest cosine distance of a hit, 0 to 2; ``"auto"`` for the embedder's own; default None: the
                best ``k``, uncut. A memory that matches by text is spared.
            where: Chroma's filter over metadata.
            mode: ``"hybrid"``: by meaning and by words; ``"vector"``: by meaning; ``"text"``: by words.
            vector_weight: What meaning counts beside words in ``"hybrid"``; at least 0.
            since: Only what was first remembered at this moment or later: a datetime, or seconds since 1970.
            until: Only what was first remembered before this moment.
            half_life: Prefer the recent: after so many seconds without a refresh half of what age may take is gone.
            diversity: 0 (default) returns the best; towards 1, hits that differ from those before them (maximal marginal
                relevance).
            window: Return with each hit so many neighbours before and after it in its thread, at most 50. An expired one
                is left out; until it is swept its place stays empty.

        Returns:
            The hits of all namespaces, best first.

        Raises:
            InvalidInputError: An argument is wrong.
            AiochromaError: Every namespace failed, or the question could not be embedded.
        """
        question = question_from(
            query,
            namespaces=namespaces,
            k=k,
            max_distance=max_distance,
            where=where,
            mode=mode,
            vector_weight=vector_weight,
            since=since,
            until=until,
            half_life=half_life,
            diversity=diversity,
            window=window,
        )

        async def work() -> Recall:
            with self._store.limit():
                return await answer(self._store, question)

        return await self._guarded("recall", work, lambda error: Recall(errors={"": error}))

    async def similar(self, id: str, *, namespace: str = "default", k: int = 5) -> Recall:
        """Find the memories of a namespace that are nearest to one of them by meaning.

        Near-duplicates are kept, because opposite facts have vectors close to each other; this lists them.

        Returns:
            The nearest first, without the memory itself; empty where there is none of that id.

        Raises:
            InvalidInputError: An argument is wrong.
            AiochromaError: See the error tree.
        """
        check_id(id)
        collection_name(namespace)
        check_k(k)

        async def work() -> Recall:
            with self._store.limit():
                return await similar(self._store, namespace, id, k)

        return await self._guarded("similar", work, lambda error: Recall(errors={"": error}))

    # -- looking up ----------------------------------------------------------------------------------------------------

    async def get(self, id: str, *, namespace: str = "default") -> Hit | None:
        """Return a memory by its id; None where there is none (or, degraded, where the store is unavailable).

        Raises:
            InvalidInputError: An argument is wrong.
            AiochromaError: See the error tree.
        """
        check_id(id)
        collection_name(namespace)
        return await self._guarded("get", lambda: self._get(id, namespace), lambda _: None)

    async def namespaces(self) -> list[str]:
        """Return the names of all namespaces, sorted. Degraded: an empty list with ``.error``.

        Raises:
            AiochromaError: See the error tree.
        """
        return await self._guarded("namespaces", self._store.names, NoItems)

    async def count(self, namespace: str | None = None) -> int:
        """Return how many memories a namespace holds, or all together; what has expired counts until it is swept.

        A namespace of another embedder is counted too. Degraded: 0 with ``.error``.

        Raises:
            InvalidInputError: The namespace is blank or not a string.
            AiochromaError: See the error tree.
        """
        if namespace is not None:
            collection_name(namespace)

        async def work() -> int:
            names = [namespace] if namespace is not None else await self._store.names()
            store = self._store
            return sum([await store.on(name, store.count, absent=0, any_embedder=True) for name in names])

        return await self._guarded("count", work, NoNumber)

    async def history(
        self, id: str | None = None, *, namespace: str | None = None, limit: int = 100
    ) -> list[MemoryChange]:
        """Return what was changed through memories with ``history=True``, newest first.

        Args:
            id: Only this memory.
            namespace: Only this namespace.
            limit: The most to return.

        Returns:
            The changes; empty where nothing was noted. Degraded: an empty list with ``.error``.

        Raises:
            InvalidInputError: An argument is wrong, or the database is a server's.
            AiochromaError: See the error tree.
        """
        if id is not None:
            check_id(id)
        if namespace is not None:
            collection_name(namespace)
        check_k(limit, "`limit`")

        async def work() -> list[MemoryChange]:
            entries = await self._store.submit("memory_history", namespace=namespace, id=id, limit=limit)
            return [change_from(entry) for entry in entries]

        return await self._guarded("history", work, Changes)

    # -- files ---------------------------------------------------------------------------------------------------------

    async def export(
        self,
        file: str | os.PathLike[str],
        *,
        namespaces: Iterable[str] | str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write memories to a file as JSON lines; importing it gives the same memories again.

        Everything is in it but the vectors, which depend on the embedder: a namespace of another one is written too. The
        file appears when it is complete.

        Args:
            file: The file; replaced if it exists.
            namespaces: Which; default all.
            progress: Called now and then with the number of memories written so far.

        Returns:
            How many there are in the file. Degraded: 0 with ``.error``.

        Raises:
            InvalidInputError: An argument is wrong, or the file cannot be written.
            AiochromaError: See the error tree.
        """
        names = (
            [namespaces] if isinstance(namespaces, str) else None if namespaces is None else list(namespaces)
        )
        for name in names or ():
            collection_name(name)
        return await self._guarded(
            "export", lambda: export_file(self._store, file, names, progress), NoNumber
        )

    async def import_(
        self,
        file: str | os.PathLike[str],
        *,
        namespace: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Remember what is in a file: JSON lines, CSV, or a folder of text files.

        JSON lines (``.jsonl``, ``.ndjson``, ``.json``): one object per line with ``text``, and what else :meth:`export` writes.
        It replaces what is there under the same id. CSV (``.csv``): a first row with names, one of them ``text``; ``id``,
        ``namespace``, ``thread``, ``position``, ``created_at``, ``updated_at``, ``expires_at`` and ``pinned`` mean what they do
        elsewhere, other columns become metadata. A folder: every ``.txt`` and ``.md`` file below it is a memory, whose id and
        metadata ``source`` are the file's path within it.

        Interrupted, it may be run again from the beginning: nothing is duplicated.

        Args:
            file: The file or folder.
            namespace: Where to, for what names no namespace itself; default ``"default"``.
            progress: Called after each batch with the number of memories written so far.

        Returns:
            How many were remembered. Degraded: 0 with ``.error``.

        Raises:
            InvalidInputError: Something of it is wrong; names the line. What came before it was written.
            AiochromaError: See the error tree.
        """
        if namespace is not None:
            collection_name(namespace)
        return await self._guarded(
            "import_", lambda: import_file(self._store, file, namespace or "default", progress), NoNumber
        )

    async def _get(self, id: str, namespace: str) -> Hit | None:
        found = await self._store.on(
            namespace, lambda place: self._store.read(place, [id]), absent=list[tuple[Hit, Any]]()
        )
        return found[0][0] if found and not has_passed(found[0][0]) else None
