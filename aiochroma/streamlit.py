"""Streamlit: a memory that all reruns and sessions share, its status, and messages instead of tracebacks.

Needs the extra ``streamlit``. A script runs from top to bottom at every click, each time on another thread; the memory stays.

Example:
    >>> import streamlit as st
    >>> from aiochroma.streamlit import as_markdown, cached_memory, guarded, store_status
    >>> memory = guarded(lambda: cached_memory("./memory"), again_every=3)  # doctest: +SKIP
    >>> if memory is None:  # doctest: +SKIP
    ...     st.stop()
    >>> store_status(memory)  # doctest: +SKIP
    >>> for hit in guarded(lambda: memory.recall(st.text_input("Question") or "everything")) or ():  # doctest: +SKIP
    ...     st.write(as_markdown(hit.text))
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import tenacity

from aiochroma._clock import monotonic
from aiochroma._distribution import missing_extra
from aiochroma._errors import (
    AccessDeniedError,
    AiochromaError,
    ClosedError,
    DatabaseCorruptError,
    DatabaseFormatError,
    DatabasePathError,
    DeadlineExceededError,
    InvalidInputError,
    QueueFullError,
    SettingsConflictError,
    StoreUnavailableError,
    shown,
)
from aiochroma._files import canonical_path
from aiochroma._logging import EventLogger, get_logger
from aiochroma._waiting import checked_seconds
from aiochroma.backend.limits import check_storable_text
from aiochroma.client.options import PersistentOptions, check_function
from aiochroma.embedding.choice import adapted, is_langchain
from aiochroma.embedding.functions import identity_of
from aiochroma.memory.arguments import check_k
from aiochroma.sync import Memory

try:
    import streamlit as st
except ImportError as _error:
    raise missing_extra("aiochroma.streamlit", "streamlit", _error.name) from _error

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from aiochroma.client.options import Process

__all__ = ["as_markdown", "cached_memory", "guarded", "store_status"]

log: EventLogger = get_logger("aiochroma.streamlit")

T = TypeVar("T")

_PAUSES = tenacity.wait_exponential(multiplier=0.2, max=2) + tenacity.wait_random(0, 0.1)
_LASTING = (
    AccessDeniedError,
    DatabaseCorruptError,
    DatabaseFormatError,
    DatabasePathError,
    SettingsConflictError,
)
"""Kinds of an unavailable store that no waiting mends."""


def cached_memory(
    path: str | os.PathLike[str] = "./memory",
    *,
    embedder: object = None,
    timeout: float | None = None,
    durable: bool = True,
    process: Process | None = None,
    host_idle: float = 60.0,
) -> Memory:
    """Return the memory of a directory, opened once for all reruns, sessions and users of this Streamlit server.

    However the path is spelled, it is the same memory. It stays open when a script fails, is edited, or has ended; one that a
    script has closed is opened again. Streamlit's "Clear cache" lets go of it: those who are using it may finish, then it closes.

    Args:
        path: The directory.
        embedder: As for :class:`aiochroma.Memory`; two that are called the same in the database are the same.
        timeout: Limit for each call, in seconds; None for none.
        durable: Whether a broken index can be rebuilt completely at any moment, as for :class:`aiochroma.Memory`.
        process: ``"shared"`` to share the directory with other programs, as for :class:`aiochroma.Memory`.
        host_idle: How many seconds a host that this page starts stays without clients.

    Raises:
        StoreUnavailableError: It cannot be opened; the next run of the script tries again.
        InvalidInputError: An argument is wrong.
    """
    # Before Streamlit makes a key of them.
    PersistentOptions(timeout=timeout, durable=durable, process=process, host_idle=host_idle)
    if isinstance(embedder, str):
        check_storable_text(embedder, "`embedder`")
    key = (canonical_path(path), _name_of(embedder), timeout, durable, process, host_idle)
    try:
        return _opened(*key, _embedder=embedder).open()
    except ClosedError:
        _opened.clear(*key, _embedder=embedder)
        return _opened(*key, _embedder=embedder)


@st.cache_resource(show_spinner="Opening the memory …")
def _opened(
    path: str,
    embedder_name: str | None,  # noqa: ARG001 - a part of the key
    timeout: float | None,
    durable: bool,
    process: Process | None,
    host_idle: float,
    _embedder: object,
) -> Memory:
    # What this raises is not cached. Streamlit leaves arguments with an underscore out of the key.
    return Memory(
        path,
        embedder=_embedder,
        timeout=timeout,
        durable=durable,
        process=process,
        host_idle=host_idle,
    ).open()


def _name_of(embedder: object) -> str | None:
    if embedder is None or isinstance(embedder, str):
        return embedder
    # As it is called in the database. Chroma's own functions are not made ours for that, which would load a model.
    return (
        identity_of(embedder)[0]
        if callable(embedder) and not is_langchain(embedder)
        else adapted(embedder).identity
    )


_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_STREAMLITS_OWN = re.compile(
    r"(?<!\S)(?:<->|->|<-|--|>=|<=|~=)(?!\S)|:(?:streamlit|material_\w+):|https?://|www\.", re.IGNORECASE
)
"""What Streamlit looks for in a text that was Markdown, where no backslash is left: arrows and the like, icons, addresses."""

_JOINER = "\N{WORD JOINER}"
"""A character of no width."""


def as_markdown(text: str) -> str:
    """Return a text as Markdown that shows it as it is, line by line.

    ``st.write``, ``st.error`` and others take Markdown. What is remembered was written by others: it could look like a part of
    the page, and an image in it would be fetched from wherever it says. So nothing of it is a list, a heading, a formula, an icon
    or a link, but for e-mail addresses. Before addresses of the web, and within arrows and icons, stands a character of no width.

    Raises:
        InvalidInputError: It is no text.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"`text` must be a string, got {shown(text)}.")
    lines = [_line_as_markdown(line) for line in re.split(r"\r\n|\r|\n", text)]
    # A backslash at the end of a line ends it there; an empty line ends a paragraph.
    breaks = ["\\\n" if line and after else "\n" for line, after in pairwise(lines)]
    return "".join(line + end for line, end in zip(lines, [*breaks, ""], strict=True))


