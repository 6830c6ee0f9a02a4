"""A memory: texts are remembered, and recalled by meaning and by their words, over any number of namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn

from typing_extensions import Self, Unpack

from aiochroma._errors import InvalidInputError
from aiochroma._types import MetadataView, Where
from aiochroma.memory import (
    changing,
    erasing,
    forgetting,
    listing,
    recalling,
    reembedding,
    remembering,
    transfer,
)
from aiochroma.memory.opening import Life, MemoryOptions, home_in_environment, home_of
from aiochroma.records.spec import VECTOR_WEIGHT

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterable, Callable, Generator, Iterable, Mapping
    from datetime import datetime, timedelta
    from types import TracebackType

    from chromadb.config import Settings

    from aiochroma.client.client import AsyncClient, BlockingClient
    from aiochroma.client.maintenance import Health
    from aiochroma.client.options import ConnectOverrides, Process
    from aiochroma.core.stats import Stats
    from aiochroma.disk.backup import BackupReport
    from aiochroma.disk.erasing import ErasureReceipt
    from aiochroma.memory.recall import Hit, NamespaceSearch, Recall
    from aiochroma.memory.reembedding import ReembedReport
    from aiochroma.memory.remembering import Extract
    from aiochroma.memory.reranking import Rerank
    from aiochroma.memory.results import Count, Id, Items, Page
    from aiochroma.records.spec import ListSpec, Mode

    Moment = datetime | float
    Scope = str | tuple[str, ...]

__all__ = ["Memory"]


class Memory:
    """Texts that can be found again, in namespaces, on one directory.

    A namespace is a collection of its own (cosine distance). One that does not exist yet is empty. Within a namespace a *scope*
    says whose a memory is, and a *thread* to which conversation it belongs. A memory may be used from any number of event
    loops and tasks at once, and opens with ``async with`` (or ``await memory.open()``). Copies of the object share the memory.

    Every call raises :class:`~aiochroma.InvalidInputError` where an argument is wrong, before anything is embedded or
    written, and another :class:`~aiochroma.AiochromaError` where it fails; see the error tree. With ``on_failure="degrade"``
    only the former is raised: everything else gives an empty, falsy result of the same type whose ``error`` is the reason; in
    place of a memory that is an :class:`~aiochroma.UnavailableHit`. ``error`` is None wherever nothing failed.

    Args:
        path: The directory, made if it does not exist; None keeps everything in memory, which no other memory shares.
        embedder: Turns texts into vectors: an :class:`~aiochroma.Embedder`, a Chroma embedding function, or a
            synchronous or asynchronous callable; or the name of one of ours: ``"wordllama"``, ``"minilm"``, ``"hashed"``.
            Default (``"auto"``): the one that the database was written with, where it is one of ours; for a new one static
            word vectors where the extra ``local`` is installed, else MiniLM where ``minilm`` is, else hashed n-grams. None of
            them needs a network.
        on_failure: ``"raise"``: errors are raised. ``"degrade"``: what fails gives an empty result and a log line. What a chat
            window needs.
        timeout: Limit for each call, in seconds; None for none. See also :class:`aiochroma.deadline`.
        durable: Keep every vector in Chroma's log as well, so that a broken index can be rebuilt completely. False keeps
            the log short.
        client: A client to use in place of one of its own; it stays open when the memory is closed, and has its own options.
        split_chars: Embed longer texts in chunks of at most this many characters, split where sentences end (extra ``long``).
            Default: as the embedder says how much it reads; the offline ones read everything.
        history: Note every change made through this memory, with the former text and metadata, in a file beside the database; see
            :meth:`history`.
        sweep_every: Seconds after which a write sweeps all namespaces in passing. None: only :meth:`sweep` does.
        max_pending: How many requests may be queued or running.
        max_write_slice_ms: How long one slice of a write may hold the interpreter, in milliseconds. By default up to 100 where
            nothing else in the process has anything to do.
        slow_request_ms: Requests slower than this are logged, in milliseconds.
        lock_timeout: How long to wait for another process to let go of the directory, in seconds.
        process: ``"shared"``: the directory's host serves it, a process that all programs of this user share and that the first
            of them starts. ``"this"``: this process alone opens it. None: through the host if there is one already, else in
            this process.
        host_idle: How long a host that this memory starts stays when its last client has gone, in seconds.
        settings: Chroma's own settings; not changed.

    On a Chroma server (``client=await AsyncHttpClient(...)``, or :meth:`from_env`) a recall finds what it finds on a
    directory. The first recall of a namespace reads it whole, with its vectors (about 5 kB a memory), into this process's
    memory, and so does the first after each start; later ones ask in one round trip what changed since. What another client
    wrote or deleted before the recall is found or gone; of a change whose clock is more than a second behind this one's that
    holds after two seconds, up to a minute. Up to 50,000 memories of a server are kept. A larger namespace, and one that is
    being read (see ``Recall.indexing``), is answered from candidates of the server: those nearest by meaning, and the nearest
    that contain a word of the question as it is spelled there; ``Recall.errors`` says so. ``history`` is refused.

    Raises:
        InvalidInputError: An argument is wrong.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = "./memory",
        *,
        embedder: Any = None,
        on_failure: Literal["raise", "degrade"] = "raise",
        timeout: float | None = None,
        durable: bool = True,
        client: AsyncClient | BlockingClient | None = None,
        split_chars: int | None = None,
        history: bool = False,
        sweep_every: float | None = None,
        max_pending: int = 10_000,
        max_write_slice_ms: float = 10.0,
        slow_request_ms: float = 1000.0,
        lock_timeout: float = 0.0,
        process: Process | None = None,
        host_idle: float = 60.0,
        settings: Settings | None = None,
    ) -> None:
        home = home_of(
            path,
            client,
            durable=durable,
            lock_timeout=lock_timeout,
            process=process,
            host_idle=host_idle,
            timeout=timeout,
            max_pending=max_pending,
            max_write_slice_ms=max_write_slice_ms,
            slow_request_ms=slow_request_ms,
            settings=settings,
        )
        options = MemoryOptions(
            embedder=embedder,
            on_failure=on_failure,
            split_chars=split_chars,
            history=history,
            sweep_every=sweep_every,
        )
        self._life = Life(options, home)

    @classmethod
    def from_env(
        cls,
        *,
        embedder: Any = None,
        on_failure: Literal["raise", "degrade"] = "raise",
        split_chars: int | None = None,
        history: bool = False,
        sweep_every: float | None = None,
        **overrides: Unpack[ConnectOverrides],
    ) -> Self:
        """Make a memory of what the environment names: a directory, a server, or a database in memory.

        ``CHROMA_MODE`` (``persistent``, ``http`` or ``ephemeral``), ``CHROMA_DB_PATH``, ``CHROMA_HOST`` and so on are those of
        :func:`aiochroma.connect`. What is different on a server: see :class:`aiochroma.Memory`.

        Args:
            embedder: See the class, as for the next four.
            on_failure: See the class.
            split_chars: See the class.
            history: See the class; refused on a server.
            sweep_every: See the class.
            overrides: Values in place of the variables, and further options of the client, as for
                :func:`aiochroma.connect`. A directory is ``durable`` unless this says otherwise.

        Raises:
            InvalidInputError: When it is opened: values are wrong or missing; one error lists them all, secrets hidden.
        """
        options = MemoryOptions(
            embedder=embedder,
            on_failure=on_failure,
            split_chars=split_chars,
            history=history,
            sweep_every=sweep_every,
        )
        memory = cls.__new__(cls)
        memory._life = Life(options, home_in_environment(overrides))  # noqa: SLF001 - of this class
        return memory

    # -- life ----------------------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the store; returns itself. Idempotent.

        With ``on_failure="degrade"`` it does not raise, and the next call tries again.

        Raises:
            StoreUnavailableError: The store cannot be opened.
            ClosedError: The memory was closed.
        """
        await self._life.open()
        return self

    async def close(self) -> None:
        """Close the store and wait for its thread to end. Idempotent."""
        await self._life.close()

    async def aclose(self) -> None:
        """Do the same as :meth:`close`."""
        await self._life.close()

    def __await__(self) -> Generator[object, None, Self]:
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        try:
            return await self.open()
        except BaseException:
            # Without it nothing would close what was opened so far.
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._life!r}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError(
            f"{self!r} cannot be pickled: it stands on a thread of this process. Make a memory where it is needed."
        )

    @property
    def client(self) -> AsyncClient:
        """The client below: Chroma's own API on the same thread.

        Raises:
            ClosedError: The memory is not open.
        """
        client: AsyncClient = self._life.store.client
        return client

    def stats(self) -> Stats:
        """Return counters and times of the store's thread, with the embedder in ``details``.

        Raises:
            ClosedError: The memory is not open.
        """
        return self.client.stats()

    async def health(self) -> Health:
        """Return the state of the store; one that cannot be opened is ``"unavailable"``, and nothing is raised.

        Raises:
            ClosedError: The memory is closed, or was not opened.
        """
        return await self._life.health()

    async def backup(
        self,
        target: str | os.PathLike[str],
        *,
        keep: int | None = None,
        verify: Literal["full", "quick"] = "full",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> BackupReport:
        """Copy the database while it is in use; see :meth:`aiochroma.AsyncClient.backup` for arguments, result and errors."""
        return await self.client.backup(target, keep=keep, verify=verify, progress=progress)

    # -- remembering ---------------------------------------------------------------------------------------------------

    async def remember(
        self,
        text: str,
        *,
        namespace: str = "default",
        scope: Scope | None = None,
        thread: str | Literal[False] | None = None,
        id: str | None = None,
        metadata: MetadataView | None = None,
        ttl: float | timedelta | None = None,
        expires_at: Moment | None = None,
        pinned: bool = False,
        created_at: Moment | None = None,
        position: float | None = None,
        dedupe: bool | None = None,
    ) -> Id:
        """Remember a text; one that is remembered already is refreshed, except in a thread.

        Args:
            text: Any text that is not blank.
            namespace: Any text; made when it is first used.
            scope: Whose memory it is: a person, a customer, a session, as a text or as several from the widest to the narrowest,
                such as ``("acme", "user-7")``. What two people say alike is two memories.
            thread: The conversation it belongs to: memories of one thread lend each other relevance. A text that is repeated
                there is remembered again. Without one, what was remembered before and after it in its scope lends it some;
                False: it stands alone.
            id: Its id within the namespace. By default it follows from scope, thread and text.
            metadata: Strings, numbers and booleans to keep with it and to filter by.
            ttl: Seconds after which it is forgotten. One that is remembered again without ``ttl`` and ``expires_at`` stays.
            expires_at: The moment at which it is forgotten: a datetime, or seconds since 1970.
            pinned: Keep it when others are swept away.
            created_at: When it was said: a datetime, or seconds since 1970; default: now. A turn of a thread that is remembered
                again with the same moment is the same turn.
            position: Its place in the thread; default: behind what is there, whatever the clock says. One that is remembered
                again keeps its place.
            dedupe: True refreshes a text that is repeated in its thread.

        Returns:
            The id.

        Raises:
            InvalidInputError: An argument is wrong, or the text embeds to nothing; nothing was written.
            MissingExtraError: The text is longer than the embedder reads, and there is nothing to split it with.
            EmbedderMismatchError: The namespace was written with another embedder.
        """
        return await self._life.run(
            remembering.one(
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
        )

    async def remember_many(
        self,
        items: Iterable[str | Mapping[str, Any]] | AsyncIterable[str | Mapping[str, Any]],
        *,
        namespace: str = "default",
        scope: Scope | None = None,
        thread: str | Literal[False] | None = None,
        dedupe: bool | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Items[str]:
        """Remember many texts, in batches that yield to recalls; while one is written, the next one is embedded.

        Interrupted, it may be run again from the beginning: what is there already is refreshed, not duplicated. In a thread
        that needs ``dedupe``, or items with an ``id`` or a ``created_at``. Holds two batches and the ids.

        Args:
            items: Texts, or mappings with ``remember``'s arguments (but ``namespace``); any iterable, also asynchronous.
            namespace: The namespace of all items.
            scope: The scope of items that name none.
            thread: The conversation of items that name none, or False.
            dedupe: True refreshes texts that are repeated in their thread.
            progress: Called after each batch with the number of items written so far.

        Returns:
            The ids, in order.

        Raises:
            InvalidInputError: An argument is wrong; or an item is, and the batches before its own were written.
        """
        return await self._life.run(
            remembering.many(
                items, namespace=namespace, scope=scope, thread=thread, dedupe=dedupe, progress=progress
            )
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
        """Remember the messages of a conversation, in order, behind what the thread holds.

        Args:
            messages: Mappings with ``role`` and ``content``, and optionally ``name``, ``created_at``, ``metadata`` and ``id``.
                Role and name become metadata.
            thread: The conversation.
            scope: Whose conversation it is.
            namespace: Its namespace.
            extract: Makes memories of the messages, which are then remembered in their place, as facts without an order: a
                synchronous or asynchronous callable of the list of messages that returns texts, or mappings with
                :meth:`remember`'s arguments. It may ask a language model; none is built in, because which one, and with what
                prompt, is the program's to choose. It may take 120 s.

        Returns:
            The ids, in order.

        Raises:
            ExtractFailedError: ``extract`` raised, took too long, or returned something else; nothing was remembered.
        """
        return await self._life.run(
            remembering.messages(messages, thread=thread, scope=scope, namespace=namespace, extract=extract)
        )

    async def update(
        self,
        id: str,
        *,
        namespace: str = "default",
        text: str | None = None,
        metadata: MetadataView | None = None,
        ttl: float | timedelta | None = None,
        expires_at: Moment | None = None,
    ) -> Hit | None:
        """Change a memory; what is not given stays as it is.

        It keeps its id, also when it is given another text: remembering its new text, or its former one, makes a memory
        of its own.

        Args:
            id: The memory's id.
            namespace: Its namespace.
            text: The new text; it is embedded.
            metadata: Values to add or to replace; None takes a key away.
            ttl: Seconds after which it is forgotten.
            expires_at: The moment at which it is forgotten: a datetime, or seconds since 1970.

        Returns:
            The memory as it is now; None where there is none.
        """
        return await self._life.run(
            changing.update(
                id, namespace=namespace, text=text, metadata=metadata, ttl=ttl, expires_at=expires_at
            )
        )

    async def pin(self, id: str, *, namespace: str = "default", pinned: bool = True) -> Hit | None:
        """Pin a memory, or unpin it: a pinned one does not expire and is not swept away.

        Returns:
            The memory as it is now; None where there is none.
        """
        return await self._life.run(changing.pin(id, namespace=namespace, pinned=pinned))

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
        max_distance: float | Literal["auto"] | None = None,
        min_score: float | Literal["auto"] | None = None,
        where: Where | None = None,
        mode: Mode = "hybrid",
        vector_weight: float = VECTOR_WEIGHT,
        since: Moment | None = None,
        until: Moment | None = None,
        half_life: float | timedelta | None = None,
        diversity: float = 0.0,
        window: int = 0,
        rerank: Rerank | None = None,
    ) -> Recall:
        """Find what was remembered about something.

        The question is embedded once and all namespaces are searched at the same time. A namespace that fails loses none
        of the others' hits: see ``Recall.errors``. Expired memories are never returned and do not take the place of others.

        Args:
            query: The question.
            namespaces: A name, several names, or a mapping from names to ``k`` or to a :class:`NamespaceSearch`; default all. One
                that does not exist is empty.
            scope: Only memories of this scope and of those below it; default: whoever they belong to.
            thread: Only memories of this thread.
            k: How many hits each namespace may give.
            limit: How many hits there may be in all; default: as many as the namespaces give.
            max_distance: The largest cosine distance of a hit, 0 to 2; ``"auto"`` for the embedder's own; default None: the
                best ``k``, uncut. A memory that matches by text is spared.
            min_score: The lowest score of a hit, 0 to 1; ``"auto"`` for an empty recall where the best hit says that nothing
                was remembered about it; default: none.
            where: Chroma's filter over metadata.
            mode: ``"hybrid"``: by meaning and by words; ``"vector"``: by meaning; ``"text"``: by words.
            vector_weight: What meaning counts beside words in ``"hybrid"``; at least 0.
            since: Only what was first remembered at this moment or later: a datetime, or seconds since 1970.
            until: Only what was first remembered before this moment.
            half_life: Prefer the recent: after this many seconds without a refresh half of what age may take is gone.
            diversity: 0 (default) returns the best; towards 1, hits that differ from those before them (maximal marginal
                relevance).
            window: Return with each hit this many neighbours before and after it in its thread, at most 50. An expired one
                is left out; until it is swept its place stays empty.
            rerank: Orders the best 40 hits again: a callable of the question and their texts that returns a number for each,
                the greater the better; it may be asynchronous, and has 10 s. Where it fails the hits keep their order, and
                ``Recall.errors[""]`` says why.

        Returns:
            The hits of all namespaces, best first.
        """
        return await self._life.run(
            recalling.recall(
                query,
                limit=limit,
                namespaces=namespaces,
                scope=scope,
                thread=thread,
                k=k,
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
        )

    async def similar(self, id: str, *, namespace: str = "default", k: int = 5) -> Recall:
        """Find the memories of a namespace that are nearest to one of them by meaning.

        Near-duplicates are kept, because opposite facts have vectors close to each other; this lists them.

        Returns:
            The nearest first, without the memory itself; empty where there is none of that id.
        """
        return await self._life.run(recalling.similar_to(id, namespace=namespace, k=k))

    # -- looking up ----------------------------------------------------------------------------------------------------

    async def get(self, id: str, *, namespace: str = "default") -> Hit | None:
        """Return a memory by its id.

        Returns:
            The memory; None where there is none.
        """
        return await self._life.run(listing.one(id, namespace=namespace))

    async def get_many(self, ids: Iterable[str], *, namespace: str = "default") -> Items[Hit]:
        """Return the memories that are there, of several ids, in the order of the ids.

        Returns:
            The memories.
        """
        return await self._life.run(listing.many(ids, namespace=namespace))

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
    ) -> listing.Listing:
        """List the memories of a namespace by when they were first remembered, those of a thread by their place in it.

        ``page = await memory.list(..., limit=20)`` gives a page; ``async for hit in memory.list(...)`` goes through all. The last
        turns of a conversation are ``await memory.list(thread=..., newest_first=True, limit=10)``.

        Args:
            namespace: The namespace.
            scope: Only memories of this scope and of those below it; default: whoever they belong to.
            thread: Only memories of this thread.
            where: Chroma's filter over metadata.
            since: Only what was first remembered at this moment or later: a datetime, or seconds since 1970.
            until: Only what was first remembered before this moment.
            newest_first: Begin with the newest.
            limit: The most memories; default: all.
            after: The ``next`` of the page before.

        Returns:
            Something to ``await`` for a :class:`~aiochroma.Page`, or to go through with ``async for``. Degraded: an empty page
            with ``error``; going through it raises.
        """
        spec = listing.spec_from(
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

        async def fetch(spec: ListSpec) -> Page:
            return await self._life.run(listing.page(namespace, spec))

        return listing.Listing(fetch, spec, limit)

    async def namespaces(self) -> Items[str]:
        """Return the names of all namespaces, sorted."""
        return await self._life.run(listing.names())

    async def count(self, namespace: str | None = None) -> Count:
        """Return how many memories a namespace holds, or all together; what has expired counts until it is swept.

        A namespace of another embedder is counted too.
        """
        return await self._life.run(listing.count(namespace))

    async def history(
        self, id: str | None = None, *, namespace: str | None = None, limit: int = 100
    ) -> Items[changing.MemoryChange]:
        """Return what was changed through memories with ``history=True``, newest first.

        Args:
            id: Only this memory.
            namespace: Only this namespace.
            limit: The most changes to return.

        Returns:
            The changes; empty where nothing was noted.
        """
        return await self._life.run(changing.history(id, namespace=namespace, limit=limit))

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
        """Forget one memory, or all that pass a filter, belong to a thread, or to a scope and those below it.

        What is forgotten is not found any more; its bytes leave the files later, or at once with :meth:`erase`.

        Args:
            id: The id of one memory. Otherwise give one or several of ``where``, ``thread`` and ``scope``; what passes all is
                forgotten.
            namespace: The namespace. Default: with a ``scope`` all namespaces, so that a person is forgotten everywhere; else
                ``"default"``.
            where: Chroma's filter over metadata.
            thread: The conversation.
            scope: Whose memories are forgotten.

        Returns:
            How many were forgotten.
        """
        return await self._life.run(
            forgetting.some(id, namespace=namespace, where=where, thread=thread, scope=scope)
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
        All that was forgotten before goes as well. Backups and exports are out of reach; the receipt names those that are known.
        It raises also where the memory degrades.

        Args:
            id: The id of one memory. Otherwise give one or several of ``where``, ``thread`` and ``scope``, or ``namespace`` alone
                for all of it.
            namespace: The namespace. Default: with a ``scope`` all namespaces; else ``"default"``.
            where: Chroma's filter over metadata.
            thread: The conversation.
            scope: Whose memories are erased.

        Returns:
            What was looked for, and in which files.

        Raises:
            InvalidInputError: An argument is wrong, or the database is a server's.
        """
        return await self._life.run(
            erasing.erasing(id, namespace=namespace, where=where, thread=thread, scope=scope)
        )

    async def forget_many(self, ids: Iterable[str], *, namespace: str = "default") -> Count:
        """Forget several memories by id; those that are not there are ignored.

        Returns:
            How many were forgotten.
        """
        return await self._life.run(forgetting.many(ids, namespace=namespace))

    async def forget_namespace(self, namespace: str) -> Count:
        """Forget a whole namespace.

        Returns:
            How many memories it held.
        """
        return await self._life.run(forgetting.whole_namespace(namespace))

    async def sweep(self, *, namespace: str | None = None) -> Count:
        """Delete what has expired, from one namespace or from all; pinned memories stay.

        Returns:
            How many were deleted.
        """
        return await self._life.run(forgetting.expired(namespace))

    # -- embedding again -----------------------------------------------------------------------------------------------

    async def reembed(
        self,
        namespaces: Iterable[str] | str | None = None,
        *,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> ReembedReport:
        """Embed namespaces that were written with another embedder again, with this memory's.

        The new vectors go into a copy, which takes over when it is complete and was compared with the original; until then
        whoever uses the old embedder finds and writes as before. Interrupted, it may be run again, and goes on where it stopped.
        Texts, ids, metadata and dates stay as they are.

        Args:
            namespaces: The names of namespaces; default all.
            progress: Called after each page with the namespace, how many of its memories are done, and of how many.

        Returns:
            What was done. A namespace in some of whose texts the embedder finds nothing stays as it was, and is named.

        Raises:
            EmbeddingFailedError: The embedder failed; run it again to go on.
        """
        return await self._life.run(reembedding.namespaces_again(namespaces, progress=progress))

    # -- files ---------------------------------------------------------------------------------------------------------

    async def export(
        self,
        file: str | os.PathLike[str],
        *,
        namespaces: Iterable[str] | str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Count:
        """Write memories to a file as JSON lines; importing it gives the same memories again.

        Everything is in it but the vectors, which depend on the embedder: a namespace of another one is written too. The
        file appears when it is complete.

        Args:
            file: The file; replaced if it exists.
            namespaces: The names of namespaces; default all.
            progress: Called now and then with the number of memories written so far.

        Returns:
            How many there are in the file.
        """
        return await self._life.run(transfer.exporting(file, namespaces=namespaces, progress=progress))

    async def import_(
        self,
        file: str | os.PathLike[str],
        *,
        namespace: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Count:
        """Remember what is in a file: JSON lines, CSV, or a folder of text files.

        JSON (``.jsonl``, ``.ndjson``, ``.json``): one object with ``text``, or one text, per line, or an array of them, and what
        else :meth:`export` writes.
        It replaces what is there under the same id. CSV (``.csv``): a first row with names, one of them ``text``; ``id``,
        ``namespace``, ``scope``, ``thread``, ``position``, ``created_at``, ``updated_at``, ``expires_at`` and ``pinned`` mean
        what they do elsewhere, other columns become metadata. A folder: every ``.txt`` and ``.md`` file below it is a memory,
        whose id and metadata ``source`` are the file's path within it.

        Interrupted, it may be run again from the beginning: nothing is duplicated.

        Args:
            file: The file or folder.
            namespace: The namespace of what names none itself; default ``"default"``.
            progress: Called after each batch with the number of memories written so far.

        Returns:
            How many were remembered.

        Raises:
            InvalidInputError: Something of it is wrong; names the line. What came before it was written.
        """
        return await self._life.run(transfer.importing(file, namespace=namespace, progress=progress))
