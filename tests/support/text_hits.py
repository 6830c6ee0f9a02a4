"""Searches of the index that answer with ids, as its tests speak of memories."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aiochroma.text.index import TextIndex
from aiochroma.text.rows import RowFilter


class Hit(NamedTuple):
    """A hit with the id of its memory."""

    id: str
    score: float
    own: float


def search(index: TextIndex, namespace, query, limit, *, also=(), ids_allowed=None, **how) -> list[Hit]:
    """Search by ids in place of rows."""
    keep = None
    if ids_allowed is not None:
        allowed = sorted(index.rows(namespace, ids_allowed).values())
        keep = RowFilter(np.array(allowed, np.int64), np.array([], np.int64))
        also = [id for id in also if id in ids_allowed]
    rows = np.array(list(index.rows(namespace, also).values()), np.int64)
    hits = index.search(namespace, query, limit, also=rows, keep=keep, **how)
    ids = index.ids_of(hits.rows.tolist())
    return [
        Hit(ids[row], score, own) for row, score, own in zip(*(one.tolist() for one in hits), strict=True)
    ]
