"""Remembering, changing and forgetting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aiochroma._errors import AiochromaError, InvalidInputError
from aiochroma._logging import get_logger
from aiochroma.memory.base import BaseMemory
from aiochroma.memory.bulk import batches, distinct, write_batches
from aiochroma.memory.degraded import NoItems, NoNumber, NoText
from aiochroma.memory.filters import check_where
from aiochroma.memory.items import (
    EXPIRES_AT,
    PINNED,
    UPDATED_AT,
    Item,
    check_id,
    check_text,
    check_thread,
    checked_item,
    now_in_seconds,
)
from aiochroma.memory.namespaces import collection_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping
    from datetime import datetime, timedelta

    from aiochroma.memory.recall import Hit
    from aiochroma.memory.store import Namespace

__all__ = ["WritingMemory"]

log = get_logger("aiochroma.memory")


class WritingMemory(BaseMemory):
    """The calls that change something; see :class:`aiochroma.Memory`."""

    _swept_at = float("-inf")

    async def remember(
        self,
        text: str,
        *,
        namespace: str = "default",
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        scope: str | tuple[str, ...] | None = None,
        thread: str | None = None,
        position: float | None = None,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
        created_at: datetime | float | None = None,
        pinned: bool = False,
        dedupe: bool | None = None,
    ) -> str:
        """Remember a text; a text that is remembered already is refreshed.

        Args:
            text: Any text that is not blank.
            namespace: Any text; made when it is first used.
            id: Its id within the namespace. By default it follows from the text, so remembering a text twice is harmless.
            metadata: Strings, numbers and booleans to keep with it and to filter by.
            scope: Whose memory it is: a person, a customer, a session, as a text or as several from the widest to the narrowest,
                such as ``("acme", "user-7")``. What two people say alike is two memories.
            thread: The conversation it belongs to: memories of one thread lend each other relevance. A text that is repeated
                there is remembered again.
            position: Its place in the thread; default: after what was remembered before. One that is remembered again keeps its
                place.
            ttl: Forget it after so many seconds. A text that is remembered again without ``ttl`` and ``expires_at`` stays.
            expires_at: Forget it at this moment: a datetime, or seconds since 1970.
            created_at: When it was said: a datetime, or seconds since 1970; default: now.
            pinned: Keep it when others are swept away.
            dedupe: True refreshes a text that is repeated in its thread; default: only outside of threads.

        Returns:
            The id. Degraded: an empty string with ``.error``.

        Raises:
            InvalidInputError: An argument is wrong, or the text embeds to nothing; nothing was written.
            MissingExtraError: The text is longer than the embedder reads, and there is nothing to split it with.
            EmbedderMismatchError: The namespace was written with another embedder.
            AiochromaError: See the error tree.
        """
        item = checked_item(
            text,
            id=id,
            metadata=metadata,
            scope=scope,
            thread=thread,
            position=position,
            ttl=ttl,
            expires_at=expires_at,
            created_at=created_at,
            pinned=pinned,
        )
        collection_name(namespace)

        async def work() -> str:
            with self._store.limit():
                embedded = await self._store.embed([item.text], is_query=False)
                moved = await self._store.on_made(
                    namespace,
                    lambda place: self._store.write(
                        place,
                        distinct([item], dedupe=bool(dedupe)),
                        embedded,
                        bulk=False,
                        dedupe=bool(dedupe),
                    ),
                )
            await self._sweep_in_passing()
            return moved.get(item.id, item.id)

        return await self._guarded("remember", work, NoText)

    async def remember_many(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        namespace: str = "default",
        thread: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Remember many texts, in batches that yield to recalls; while one is written, the next one is embedded.

        Interrupted, it may be run again from the beginning: what is there already is refreshed, not duplicated.
        Holds two batches and the ids.

        Args:
            items: Texts, or mappings with ``remember``'s arguments (but ``namespace``); any iterable, also asynchronous.
            namespace: Where.
            thread: The conversation of items that name none.
            progress: Called after each batch with the number of items written so far.

        Returns:
            The ids, in order. Degraded: an empty list with ``.error``.

        Raises:
            InvalidInputError: An argument is wrong; or an item is, and the batches before its own were written.
            AiochromaError: See the error tree.
        """
        collection_name(namespace)
        if thread is not None:
            check_thread(thread)

        async def work() -> list[str]:
            ids: list[str] = []

            def written(batch: list[Item]) -> None:
                ids.extend(item.id for item in batch)
                if progress is not None:
                    progress(len(ids))

            await write_batches(
                self._store,
                batches(items, namespace, {} if thread is None else {"thread": thread}),
                written,
                exact=False,
                dedupe=False,
            )
            await self._sweep_in_passing()
            return ids

        return await self._guarded("remember_many", work, NoItems)

    async def update(
        self,
        id: str,
        *,
        namespace: str = "default",
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl: float | timedelta | None = None,
        expires_at: datetime | float | None = None,
    ) -> Hit | None:
        """MemoryChange a memory; what is not given stays as it is.

        It keeps its id, also when it is given another text: remembering its new text, or its former one, makes a memory
        of its own.

        Args:
            id: Which.
            namespace: Where.
            text: The new text; embedded anew.
            metadata: Values to add or to replace.
            ttl: As for :meth:`remember`.
            expires_at: Likewise.

        Returns:
            The memory as it is now; None where there is none (or, degraded, where the store is unavailable).

        Raises:
            InvalidInputError: An argument is wrong; nothing was changed.
            AiochromaError: See the error tree.
        """
        check_id(id)
        collection_name(namespace)
        if text is not None:
            check_text(text, "`text`")
        change = checked_item(text or "-", id=id, metadata=metadata, ttl=ttl, expires_at=expires_at)

        async def work() -> Hit | None:
            values = {**change.metadata, **change.own, UPDATED_AT: now_in_seconds()}
            with self._store.limit():
                embedded = None if text is None else (await self._store.embed([text], is_query=False))[0]
                item = None if text is None else change
                return await self._store.on(
                    namespace,
                    lambda place: self._store.change(
                        place, id, values, action="update", item=item, embedded=embedded
                    ),
                    absent=None,
                )

        return await self._guarded("update", work, lambda _: None)

    async def pin(self, id: str, *, namespace: str = "default", pinned: bool = True) -> bool:
        """Pin a memory, or unpin it: a pinned one does not expire and is not swept away.

        Returns:
            Whether there is such a memory. Degraded: False.

        Raises:
            InvalidInputError: An argument is wrong.
            AiochromaError: See the error tree.
        """
        check_id(id)
        collection_name(namespace)

        async def work() -> bool:
            values = {PINNED: True if pinned else None}
            hit = await self._store.on(
                namespace,
                lambda place: self._store.change(place, id, values, action="pin" if pinned else "unpin"),
                absent=None,
            )
            return hit is not None

        return await self._guarded("pin", work, lambda _: False)

    async def forget(
        self,
        id: str | None = None,
        *,
        namespace: str = "default",
        where: Mapping[str, Any] | None = None,
    ) -> int:
        """Forget one memory, or all of a namespace that pass a filter.

        Args:
            id: Which one; or
            namespace: Where.
            where: Chroma's filter over metadata.

        Returns:
            How many were forgotten. Degraded: 0 with ``.error``.

        Raises:
            InvalidInputError: An argument is wrong; give either ``id`` or ``where``.
            AiochromaError: See the error tree.
        """
        if (id is None) == (where is None):
            raise InvalidInputError(
                "`forget` needs either an `id` or a `where`; see `forget_namespace` for everything."
            )
        if id is not None:
            check_id(id)
        if where is not None:
            check_where(where)
        collection_name(namespace)

        async def work() -> int:
            async def forget(place: Namespace) -> int:
                ids = [id] if id is not None else await self._store.ids(place, where)
                return await self._store.forget(place, ids, action="forget")

            return await self._store.on(namespace, forget, absent=0)

        return await self._guarded("forget", work, NoNumber)

    async def forget_namespace(self, namespace: str) -> int:
        """Forget a whole namespace.

        Returns:
            How many memories it held. Degraded: 0 with ``.error``.

        Raises:
            InvalidInputError: The namespace is blank or not a string.
            AiochromaError: See the error tree.
        """
        collection_name(namespace)

        return await self._guarded(
            "forget_namespace",
            lambda: self._store.on(namespace, self._store.forget_namespace, absent=0),
            NoNumber,
        )

    async def sweep(self, *, namespace: str | None = None) -> int:
        """Delete what has expired, from one namespace or from all; pinned memories stay.

        Returns:
            How many were deleted. Degraded: 0 with ``.error``.

        Raises:
            InvalidInputError: The namespace is blank or not a string.
            AiochromaError: See the error tree.
        """
        if namespace is not None:
            collection_name(namespace)

        return await self._guarded("sweep", lambda: self._sweep(namespace), NoNumber)

    async def _sweep(self, namespace: str | None) -> int:
        async def sweep(place: Namespace) -> int:
            expired = await self._store.ids(place, {EXPIRES_AT: {"$lte": time.time()}})
            return await self._store.forget(place, expired, action="sweep", expired_only=True)

        names = [namespace] if namespace is not None else await self._store.names()
        return sum([await self._store.on(name, sweep, absent=0) for name in names])

    async def _sweep_in_passing(self) -> None:
        """Sweep after a write, if that is wanted and it is time."""
        now = time.monotonic()
        if self._sweep_every is None or now - self._swept_at < self._sweep_every:
            return
        self._swept_at = now
        try:
            await self._sweep(None)
        except AiochromaError as error:
            # What was to be written is there; the next write sweeps again.
            log.warning("memory.sweep_failed", error=repr(error))
