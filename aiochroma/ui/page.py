"""The page itself; Streamlit runs this script from its beginning after every click."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st
from chromadb.errors import ChromaError

from aiochroma import sync
from aiochroma._errors import AiochromaError, InvalidInputError
from aiochroma._types import JsonObject, Metadata, MetadataView
from aiochroma.memory.results import moment_in
from aiochroma.records.record import EXPIRES_AT, collection_name, has_expired
from aiochroma.streamlit import as_markdown
from aiochroma.ui import PATH, TOKEN, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from aiochroma.memory.results import Hit

__all__ = ["main"]

# What a view looks at is bounded, so that the page stays quick however much is remembered. (Streamlit shows docstrings.)
_PAGE = 25
_LOOKED_AT = 50
_MAPPED = 1000
_RECENT = 2000
_ASKED = 1000
_WINDOW = 3
_BUSIEST = 10


@st.cache_resource
def _opened(path: str) -> sync.Memory:
    # Without Unix-domain sockets, as on Windows, the page has the directory for itself.
    return sync.Memory(path, process="shared" if hasattr(socket, "AF_UNIX") else "this").open()


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="Memory", layout="wide")
    if not hmac.compare_digest(st.query_params.get("token", "").encode(), os.environ[TOKEN].encode()):
        st.error("This address lacks the token: open the one that `aiochroma ui` has printed.")
        st.stop()
    try:
        memory = _opened(os.environ[PATH])
        views = {
            "Overview": _overview,
            "Browse": _browse,
            "Recall": _recall,
            "Memory": _one,
            "Near-duplicates": _duplicates,
            "Expired": _expired,
            "Map": _map,
        }
        view = str(st.sidebar.radio("View", list(views), key="view"))
        st.sidebar.caption(as_markdown(os.environ[PATH]))
        names = list(memory.namespaces())
        if not names and view != "Overview":
            st.info("Nothing is remembered yet.")
            st.stop()
        views[view](memory, names)
    except (AiochromaError, ChromaError) as error:  # Chroma's where a namespace is deleted meanwhile.
        st.error(as_markdown(str(error)))


def _may_write() -> bool:
    return bool(os.environ.get(WRITE))


def _overview(memory: sync.Memory, names: list[str]) -> None:
    counts = {name: int(memory.count(name)) for name in names}
    stats, health = memory.stats(), memory.health()
    figures = {
        "Memories": sum(counts.values()),
        "Namespaces": len(names),
        "On disk, MB": _megabytes(os.environ[PATH]),
        "In the queue": stats.pending,
        "Wait, p99 ms": round(stats.wait_ms.p99, 1),
        "Health": health.status,
    }
    for column, (label, value) in zip([*st.columns(3), *st.columns(3)], figures.items(), strict=True):
        column.metric(label, value)
    st.dataframe(
        [{"namespace": name, "memories": number} for name, number in counts.items()], hide_index=True
    )
    if counts:
        _growth(memory, counts)
    st.subheader("Health")
    st.json(health.as_dict(), expanded=False)
    if _may_write():
        target = st.text_input("Back up to the folder", key="target")
        if st.button("Back up", disabled=not target):
            report = memory.backup(target)
            st.success(f"Backed up to {as_markdown(report.path)}")


def _megabytes(path: str) -> float:
    """Return how large the files of a directory are together."""
    size = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):  # It was deleted meanwhile.
                size += Path(folder, name).stat().st_size
    return round(size / 2**20, 1)


def _growth(memory: sync.Memory, counts: Mapping[str, int]) -> None:
    """Show how many memories were first remembered on which day."""
    busiest = sorted(counts, key=lambda name: counts[name], reverse=True)[:_BUSIEST]
    each = _RECENT // len(busiest)
    days = Counter(
        (f"{hit.created_at:%Y-%m-%d}", name)
        for name in busiest
        for hit in memory.list(name, newest_first=True, limit=each)
        if hit.created_at is not None
    )
    st.subheader("Remembered per day")
    st.bar_chart(
        [{"day": day, "namespace": name, "memories": count} for (day, name), count in sorted(days.items())],
        x="day",
        y="memories",
        color="namespace",
    )
    st.caption(f"Of the newest {each} memories of each namespace.")


def _expired(memory: sync.Memory, names: list[str]) -> None:
    """Show what has expired and is not deleted yet: recalls and lists leave it out."""
    namespace = str(st.selectbox("Namespace", names))
    collection = memory.client.get_collection(collection_name(namespace), embedding_function=None)
    passed: Any = {EXPIRES_AT: {"$lte": time.time()}}
    found = collection.get(where=passed, limit=_PAGE, include=["documents", "metadatas"])
    rows = []
    for id, text, metadata in zip(
        found["ids"], found["documents"] or (), found["metadatas"] or (), strict=True
    ):
        if has_expired(metadata, time.time()):
            rows.append({"text": text, "expired": _minute(moment_in(metadata, EXPIRES_AT)), "id": id})
    st.dataframe(rows, hide_index=True)
    more = ", and perhaps more" if len(found["ids"]) == _PAGE else ""
    st.caption(f"{len(rows)} expired memories{more}; they are in no answer, and the next sweep deletes them.")
    if _may_write() and rows and _is_confirmed("Sweep", "Yes, sweep them", namespace):
        st.success(f"{int(memory.sweep())} memories were deleted.")


def _browse(memory: sync.Memory, names: list[str]) -> None:
    namespace = str(st.selectbox("Namespace", names))
    left, right = st.columns(2)
    scope = left.text_input("Scope, such as customer/person")
    where = right.text_input("Filter over metadata, as JSON")
    asked = (namespace, scope, where)
    if st.session_state.get("asked") != asked:
        st.session_state.asked, st.session_state.cursors = asked, [None]
    cursors = st.session_state.cursors
    page = memory.list(
        namespace,
        scope=_scope(scope),
        where=_filter(where),
        newest_first=True,
        limit=_PAGE,
        after=cursors[-1],
    )
    st.dataframe(_rows(page), hide_index=True)
    back, forth, number = st.columns(3)
    if back.button("Newer", disabled=len(cursors) == 1):
        cursors.pop()
        st.rerun()
    if forth.button("Older", disabled=page.next is None):
        cursors.append(page.next)
        st.rerun()
    number.caption(f"Page {len(cursors)}")


def _recall(memory: sync.Memory, names: list[str]) -> None:
    question = st.text_input("Question")
    left, middle, right = st.columns(3)
    chosen = left.multiselect("Namespaces", names, placeholder="all")
    k = middle.number_input("k", 1, 50, 5)
    mode: Any = right.selectbox("Mode", ["hybrid", "vector", "text"])
    least = _limit(left.text_input("Lowest score", "auto", placeholder="no limit"))
    most = _limit(middle.text_input("Largest distance", placeholder="a number, or auto"))
    scope = right.text_input("Scope", placeholder="customer/person")
    if not question:
        return
    found = memory.recall(
        question,
        namespaces=chosen or None,
        scope=_scope(scope),
        k=int(k),
        mode=mode,
        min_score=least,
        max_distance=most,
    )
    for name, error in found.errors.items():
        st.warning(as_markdown(f"{name}: {error}"))
    rows = [_scored(hit) for hit in found]
    if rows:
        st.dataframe(rows, hide_index=True)
    st.caption(as_markdown(", ".join(f"{name} {value:.1f} ms" for name, value in found.timings.items())))
    st.code(found.as_context() or "Nothing was found.", language=None)


def _one(memory: sync.Memory, names: list[str]) -> None:
    namespace = str(st.selectbox("Namespace", names))
    id = st.text_input("Id")
    if not id:
        return
    hit = memory.get(id, namespace=namespace)
    if hit is None:
        st.info("There is no such memory.")
        return
    # As it is: stored text is no Markdown, whose images a browser would fetch.
    st.text(hit.text)
    st.json({**_row(hit), "metadata": hit.metadata, "thread": hit.thread}, expanded=True)
    around = _around(memory, hit)
    if len(around) > 1:
        st.subheader("Before and after it")
        st.dataframe(_rows(around), hide_index=True)
    st.subheader("Nearest")
    near = memory.similar(id, namespace=namespace, k=5)
    st.dataframe([{"distance": one.distance, **_row(one)} for one in near], hide_index=True)
    changes = memory.history(id, namespace=namespace)
    if changes:
        st.subheader("History")
        rows = [
            {"at": f"{each.at:%Y-%m-%d %H:%M:%S}", "action": each.action, "text before": each.text}
            for each in changes
        ]
        st.dataframe(rows, hide_index=True)
    if _may_write() and _is_confirmed("Forget", "Yes, forget it", (namespace, id)):
        memory.forget(hit.id, namespace=hit.namespace)
        st.rerun()


def _around(memory: sync.Memory, hit: Hit) -> list[Hit]:
    """Return a memory with those before and after it: what a recall of its own text has in its window."""
    question = hit.text[:_ASKED]
    for found in memory.recall(
        question,
        namespaces=hit.namespace,
        scope=hit.scope or None,
        thread=hit.thread,
        k=_LOOKED_AT,
        window=_WINDOW,
    ):
        if found.id == hit.id:
            return [*found.before, hit, *found.after]
    return []


def _is_confirmed(ask: str, confirm: str, what: object) -> bool:
    """Offer to delete something; tell whether this was clicked, and then that it is meant."""
    asked = (ask, what)
    if st.button(ask):
        st.session_state.asked_to_delete = asked
    if st.session_state.get("asked_to_delete") != asked:
        return False
    st.warning("It will be gone for good.")
    if not st.button(confirm):
        return False
    st.session_state.asked_to_delete = None
    return True


def _duplicates(memory: sync.Memory, names: list[str]) -> None:
    namespace = str(st.selectbox("Namespace", names))
    most = st.slider("Largest distance", 0.0, 0.5, 0.1)
    st.caption(f"Among the {_LOOKED_AT} newest memories.")
    pairs: dict[tuple[str, ...], tuple[float, str, str]] = {}
    for hit in memory.list(namespace, newest_first=True, limit=_LOOKED_AT):
        near: Iterable[Hit] = ()
        with contextlib.suppress(InvalidInputError):  # An id that another program gave may be none for us.
            near = memory.similar(hit.id, namespace=namespace, k=3)
        for other in near:
            if other.distance is not None and other.distance <= most:
                ids = tuple(sorted((hit.id, other.id)))
                pairs[ids] = (other.distance, hit.text, other.text)
    rows = [dict(zip(("distance", "one", "other"), pair, strict=True)) for pair in sorted(pairs.values())]
    st.dataframe(rows, hide_index=True)
    st.caption(f"{len(rows)} pairs")


def _map(memory: sync.Memory, names: list[str]) -> None:
    import numpy as np

    namespace = str(st.selectbox("Namespace", names))
    hits = {hit.id: hit for hit in memory.list(namespace, newest_first=True, limit=_MAPPED)}
    collection = memory.client.get_collection(collection_name(namespace), embedding_function=None)
    found: Any = (
        collection.get(ids=list(hits), include=["embeddings"]) if hits else {"ids": [], "embeddings": []}
    )
    # Where the distance is the cosine, Chroma keeps no number of a vector whose length is too large for one.
    kept = {
        id: vector
        for id, vector in zip(found["ids"], found["embeddings"], strict=True)
        if np.isfinite(vector).all()
    }
    vectors = np.asarray(list(kept.values()), dtype=np.float32)
    if len(kept) < 3 or vectors.shape[1] < 2:
        st.info("There are too few memories for a map.")
        return
    centred = vectors - vectors.mean(axis=0)
    # The two directions in which they differ most; a fifth of the time that a singular value decomposition takes.
    positions = centred @ np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    points = [
        {"x": float(x), "y": float(y), "text": hits[id].text[:80]}
        for id, (x, y) in zip(kept, positions, strict=True)
    ]
    st.vega_lite_chart(
        {"values": points},
        {
            "mark": {"type": "circle", "tooltip": {"content": "data"}},
            "encoding": {
                "x": {"field": "x", "type": "quantitative"},
                "y": {"field": "y", "type": "quantitative"},
                "tooltip": {"field": "text"},
            },
        },
    )
    st.caption(f"{len(points)} memories; those of like meaning lie together.")


def _scope(text: str) -> tuple[str, ...] | None:
    return tuple(text.split("/")) if text else None


def _limit(text: str) -> Any:
    """Return a threshold as `recall` takes it; what is no number is refused there."""
    try:
        return float(text)
    except ValueError:
        return text.strip() or None


def _filter(text: str) -> JsonObject | None:
    if not text.strip():
        return None
    try:
        given: Metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"The filter is no JSON ({error}): {text!r}.") from error
    return given


def _scored(hit: Hit) -> JsonObject:
    """Return a hit as a row: its score and what that is made of stand before what is known of the memory."""
    parts = {f"{part} part": round(value, 3) for part, value in hit.explain.items()}
    return {"score": round(hit.score, 3), **parts, "distance": hit.distance, **_row(hit)}


def _rows(hits: Iterable[Hit]) -> list[JsonObject]:
    return [_row(hit) for hit in hits]


def _minute(moment: datetime | None) -> str | None:
    """Return a time as the page shows it; another program may have written one that is no date."""
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _row(hit: Hit) -> JsonObject:
    metadata: MetadataView = hit.metadata
    return {
        "text": hit.text,
        "namespace": hit.namespace,
        "scope": "/".join(hit.scope),
        "created": _minute(hit.created_at),
        "metadata": json.dumps(metadata, ensure_ascii=False) if metadata else "",
        "id": hit.id,
    }


if __name__ == "__main__":
    main()
