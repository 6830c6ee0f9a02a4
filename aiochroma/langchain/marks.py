"""Which embedder made a collection's vectors: written down where the collection is made, compared where it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiochroma._errors import EmbedderMismatchError
from aiochroma._threads import waits_by_blocking
from aiochroma._types import Metadata
from aiochroma.embedding.functions import PROBE, fingerprint_of, is_alike, is_same_name

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings


__all__ = ["EmbedderMark"]


class EmbedderMark:
    """The name of LangChain's embeddings, and what they make of one fixed text.

    Args:
        embeddings: The embedder.
        identity: Its name.
        identity_key: Under which key of a collection's metadata the name stands.
        fingerprint_key: Under which key stands what it makes of the text.
    """

    def __init__(
        self, embeddings: Embeddings, identity: str, *, identity_key: str, fingerprint_key: str
    ) -> None:
        self._embeddings = embeddings
        self._identity = identity
        self._identity_key = identity_key
        self._fingerprint_key = fingerprint_key
        self._fingerprint: str | None = None

    async def metadata(self) -> Metadata:
        """Return what to write down."""
        return {self._identity_key: self._identity, self._fingerprint_key: await self._made_fingerprint()}

    async def check(self, collection: Any) -> None:
        """Refuse a collection of another embedder; one that says nothing of its embedder is taken.

        Raises:
            EmbedderMismatchError: Another embedder made its vectors.
        """
        metadata = collection.metadata or {}
        stored, fingerprint = metadata.get(self._identity_key), metadata.get(self._fingerprint_key)
        if stored is None:
            return
        if isinstance(fingerprint, str):
            same = is_alike(fingerprint, await self._made_fingerprint())
        else:
            same = is_same_name(str(stored), self._identity)
        if not same:
            raise EmbedderMismatchError(
                f"The collection {collection.name!r} holds vectors of {stored!r} and this store embeds with {self._identity!r}. "
                "Vectors of different embedders cannot be compared: open the store with the first one, or use another "
                "`collection_name`."
            )

    async def _made_fingerprint(self) -> str:
        if self._fingerprint is None:
            embeddings = self._embeddings
            rows = (
                embeddings.embed_documents([PROBE])
                if waits_by_blocking()
                else await embeddings.aembed_documents([PROBE])
            )
            self._fingerprint = fingerprint_of(rows[0])
        return self._fingerprint