def _line_as_markdown(line: str) -> str:
    words = line.strip()
    indent = "&nbsp;" * len(line[: len(line) - len(line.lstrip())].expandtabs(4)) if words else ""
    return indent + _PUNCTUATION.sub(r"\\\1", _STREAMLITS_OWN.sub(_joined, words))


def _joined(found: re.Match[str]) -> str:
    is_address = found[0][-1] in "/."
    return _JOINER + found[0] if is_address else found[0][0] + _JOINER + found[0][1:]


def guarded(
    work: Callable[[], T], *, otherwise: T | None = None, attempts: int = 5, again_every: float | None = None
) -> T | None:
    """Do something with a memory; on failure show a message where the script is, and no traceback.

    What may pass (the store is in use, the queue is full) is tried again with growing pauses, about 3 seconds in all by default.
    What is wrong with the input is shown as a warning. Errors that are not aiochroma's pass.

    Args:
        work: What to do. It may be repeated only if it has not happened.
        otherwise: What to return when it failed.
        attempts: How often to try, at least 1.
        again_every: Let the page run again after this many seconds when the store is unavailable, until it is not. For the
            opening of the memory: a page that waits like this recovers by itself.
    """
    check_function("work", work)
    check_k(attempts, "`attempts`")
    again_every = checked_seconds("again_every", again_every)
    tries = tenacity.Retrying(
        wait=_PAUSES,
        stop=tenacity.stop_after_attempt(attempts),
        retry=tenacity.retry_if_exception(_may_pass),
        reraise=True,
    )
    try:
        return tries(work)
    except InvalidInputError as error:
        st.warning(as_markdown(str(error)))
    except AiochromaError as error:
        log.warning("page.failed", error=error)
        st.error(_message(error))
        if again_every is not None and isinstance(error, StoreUnavailableError):
            _run_again_in(again_every)
    return otherwise


def store_status(memory: Memory, *, every: float | None = None) -> None:
    """Show how the store is: available or why not, how much it holds, how fast it answers.

    Args:
        memory: Whose store.
        every: Look again after this many seconds, without running the rest of the script; None: whenever the script runs.
    """

    @st.fragment(run_every=every)
    def status() -> None:
        try:
            state = memory.open().client.health()
        except AiochromaError as error:
            st.error(_message(error))
            return
        if state.status == "ok":
            st.success(f"Memory available: {state.documents} memories")
            st.caption(
                f"{state.mode} · {state.latency_ms:.1f} ms · {state.pending} waiting · {as_markdown(str(state.embedder))} · "
                f"Chroma {state.chroma_version}"
            )
        else:
            st.error(f"**The memory is not available.** {as_markdown(str(state.error))}")

    status()


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, StoreUnavailableError):
        return not isinstance(error, _LASTING)
    return isinstance(error, QueueFullError) or (
        isinstance(error, DeadlineExceededError) and not error.started
    )


def _message(error: AiochromaError) -> str:
    headline = (
        "**The memory is not available.** " if isinstance(error, (StoreUnavailableError, ClosedError)) else ""
    )
    return f"{headline}{as_markdown(str(error))}"


def _run_again_in(seconds: float) -> None:
    # A fragment runs with the script, and then by itself at its interval. Only the latter is to run the page again.
    due = monotonic() + 0.9 * seconds

    @st.fragment(run_every=seconds)
    def again() -> None:
        if monotonic() >= due:
            st.rerun()

    again()
