"""The codes of tokens, for memories that have none though the embedder gives the states of tokens.

Those are memories of a copy, and of an index that was made again from Chroma's records; and those of a server that other clients
have written. A copy of a server's memories is completed beside the recalls that look into it, a few texts at a time.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING

from aiochroma._clock import monotonic
from aiochroma._errors import InvalidInputError
from aiochroma._logging import EventLogger, get_logger
from aiochroma._waiting import THREAD_NAME, drive, off_loop
from aiochroma.records.record import CHUNKS, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiochroma.memory.store import Namespace, Store
    from aiochroma.memory.vectors import Embedded

__all__ = ["CodesBeside", "complete_codes", "complete_index", "write_codes"]

log: EventLogger = get_logger("aiochroma.memory")

_PAGE = 256
_PAGE_BESIDE = 32
_AT_ONCE = 8
"""How many texts are embedded in one call beside recalls. A question has to wait for that call."""
_PAUSE_SECONDS = 2.0
_TRIED_SECONDS = 300.0
"""For so long a memory whose code cannot be made is not tried again."""
_END_SECONDS = 5.0


class CodesBeside:
    """Completes the codes of a server's memories on a thread, while there are recalls that would use them."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._has_ended = False
        self._rests_until = 0.0
        self._tried: dict[tuple[str, str], float] = {}

    def begin(self, store: Store, names: Iterable[str]) -> None:
        """See to namespaces, unless that was done a moment ago, or is under way."""
        if not (store.answers_in_parallel and store.embedder.gives_tokens) or self._has_ended:
            return
        now = monotonic()
        if now < self._rests_until or (self._thread is not None and self._thread.is_alive()):
            return
        self._rests_until = now + _PAUSE_SECONDS
        thread = threading.Thread(
            target=self._complete, args=(store, list(names)), name=THREAD_NAME, daemon=True
        )
        with contextlib.suppress(RuntimeError):  # There are too many threads, or the interpreter ends.
            thread.start()
            self._thread = thread

    async def end(self) -> None:
        """Stop; what is being embedded is waited for, but not for long."""
        self._has_ended = True
        if self._thread is not None:
            await off_loop(partial(self._thread.join, _END_SECONDS))

    def _complete(self, store: Store, names: Iterable[str]) -> None:
        try:
            for name in names:
                drive(self._completed(store, name))
        except Exception as error:  # noqa: BLE001 - a recall does without
            if not self._has_ended:
                log.warning("memory.codes_incomplete", error=error)
        finally:
            self._rests_until = monotonic() + _PAUSE_SECONDS

    async def _completed(self, store: Store, name: str) -> None:
        namespace = await store.existing(name)
        if namespace is None:
            return
        now = monotonic()
        self._tried = {key: at for key, at in self._tried.items() if now - at < _TRIED_SECONDS}
        ids: list[str] = await store.submit("memories_without_code", **namespace.collection)
        ids = [id for id in ids if (name, id) not in self._tried]
        for start in range(0, len(ids), _PAGE_BESIDE):
            if self._has_ended:
                return
            try:
                await _complete_page(store, namespace, ids[start : start + _PAGE_BESIDE], _AT_ONCE)
            except (
                InvalidInputError
            ) as error:  # A text of another program, in which the embedder finds nothing.
                log.info("memory.codes_incomplete", namespace=name, error=str(error))
        if ids:
            left = set(ids).intersection(await store.submit("memories_without_code", **namespace.collection))
            self._tried |= dict.fromkeys(((name, id) for id in left), now)


async def complete_codes(
    store: Store, name: str, progress: Callable[[str, int, int], None] | None = None
) -> int:
    """Embed the tokens of the memories that have no code; return how many have one now.

    A memory to which another program gave a vector that is not that of its text gets none.
    """
    namespace = await store.existing(name)
    if namespace is None or not store.embedder.gives_tokens:
        return 0
    await complete_index(store, namespace.id)
    ids: list[str] = await store.submit("memories_without_code", **namespace.collection)
    asked: list[str] = []
    for start in range(0, len(ids), _PAGE):
        asked += await _complete_page(store, namespace, ids[start : start + _PAGE], _PAGE)
        if progress is not None:
            progress(name, min(start + _PAGE, len(ids)), len(ids))
    left = set(await store.submit("memories_without_code", **namespace.collection)) if asked else set()
    return sum(id not in left for id in asked)


async def _complete_page(store: Store, namespace: Namespace, ids: list[str], at_once: int) -> list[str]:
    """Embed the tokens of some memories in batches; return the ids of those that may have a code."""
    records: list[Record | None] = await store.submit("read_memories", **namespace.collection, ids=ids)
    # A long text is found by its chunks, and has no code.
    texts = [
        (record["id"], record["document"])
        for record in records
        if record is not None and CHUNKS not in record["metadata"]
    ]
    for start in range(0, len(texts), at_once):
        some = dict(texts[start : start + at_once])
        embedded = await store.embed(list(some.values()), is_query=False)
        await write_codes(
            store, namespace.collection["collection_id"], dict(zip(some, embedded, strict=True))
        )
    return [id for id, _ in texts]


async def complete_index(store: Store, collection: object) -> None:
    """Have our file, where there is one, copy all that it lacks of a collection."""
    if store.capabilities.full_text:
        while await store.submit("index_memories", collection_id=collection, **store.database) < 1.0:
            pass


async def write_codes(store: Store, collection: object, embedded: Mapping[str, Embedded]) -> None:
    """Keep the codes of what was embedded, where there are any."""
    codes = {id: one.code for id, one in embedded.items() if one.code is not None}
    if codes:
        await store.submit(
            "code_memories",
            bulk=True,
            collection_id=collection,
            ids=list(codes),
            codes=list(codes.values()),
            **store.database,
        )
