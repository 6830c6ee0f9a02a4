"""The part of a repair for which the database is opened: rebuilding indexes, and embedding what has no vector."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiochroma.client.opening import AsyncPersistentClient
from aiochroma.client.reembedding import FillReport, reembed_missing
from aiochroma.embedding.choice import chosen, known_embedder
from aiochroma.embedding.identity import is_same_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aiochroma.embedding.choice import EmbedderFunction

__all__ = ["fill_and_rebuild"]


def fill_and_rebuild(
    directory: Path, embedder: Any, *, fill: bool, progress: Callable[[str, int, int], None]
) -> tuple[list[str], FillReport | None]:
    """Open a database, which repairs its indexes, and embed what has no vector if asked to.

    Args:
        directory: The database directory; nobody owns it.
        embedder: What embeds; None for the one that each collection names, where it is one of ours.
        fill: Whether to embed.
        progress: Called with a collection's name, how many records are done, and of how many.

    Returns:
        What was done, one sentence each, and what became of records without vectors.
    """
    return asyncio.run(_fill_and_rebuild(directory, embedder, fill, progress))


async def _fill_and_rebuild(
    directory: Path, embedder: Any, fill: bool, progress: Callable[[str, int, int], None]
) -> tuple[list[str], FillReport | None]:
    async with AsyncPersistentClient(
        directory, allow_missing_vectors=True, max_write_slice_ms=100.0
    ) as client:
        recovery = client.recovery
        assert recovery is not None
        actions = [
            f"the index of {entry.label} was rebuilt: {entry.from_log} vectors from the log, {entry.from_index} from the broken "
            f"files; {len(entry.missing)} are nowhere"
            for entry in recovery.collections
            if entry.rebuilt
        ]
        if not fill:
            return actions, None
        source = _DoctorsSource(client, embedder)
        filled = await reembed_missing(client.session.submit, source, progress=progress)
        actions.extend(f"{count} documents of {name} were embedded" for name, count in filled.filled.items())
        return actions, filled


class _DoctorsSource:
    """Embeds with what the caller gave, or with the embedder that a collection names."""

    def __init__(self, client: Any, embedder: Any) -> None:
        self._client = client
        self._given = None if embedder is None else chosen(embedder)
        self._chosen: EmbedderFunction | None = None

    def refusal(self, stored: str | None) -> str | None:
        """See :class:`aiochroma.client.reembedding.EmbeddingSource`."""
        given = self._given
        if given is None:
            self._chosen = None if stored is None else known_embedder(stored)
        else:
            self._chosen = given if stored is None or is_same_name(stored, given.identity) else None
        if self._chosen is not None:
            return None
        if stored is None:
            return "it is not known what embedded it; give the embedder"
        return f"it was embedded by {stored!r}, which is not at hand; give that embedder"

    async def embed(self, texts: list[str]) -> Sequence[Any]:
        """See :class:`aiochroma.client.reembedding.EmbeddingSource`."""
        assert self._chosen is not None
        vectors: Sequence[Any] = await self._client.session.embed(
            self._chosen.function, texts, is_query=False
        )
        return vectors
