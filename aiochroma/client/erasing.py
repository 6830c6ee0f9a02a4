"""Erasing the traces of what was forgotten, in the database that a client has open."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiochroma._errors import InvalidInputError
from aiochroma.disk.erasing import ErasureReceipt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiochroma.client.session import Session

__all__ = ["erase_traces", "refuse_unerasable"]


def refuse_unerasable(session: Session) -> None:
    """Refuse before anything is forgotten where the files are out of reach.

    Raises:
        InvalidInputError: The database is a server's.
    """
    info = session.describe()
    if info.mode == "http":
        raise InvalidInputError(
            f"{info.name} keeps its files elsewhere: nothing can be erased from them here. `forget` deletes the records; erase "
            "the files with `aiochroma erase` where they are, with the server stopped."
        )


async def erase_traces(
    session: Session,
    *,
    erased: int,
    texts: Sequence[str],
    vectors: Sequence[Any],
    history: Mapping[str, Sequence[str]] | None,
    history_database: str = "",
) -> ErasureReceipt:
    """Remove all that is dead from the files of a database, and look for what must not be there any more.

    Requests wait meanwhile: the database is closed and opened again.

    Args:
        session: A client's session.
        erased: How many memories were forgotten before.
        texts: Their texts.
        vectors: Their vectors.
        history: By namespace their ids, whose entries leave the history; None takes the texts out of all entries.
        history_database: What the history calls their Chroma database; see :func:`aiochroma.records.history.database_key`.

    Raises:
        InvalidInputError: The database is a server's.
        StoreUnavailableError: A file cannot be written, or an index is damaged.
    """
    refuse_unerasable(session)
    if not session.describe().capabilities.files:
        return ErasureReceipt(erased=erased, texts=len(texts), vectors=len(vectors))
    found: dict[str, Any] = await session.submit(
        "erase_traces",
        texts=list(texts),
        vectors=list(vectors),
        history=None if history is None else {name: list(ids) for name, ids in history.items()},
        history_database=history_database,
    )
    found.pop("is_complete")
    return replace(ErasureReceipt(**found), erased=erased)
