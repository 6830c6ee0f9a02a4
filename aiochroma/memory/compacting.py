"""Making the index of a namespace again without what is dead in it, beside whoever uses the namespace.

Chroma never takes the vector of a deleted or replaced record out of an index. A copy of the collection has only what is alive; it
is made, compared, and takes over as one for another embedder does, but its vectors are those that are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiochroma._errors import EmbeddingFailedError, InvalidInputError
from aiochroma._types import Metadata
from aiochroma.memory.codes import complete_codes
from aiochroma.memory.copies import ExclusiveRun
from aiochroma.memory.reembedding import Copying, finish_interrupted
from aiochroma.memory.store import checked_names
from aiochroma.memory.vectors import Embedded
from aiochroma.records.record import CHUNKS, collection_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from aiochroma.memory.opening import Life
    from aiochroma.memory.store import Store

__all__ = ["compact"]


def compact(
    life: Life,
    namespaces: Iterable[str] | str | None,
    *,
    progress: Callable[[str, int, int], None] | None,
) -> Coroutine[object, object, dict[str, int]]:
    """Make the indexes of namespaces again; see ``Memory.compact``."""
    names = checked_names(namespaces)

    async def work(store: Store) -> dict[str, int]:
        done = {}
        chosen = await _worn(store) if names is None else names
        async with ExclusiveRun(store) as run:
            await finish_interrupted(store, run)
            for name in chosen:
                if await store.existing(name) is None:  # That of another embedder is an error here.
                    continue
                model = await store.collection(collection_name(name))
                if model is None:
                    continue
                copying = _Compacting(store, run, name, model, progress)
                if not await copying.run():
                    raise EmbeddingFailedError(
                        f"The namespace {name!r} stays as it was: its long texts cannot be embedded again, those of "
                        f"{', '.join(sorted(copying.left)[:5])}."
                    )
                await complete_codes(store, name)
                done[name] = copying.embedded
        return done

    return life.run("compact", work, None)


async def _worn(store: Store) -> list[str]:
    """Return the namespaces in whose index more is dead than alive."""
    if not store.capabilities.files:
        raise InvalidInputError(
            "This database has no files of its own to look at: name the `namespaces` whose index is to be made again."
        )
    worn = set(await store.submit("worn_collections"))
    names = await store.names()
    by_name = {model.name: str(model.id) for model in await store.collections()}
    return [name for name in names if by_name.get(collection_name(name)) in worn]


class _Compacting(Copying):
    """Makes a copy with the vectors that are there."""

    async def vectors(self, records: Mapping[str, tuple[str, Metadata]]) -> dict[str, Embedded]:
        """Return the vectors that records have. A long text is embedded again, for its chunks."""
        short = [id for id, (_, metadata) in records.items() if CHUNKS not in metadata]
        known: dict[str, Embedded] = {}
        if short:
            found = await self.store.submit(
                "_get",
                collection_id=self.original.id,
                ids=short,
                include=["embeddings"],
                **self.store.database,
            )
            known = {
                id: Embedded(vector, [])
                for id, vector in zip(found["ids"], found["embeddings"], strict=True)
                if vector is not None
            }
        others = {id: record for id, record in records.items() if id not in known}
        return known | (await super().vectors(others) if others else {})
