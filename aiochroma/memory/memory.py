"""A memory: texts are remembered, and recalled by meaning and by their words, over any number of namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from aiochroma._types import MetadataView, Where
from aiochroma.client.options import PersistentOptions
from aiochroma.memory import compacting, forgetting, recalling, reembedding, remembering, stored, transfer
from aiochroma.memory.opening import Life, MemoryOptions, OpenedMemory, home_of
from aiochroma.records.spec import VECTOR_WEIGHT

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from chromadb.config import Settings

    from aiochroma.client.client import AsyncClient, BlockingClient
    from aiochroma.client.options import Process
    from aiochroma.disk.erasing import ErasureReceipt
    from aiochroma.memory.arguments import Duration, Moment, Scope, Thread
    from aiochroma.memory.recalling import Limit, NamespaceSearch, Rerank
    from aiochroma.memory.reembedding import ReembedReport
    from aiochroma.memory.remembering import Extract
    from aiochroma.memory.results import Count, Hit, Id, Items, MemoryChange, Recall
    from aiochroma.records.spec import SearchMode

__all__ = ["Memory"]


class Memory(OpenedMemory):
    """Texts that can be found again, in namespaces, on one directory.

    A namespace is a collection of its own (cosine distance). One that does not exist yet is empty. Within a namespace a *scope*
    says whose a memory is, and a *thread* to which conversation it belongs. A memory may be used from any number of event
    loops and tasks at once, and opens with ``async with`` (or ``await memory.open()``). Copies of the object share the memory.

    Every call raises :class:`~aiochroma.ClosedError` where the memory is not open, :class:`~aiochroma.InvalidInputError` where an
    argument is wrong, before anything is embedded or written, and another :class:`~aiochroma.AiochromaError` where it fails.
    With ``on_failure="degrade"`` only these two are raised: every other failure gives an empty, falsy result of the same type
    whose ``error`` is the reason; in place of a memory that is an :class:`~aiochroma.UnavailableHit`. ``error`` is None wherever
    nothing failed.

    Args:
        path: The directory, made if it does not exist; None keeps everything in memory, which no other memory shares.
        embedder: Turns texts into vectors: an :class:`~aiochroma.Embedder`, a Chroma embedding function, a synchronous or
            asynchronous callable, or the name of a built-in one: ``"wordllama"``, ``"minilm"``, ``"hashed"``. Default
            (``"auto"``): the one that the database was written with, where that is built in; for a new database static word
            vectors where the extra ``local`` is installed, else MiniLM where ``minilm`` is, else hashed n-grams. None of them
            needs a network. ``AIOCHROMA_EMBEDDER`` in the environment names another default.
        on_failure: ``"raise"`` (default), or ``"degrade"``, for a chat window: what fails gives an empty result and a log line.
        timeout: The limit for each call, in seconds; default: none. See also :class:`aiochroma.deadline`.
        durable: Whether Chroma's log keeps each vector until Chroma's index and aiochroma's own file both have it on the disk, so
            that one of the two can be lost; default True. When the database is opened or closed, what both have leaves the log.
        client: A client to use in place of one of its own; it stays open when the memory is closed, and has its own options.
        split_chars: The most characters of a chunk: longer texts are embedded in chunks, split where sentences end (extra
            ``long``). Default: as much as the embedder says that it reads; the offline ones read everything.
        history: Whether its changes are noted, with former texts and metadata, in a file; default False. See :meth:`history`.
        sweep_every: The seconds after which a write sweeps all namespaces in passing; default: only :meth:`sweep` does.
        auto_compact: Whether :meth:`compact` happens in the background, where it is due and the database has files; default True.
        max_pending: The most requests that may be queued or running.
        max_write_slice_ms: The longest slice of a write, in milliseconds; see :func:`aiochroma.AsyncPersistentClient`.
        slow_request_ms: The time after which a request is logged as slow, in milliseconds.
        vector_cache_mb: The most memory that vectors take, in megabytes; see :func:`aiochroma.AsyncPersistentClient`.
        lock_timeout: The longest time to wait for another process to let go of the directory, in seconds; default: none.
        process: ``"shared"``: the directory's host serves it, a process that all programs of this user share and that the first
            of them starts. ``"this"``: this process alone opens it. None (default): through the host if there is one, else here.
        host_idle: The seconds for which a host that this memory starts stays when its last client has gone.
        settings: Chroma's own settings; not changed.
        sparse_embedder: For Chroma Cloud and distributed Chroma alone: a ``SparseEmbeddingFunction`` of Chroma's, or a callable
            that returns a ``SparseVector`` for each text. By these the server ranks words in namespaces that are not read into
            this process. :meth:`reembed` gives them to namespaces that have none. Untested against Chroma Cloud and distributed
            Chroma: tests use a proxy that adds to a local server what it lacks.

    On a Chroma server (``client=await AsyncHttpClient(...)``, or :meth:`from_env`) a recall finds what it finds on a directory;
    see :func:`aiochroma.AsyncHttpClient` for what that costs. What other clients have written has no codes of tokens yet (see
    :class:`TokenEmbedder`): they are made beside the recalls, and :meth:`reembed` waits for them. ``history`` is refused there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = "./memory",
        *,
        embedder: object = None,
        on_failure: Literal["raise", "degrade"] = "raise",
        timeout: float | None = None,
        durable: bool = True,
        client: AsyncClient | BlockingClient | None = None,
        split_chars: int | None = None,
        history: bool = False,
        sweep_every: float | None = None,
        auto_compact: bool = True,
        max_pending: int = 10_000,
        max_write_slice_ms: float = 10.0,
        slow_request_ms: float = 1000.0,
        vector_cache_mb: float = 64.0,
        lock_timeout: float = 0.0,
        process: Process | None = None,
        host_idle: float = 60.0,
        settings: Settings | None = None,
        sparse_embedder: object = None,
    ) -> None:
        # Vectors that are lost are made again from their texts when the memory is opened.
        options = PersistentOptions(
            path="" if path is None else path,
            durable=durable,
            allow_missing_vectors=True,
            timeout=timeout,
            max_pending=max_pending,
            max_write_slice_ms=max_write_slice_ms,
            slow_request_ms=slow_request_ms,
            vector_cache_mb=vector_cache_mb,
            lock_timeout=lock_timeout,
            process=process,
            host_idle=host_idle,
            settings=settings,
        )
        own = MemoryOptions(
            embedder, on_failure, split_chars, history, sweep_every, auto_compact, sparse_embedder
        )
        super().__init__(Life(own, home_of(client, options, on_disk=path is not None)))

    # -- remembering ---------------------------------------------------------------------------------------------------

    async def remember(
        self,
        text: str,
        *,
        namespace: str = "default",
        scope: Scope | None = None,
        thread: Thread = None,
        id: str | None = None,
        metadata: MetadataView | None = None,
        ttl: Duration | None = None,
        expires_at: Moment | None = None,
        pinned: bool = False,
        created_at: Moment | None = None,
        position: float | None = None,
        dedupe: bool = False,
    ) -> Id:
        """Remember a text and return its id; one that is remembered already is refreshed, except in a thread.

        Args:
            text: Any text that is not blank, of at most 1 MB.
            namespace: Any text that is not blank; the namespace is made when it is first used.
            scope: Whose memory it is: a person, a customer, a session, as a text or as several from the widest to the narrowest,
                such as ``("acme", "user-7")``. Equal texts of two people are two memories. Default: no scope.
            thread: The conversation it belongs to. Memories of one thread lend each other relevance, and a text that is
                repeated there is remembered again. Default: none; then what was remembered before and after it in its scope
                lends it relevance. False: it stands alone.
            id: Its id within the namespace. Default: an id that follows from scope, thread and text.
            metadata: Strings, numbers, booleans, and lists of one of these, to keep with it and to filter by; at most 1 MB.
            ttl: The time after which it is forgotten: seconds, or a timedelta. Default: none. One that is remembered again
                without ``ttl`` and ``expires_at`` does not expire any more.
            expires_at: The moment at which it is forgotten: a datetime, or seconds since 1970. Give this or ``ttl``.
            pinned: Whether it stays when others expire.
            created_at: The moment at which it was said: a datetime, or seconds since 1970; default: now. A text of a thread that
                is remembered again with the same moment is the same memory.
            position: Its position in the thread; default: behind all others, whatever the clock says. One that is remembered
                again keeps its position.
            dedupe: Whether a text that is repeated in its thread is refreshed in place of remembered again; default False.

        Raises:
            InvalidInputError: An argument is wrong, or the text embeds to nothing; nothing was written.
            MissingExtraError: The text is longer than the embedder reads, and no extra is installed that splits it.
            EmbedderMismatchError: The namespace was written with another embedder.
        """
        return await remembering.remember(
            self._life,
            text,
            namespace=namespace,
            scope=scope,
            thread=thread,
            id=id,
            metadata=metadata,
            ttl=ttl,
            expires_at=expires_at,
            pinned=pinned,
            created_at=created_at,
            position=position,
            dedupe=dedupe,
        )

    async def remember_many(
        self,
        items: Iterable[str | Mapping[str, Any]] | AsyncIterable[str | Mapping[str, Any]],
        *,
        namespace: str = "default",
        scope: Scope | None = None,
        thread: Thread = None,
        dedupe: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Items[str]:
        """Remember many texts and return their ids, in order.

        They are written in batches that yield to recalls; while one is written, the next one is embedded. Holds two batches and
        the ids. Interrupted, it may be run again from the beginning: a text that is there already is refreshed, not duplicated.
        In a thread that needs ``dedupe``, or items with an ``id`` or a ``created_at``.

        Args:
            items: Texts, or mappings with ``remember``'s arguments (but ``namespace``); any iterable, also asynchronous.
            namespace: The namespace of all items.
            scope: The scope of items that name none.
            thread: The conversation of items that name none, or False.
            dedupe: Whether texts that are repeated in their thread are refreshed in place of remembered again; default False.
            progress: Called after each batch with the number of items written so far.

        Raises:
            InvalidInputError: An argument is wrong; or an item is, and the batches before its own were written.
        """
        return await remembering.remember_many(
            self._life, items, progress, namespace=namespace, scope=scope, thread=thread, dedupe=dedupe
        )

    async def remember_messages(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        thread: str,
        scope: Scope | None = None,
        namespace: str = "default",
        extract: Extract | None = None,
    ) -> Items[str]:
        """Remember the messages of a conversation, behind those that the thread holds, and return their ids, in order.

        Args:
            messages: Mappings with ``role`` and ``content``, and optionally ``name``, ``created_at``, ``metadata`` and ``id``.
                Role and name become metadata. Messages of chat APIs are taken as they are: of a content in parts the texts
                count, and one that says nothing, such as a tool's call, is left out.
            thread: The conversation.
            scope: Whose conversation it is.
            namespace: The namespace.
            extract: Makes facts of the messages, which are then remembered in place of the messages, without an order: a
                synchronous or asynchronous callable of the list of messages that returns texts, or mappings with
                :meth:`remember`'s arguments. It may ask a language model (none is built in), and has 120 s.

        Raises:
            ExtractFailedError: ``extract`` raised, took too long, or returned something else; nothing was remembered.
        """
        return await remembering.remember_messages(
            self._life, messages, thread=thread, scope=scope, namespace=namespace, extract=extract
        )

    async def update(
        self,
        id: str,
        *,
        namespace: str = "default",
        text: str | None = None,
        metadata: MetadataView | None = None,
        ttl: Duration | None = None,
        expires_at: Moment | None = None,
    ) -> Hit | None:
        """Change a memory and return it as it is now, or None where there is none; what is not given stays as it is.

        It keeps its id, also with another text: remembering its new text, or its former one, makes a memory of its own.

        Args:
            id: The memory's id.
            namespace: The namespace of the memory.
            text: The new text; it is embedded.
            metadata: Values to add or to replace; a key whose value is None is removed.
            ttl: The time after which it is forgotten: seconds, or a timedelta.
            expires_at: The moment at which it is forgotten: a datetime, or seconds since 1970.
        """
        return await stored.update(
            self._life, id, namespace=namespace, text=text, metadata=metadata, ttl=ttl, expires_at=expires_at
        )

    async def pin(self, id: str, *, namespace: str = "default", pinned: bool = True) -> Hit | None:
        """Pin a memory, or unpin it, and return it as it is now, or None where there is none. A pinned one does not expire."""
        return await stored.pin(self._life, id, namespace=namespace, pinned=pinned)

    # -- recalling -----------------------------------------------------------------------------------------------------

    async def recall(
        self,
        query: str,
        *,
        namespaces: Mapping[str, int | NamespaceSearch] | Iterable[str] | str | None = None,
        scope: Scope | None = None,
        thread: str | None = None,
        k: int = 5,
        limit: int | None = None,
        max_distance: Limit = None,
        min_score: Limit = None,
        where: Where | None = None,
        mode: SearchMode = "hybrid",
        vector_weight: float = VECTOR_WEIGHT,
        since: Moment | None = None,
        until: Moment | None = None,
        half_life: Duration | None = None,
        diversity: float = 0.0,
        window: int = 0,
        rerank: Rerank | None = None,
    ) -> Recall:
        """Find what was remembered about something, and return the hits of all namespaces, best first.

        The question is embedded once and all namespaces are searched at the same time. A namespace that fails loses none
        of the others' hits: see ``Recall.errors``. Expired memories are never returned and do not count as hits.

        Args:
            query: The question.
            namespaces: A name, several names, or a mapping from names to ``k`` or to a :class:`NamespaceSearch`; default: all.
                One that does not exist is empty.
            scope: Only memories of this scope and of those below it; default: of any scope and of none.
            thread: Only memories of this thread; default: of any thread and of none.
            k: The most hits of each namespace.
            limit: The most hits in all; default: no limit.
            max_distance: The largest cosine distance of a hit, 0 to 2; ``"auto"`` for the embedder's own; default: no limit. It
                does not apply to a memory that holds a word of the question.
            min_score: The lowest score of a hit, 0 to 1; ``"auto"`` for an empty recall where the best hit says that nothing
                was remembered about it; default: no limit.
            where: Chroma's filter over metadata.
            mode: ``"hybrid"``: by meaning and by words; ``"vector"``: by meaning; ``"text"``: by words.
            vector_weight: The weight of meaning against words in ``"hybrid"``; at least 0.
            since: Only memories first remembered at this moment or later: a datetime, or seconds since 1970.
            until: Only memories first remembered before this moment: a datetime, or seconds since 1970.
            half_life: Prefer the recent: the time without a refresh, in seconds or as a timedelta, after which a memory has
                lost half of the share of its score that age can take. Default: age does not count.
            diversity: 0 (default) returns the best; towards 1, hits that differ from those before them (maximal marginal
                relevance).
            window: The number of neighbours before and after each hit in its thread that come with it, at most 50. An expired
                one is left out, and none stands in for it until it is swept.
            rerank: Orders the best 40 hits again: a callable of the question and their texts that returns a number for each,
                the greater the better; it may be asynchronous, and has 10 s. Where it fails the hits keep their order, and
                ``Recall.errors[""]`` says why.
        """
        return await recalling.recall(
            self._life,
            query,
            namespaces=namespaces,
            scope=scope,
            thread=thread,
            k=k,
            limit=limit,
            max_distance=max_distance,
            min_score=min_score,
            where=where,
            mode=mode,
            vector_weight=vector_weight,
            since=since,
            until=until,
            half_life=half_life,
            diversity=diversity,
            window=window,
            rerank=rerank,
        )

    async def similar(self, id: str, *, namespace: str = "default", k: int = 5) -> Recall:
        """Return the ``k`` memories of a namespace nearest to one of them by meaning, without itself, the nearest first.

        Near-duplicates are kept when they are remembered, because opposite facts have vectors close to each other; this lists
        them. Where there is no memory of that id the recall is empty.
        """
        return await recalling.similar(self._life, id, namespace=namespace, k=k)

    # -- looking up ----------------------------------------------------------------------------------------------------

    async def get(self, id: str, *, namespace: str = "default") -> Hit | None:
        """Return a memory by its id, or None where there is none."""
        return await stored.get(self._life, id, namespace=namespace)

    async def get_many(self, ids: Iterable[str], *, namespace: str = "default") -> Items[Hit]:
        """Return memories by id, in the order of the ids; an id without a memory is left out."""
        return await stored.get_many(self._life, ids, namespace=namespace)

    def list(
        self,
        namespace: str = "default",
        *,
        scope: Scope | None = None,
        thread: str | None = None,
        where: Where | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        newest_first: bool = False,
        limit: int | None = None,
        after: str | None = None,
    ) -> stored.Listing:
        """List the memories of a namespace by when they were first remembered, those of a thread by their position in it.

        ``page = await memory.list(..., limit=20)`` gives a :class:`~aiochroma.Page`; ``async for hit in memory.list(...)`` goes
        through all. The last messages of a conversation are ``await memory.list(thread=..., newest_first=True, limit=10)``. Where
        the memory degrades, a page is empty with its ``error``, and going through all raises.

        Args:
            namespace: The namespace.
            scope: Only memories of this scope and of those below it; default: of any scope and of none.
            thread: Only memories of this thread; default: of any thread and of none.
            where: Chroma's filter over metadata.
            since: Only memories first remembered at this moment or later: a datetime, or seconds since 1970.
            until: Only memories first remembered before this moment: a datetime, or seconds since 1970.
            newest_first: Whether the order is turned round.
            limit: The most memories; default: all.
            after: The ``next`` of the page before.
        """
        return stored.list_memories(
            self._life,
            namespace,
            scope=scope,
            thread=thread,
            where=where,
            since=since,
            until=until,
            newest_first=newest_first,
            limit=limit,
            after=after,
        )

    async def namespaces(self) -> Items[str]:
        """Return the names of all namespaces, sorted."""
        return await stored.names(self._life)

    async def count(self, namespace: str | None = None) -> Count:
        """Return the number of memories of a namespace, or of all; one that has expired counts until it is swept.

        A namespace of another embedder is counted too.
        """
        return await stored.count(self._life, namespace)

    async def history(
        self, id: str | None = None, *, namespace: str | None = None, limit: int = 100
    ) -> Items[MemoryChange]:
        """Return the changes that were made through memories with ``history=True``, newest first.

        Args:
            id: Only changes of this memory; default: of all.
            namespace: Only changes in this namespace; default: in all.
            limit: The most changes to return.
        """
        return await stored.history(self._life, id, namespace=namespace, limit=limit)

    # -- forgetting ----------------------------------------------------------------------------------------------------

    async def forget(
        self,
        id: str | None = None,
        *,
        namespace: str | None = None,
        where: Where | None = None,
        thread: str | None = None,
        scope: Scope | None = None,
    ) -> Count:
        """Forget one memory, or all that pass every filter given, and return their number.

        A forgotten memory is not found any more; its bytes leave the files later, or at once with :meth:`erase`.

        Args:
            id: The id of one memory; without it give one or several of ``where``, ``thread`` and ``scope``.
            namespace: The namespace. Default: with a ``scope`` all namespaces, so that a person is forgotten everywhere; else
                ``"default"``.
            where: Only memories that pass Chroma's filter over metadata.
            thread: Only memories of this thread.
            scope: Only memories of this scope and of those below it.
        """
        return await forgetting.forget(
            self._life, id, namespace=namespace, where=where, thread=thread, scope=scope
        )

    async def erase(
        self,
        id: str | None = None,
        *,
        namespace: str | None = None,
        where: Where | None = None,
        thread: str | None = None,
        scope: Scope | None = None,
    ) -> ErasureReceipt:
        """Forget, and remove the bytes of texts and vectors from every file of the directory, the history's included.

        Requests wait meanwhile: the database is closed, its files are rewritten and read to their end, and it is opened again.
        What was deleted before goes as well. Backups and exports are out of reach; the receipt names those that are known.
        It raises also where the memory degrades.

        Args:
            id: The id of one memory; without it give one or several of ``where``, ``thread`` and ``scope``, or ``namespace``
                alone for all of it.
            namespace: The namespace. Default: with a ``scope`` all namespaces; else ``"default"``.
            where: Only memories that pass Chroma's filter over metadata. It reaches no entries of the history of what is gone.
            thread: Only memories of this thread.
            scope: Only memories of this scope and of those below it.

        Returns:
            The bytes that were looked for, and the files that were read.

        Raises:
            InvalidInputError: An argument is wrong, or the database is a server's.
        """
        return await forgetting.erase(
            self._life, id, namespace=namespace, where=where, thread=thread, scope=scope
        )

    async def forget_many(self, ids: Iterable[str], *, namespace: str = "default") -> Count:
        """Forget several memories by id and return how many there were."""
        return await forgetting.forget_many(self._life, ids, namespace=namespace)

    async def forget_namespace(self, namespace: str) -> Count:
        """Forget a whole namespace and return how many memories it held.

        In a directory a large one is gone at once, and its records are deleted slice by slice; should the process end meanwhile,
        the next :meth:`sweep` goes on.
        """
        return await forgetting.forget_namespace(self._life, namespace)

    async def sweep(self, *, namespace: str | None = None) -> Count:
        """Delete the expired memories of a namespace, or of all, and return their number; pinned memories stay."""
        return await forgetting.sweep(self._life, namespace)

    async def reembed(
        self,
        namespaces: Iterable[str] | str | None = None,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> ReembedReport:
        """Embed namespaces that were written with another embedder again, with this memory's.

        The new vectors go into a copy, which takes over when it is complete and was compared with the original; until then
        programs with the old embedder find and write as before. Interrupted, it may be run again, and goes on where it stopped.
        Texts, ids, metadata and dates stay as they are. It raises also where the memory degrades.

        Args:
            namespaces: The names of namespaces; default: all.
            progress: Called after each page with the namespace, the number of its memories that are done, and that of all.

        Returns:
            What was done. A namespace in some of whose texts the embedder finds nothing stays as it was, and is named.

        Raises:
            EmbeddingFailedError: The embedder failed; run it again to go on.
        """
        return await reembedding.reembed(self._life, namespaces, progress=progress)

    async def compact(
        self,
        namespaces: Iterable[str] | str | None = None,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> dict[str, int]:
        """Make the indexes of namespaces again without what is dead in them, beside whoever uses them.

        Chroma keeps in its index what was deleted or replaced, and searches past it. A copy takes over as with :meth:`reembed`,
        with the vectors that are there; interrupted, it goes on when it is run again. It is another collection: one that was got
        from :attr:`client` before is to be got again. The files of the former index stay until :func:`aiochroma.doctor` repairs.

        Args:
            namespaces: Names of namespaces; default: those in whose index more than 1,000 vectors, and more than half, are dead.
            progress: Called with a namespace, how many of its memories were copied, and how many it has.

        Returns:
            How many memories were copied, by namespace.

        Raises:
            InvalidInputError: No namespaces were named, and there are no files to look at.
        """
        return await compacting.compact(self._life, namespaces, progress=progress)

    async def export(
        self,
        file: str | os.PathLike[str],
        *,
        namespaces: Iterable[str] | str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Count:
        """Write memories to a file as JSON lines and return their number; importing it gives the same memories again.

        The file holds everything but the vectors, which depend on the embedder: a namespace of another one is written too. It
        appears when it is complete. Records of other programs that no import would take, because they have no text for example,
        are left out, and a warning names them.

        Args:
            file: The file; replaced if it exists.
            namespaces: The names of namespaces; default: all.
            progress: Called now and then with the number of memories written so far.
        """
        return await transfer.export(self._life, file, namespaces=namespaces, progress=progress)

    async def import_(
        self,
        file: str | os.PathLike[str],
        *,
        namespace: str | None = None,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> Count:
        """Remember what is in a file, JSON lines or CSV, or in a folder of text files, and return the number of memories.

        JSON (``.jsonl``, ``.ndjson``, ``.json``): one object with ``text``, or one text, per line, or an array of them, with all
        that :meth:`export` writes; a memory of the same id is replaced. CSV (``.csv``): a first row with names, one of them
        ``text``; ``id``, ``namespace``, ``scope``, ``thread``, ``position``, ``created_at``, ``updated_at``, ``expires_at`` and
        ``pinned`` are the memory's own, other columns become metadata. Moments: seconds since 1970, or ISO 8601. A folder: every
        ``.txt`` and ``.md`` file below it is a memory, whose id and metadata ``source`` are the file's path within it.

        Interrupted, it may be run again from the beginning: nothing is duplicated.

        Args:
            file: The file or folder.
            namespace: The namespace of memories whose entry names none; default: ``"default"``.
            progress: Called after each batch with the number of memories written so far, the bytes of the file (or of the
                folder's texts) that these took, and the bytes of all.

        Raises:
            InvalidInputError: It is a pipe or a device; or an entry is wrong: names the line, and those before it were written.
        """
        return await transfer.import_(self._life, file, namespace=namespace, progress=progress)
