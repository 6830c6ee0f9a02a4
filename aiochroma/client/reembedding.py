"""Giving records that lost their vectors new ones, made from their documents.

Done by a memory when it opens, and by the doctor. Each batch is a write of its own, so an interrupted run goes on where it
stopped. What a record is, says Chroma at the moment of writing: one that was changed or deleted meanwhile is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from aiochroma._logging import get_logger
from aiochroma.embedding.functions import is_same_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["EmbeddingSource", "FillReport", "SingleEmbedder", "reembed_missing"]

log = get_logger("aiochroma.client")

_BATCH = 64
_EMBEDDER = "aiochroma:embedder"


class EmbeddingSource(Protocol):
    """What makes vectors for collections."""

    def refusal(self, stored: str | None) -> str | None:
        """Say why the vectors of a collection cannot be made, or return None.

        Args:
            stored: The identity of the embedder that the collection was written with, where it is known.
        """

    async def embed(self, texts: list[str]) -> Sequence[Any]:
        """Return one vector per text."""


class SingleEmbedder:
    """One embedder, for the collections that were written with it and no others.

    Args:
        identity: The embedder's.
        embed: Returns one float32 array per text.
    """

    def __init__(self, identity: str, embed: Callable[[list[str]], Awaitable[Sequence[Any]]]) -> None:
        self._identity = identity
        self._embed = embed

    def refusal(self, stored: str | None) -> str | None:
        """See :class:`EmbeddingSource`."""
        if stored is not None and is_same_name(stored, self._identity):
            return None
        return f"it was embedded by {stored or 'another program'!r} and this is {self._identity!r}"

    async def embed(self, texts: list[str]) -> Sequence[Any]:
        """See :class:`EmbeddingSource`."""
        return await self._embed(texts)


@dataclass(frozen=True)
class FillReport:
    """What became of the records that had no vector.

    Attributes:
        filled: How many have one again, by collection name.
        left: What has none yet: by collection name, by reason, the ids.
    """

    filled: dict[str, int] = field(default_factory=dict)
    left: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every record has a vector."""
        return not self.left


async def reembed_missing(
    submit: Callable[..., Awaitable[Any]],
    source: EmbeddingSource,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> FillReport:
    """Embed the documents of all records that have no vector, and write the vectors.

    Args:
        submit: Carries out an operation on the DB thread: ``await submit(operation, **arguments)``.
        source: Makes the vectors.
        progress: Called after each batch with the collection's name, how many of its records are done, and of how many.

    Returns:
        What was done, and what could not be.

    Raises:
        AiochromaError: A request failed, or the embedder did; the batches before it are written.
    """
    report = FillReport()
    for entry in await submit("missing_vectors"):
        place = {name: entry[name] for name in ("tenant", "database")}
        model = await submit("get_collection_by_id", collection_id=UUID(entry["collection_id"]), **place)
        filling = _Filling(submit, source, {"collection_id": model.id, **place}, model)
        refusal = source.refusal((model.metadata or {}).get(_EMBEDDER))
        if refusal is not None:
            filling.left[refusal] = list(entry["ids"])
        else:
            for start in range(0, len(entry["ids"]), _BATCH):
                await filling.batch(entry["ids"][start : start + _BATCH])
                if progress is not None:
                    progress(model.name, min(start + _BATCH, len(entry["ids"])), len(entry["ids"]))
        if filling.filled:
            report.filled[model.name] = filling.filled
        if filling.left:
            report.left[model.name] = {reason: tuple(ids) for reason, ids in filling.left.items()}
        log.warning(
            "index.filled",
            collection=model.name,
            filled=filling.filled,
            left={reason: len(ids) for reason, ids in filling.left.items()},
        )
    return report


class _Filling:
    """One collection on its way."""

    def __init__(
        self,
        submit: Callable[..., Awaitable[Any]],
        source: EmbeddingSource,
        place: dict[str, Any],
        model: Any,
    ) -> None:
        self.filled = 0
        self.left: dict[str, list[str]] = {}
        self._submit = submit
        self._source = source
        self._place = place
        self._dimension = model.dimension

    async def batch(self, ids: list[str]) -> None:
        found = await self._submit("_get", ids=ids, include=["documents"], **self._place)
        texts = {id: text for id, text in zip(found["ids"], found["documents"], strict=True) if text}
        self._leave("it has no document", [id for id in found["ids"] if id not in texts])
        if not texts:
            return
        vectors = dict(zip(texts, await self._source.embed(list(texts.values())), strict=True))
        wrong = [id for id, vector in vectors.items() if self._dimension not in {None, len(vector)}]
        empty = [id for id, vector in vectors.items() if not 0 < float(vector @ vector) < float("inf")]
        self._leave(
            f"the embedder's vectors do not have the collection's {self._dimension} dimensions", wrong
        )
        self._leave("the embedder finds nothing in its document", empty)
        good = [id for id in texts if id not in {*wrong, *empty}]
        written = await self._submit(
            "fill_vectors",
            ids=good,
            documents=[texts[id] for id in good],
            embeddings=[vectors[id] for id in good],
            **self._place,
        )
        self.filled += len(written)

    def _leave(self, reason: str, ids: list[str]) -> None:
        if ids:
            self.left.setdefault(reason, []).extend(ids)
