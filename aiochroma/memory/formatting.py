"""Hits as text for a prompt.

What is stored was written by others, so it must not look like what is written here: every line of a stored value but its first is
indented, so only a heading or an entry begins at the margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from aiochroma._errors import InvalidInputError, is_one_of, shown
from aiochroma.memory.arguments import check_k

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiochroma.memory.results import Hit

__all__ = ["as_context"]

_BYTES_PER_TOKEN = 4
_INDENT = "  "

Key = tuple[str, str]


class _Excerpt(NamedTuple):
    """Hits that are written together, with the neighbours around them: memories that follow each other in a thread.

    Attributes:
        best: The number of its best hit among the hits.
        keys: Namespace and id of its memories, in order.
    """

    best: int
    keys: tuple[Key, ...]


def as_context(
    hits: Sequence[Hit],
    *,
    max_chars: int | None,
    max_tokens: int | None,
    count_tokens: Callable[[str], int] | None,
    template: str,
    heading: str | None,
    order: Literal["score", "newest", "oldest"],
) -> str:
    """Write hits, best first as given; see ``Recall.as_context``."""
    for name, limit in (("max_chars", max_chars), ("max_tokens", max_tokens)):
        if limit is not None:
            check_k(limit, f"`{name}`")
    if not is_one_of(order, "score", "newest", "oldest"):
        raise InvalidInputError(f"`order` must be 'score', 'newest' or 'oldest', got {shown(order)}.")
    page = _Page(hits, template, heading, order)
    limits: list[tuple[Callable[[str], int], int]] = []
    if max_chars is not None:
        limits.append((len, max_chars))
    if max_tokens is not None:
        if count_tokens is None:
            limits.append((_bytes_of, max_tokens * _BYTES_PER_TOKEN))
        else:
            limits.append((count_tokens, max_tokens))
    chosen = page.fitting(limits)
    if count_tokens is not None and max_tokens is not None:
        # Two texts may have more tokens together than they have alone.
        while chosen and count_tokens(page.written(chosen)) > max_tokens:
            chosen.pop()
    return page.written(chosen)


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


class _Page:
    """Hits that are being written.

    Args:
        hits: The hits, best first.
        template: One memory.
        heading: What stands above each namespace, or None for no groups.
        order: ``"score"``, ``"newest"`` or ``"oldest"``.
    """

    def __init__(self, hits: Sequence[Hit], template: str, heading: str | None, order: str) -> None:
        self._hits = hits
        self._heading = heading
        self._order = order
        self._memories: dict[Key, Hit] = {}
        for hit in hits:
            for memory in (*hit.before, *hit.after):
                self._memories.setdefault(_key(memory), memory)
        # A hit knows more of itself than a neighbour does.
        self._memories.update((_key(hit), hit) for hit in hits)
        self._lines = {
            key: _filled("template", template, _values(memory)) for key, memory in self._memories.items()
        }

    def fitting(self, limits: Sequence[tuple[Callable[[str], int], int]]) -> list[_Excerpt]:
        """Return the hits that fit into limits, the best first, with their neighbours where these fit too.

        Args:
            limits: For each limit what measures a text, and the most.
        """
        # Between two entries stands one line break, and before each heading but the first another one.
        left = [most + measure("\n" if self._heading is None else "\n\n") for measure, most in limits]
        chosen: list[_Excerpt] = []
        there: set[object] = set()
        for number, hit in enumerate(self._hits):
            around = tuple(map(_key, (*hit.before, hit, *hit.after)))
            for keys in (around, (_key(hit),)):
                pieces = [f"{self._lines[key]}\n" for key in keys if key not in there]
                if self._heading is not None and hit.namespace not in there:
                    pieces.append(f"{self._title(hit.namespace)}\n\n")
                costs = [sum(map(measure, pieces)) for measure, _ in limits]
                if all(cost <= room for cost, room in zip(costs, left, strict=True)):
                    left = [room - cost for cost, room in zip(costs, left, strict=True)]
                    chosen.append(_Excerpt(number, keys))
                    there.update((*keys, hit.namespace))
                    break
        return chosen

    def _title(self, namespace: str) -> str:
        return _filled("heading", self._heading, {"namespace": _on_one_line(namespace)})

    def written(self, chosen: Sequence[_Excerpt]) -> str:
        """Write some of the hits, with their neighbours, each memory once."""
        excerpts = self._arranged(_joined(chosen))
        if self._heading is None:
            return "\n".join(self._lines[key] for excerpt in excerpts for key in excerpt.keys)
        groups: dict[str, list[str]] = {}
        for excerpt in excerpts:
            group = groups.setdefault(excerpt.keys[0][0], [])
            group.extend(self._lines[key] for key in excerpt.keys)
        return "\n\n".join("\n".join([self._title(namespace), *lines]) for namespace, lines in groups.items())

    def _arranged(self, excerpts: list[_Excerpt]) -> list[_Excerpt]:
        if self._order == "score":
            return sorted(excerpts, key=lambda excerpt: excerpt.best)
        newest = self._order == "newest"
        return sorted(excerpts, key=lambda excerpt: _age_key(self._hits[excerpt.best]), reverse=newest)


def _joined(excerpts: Sequence[_Excerpt]) -> list[_Excerpt]:
    """Join excerpts that share memories: what follows each other in a thread stays in order, and each memory is there once."""
    stretches: dict[int, list[Key]] = {}
    bests: dict[int, int] = {}
    where: dict[Key, int] = {}
    for number, (best, keys) in enumerate(excerpts):
        shared = sorted({where[key] for key in keys if key in where})
        home = shared[0] if shared else number
        bests[home] = min(best, *(bests[other] for other in shared)) if shared else best
        for stretch in (keys, *(stretches.pop(other) for other in shared[1:])):
            _merge(
                stretches.setdefault(home, []), stretch, {key for key in stretch if where.get(key) == home}
            )
            where.update(dict.fromkeys(stretch, home))
    return [_Excerpt(bests[number], tuple(keys)) for number, keys in stretches.items()]


def _merge(merged: list[Key], other: Sequence[Key], shared: set[Key]) -> None:
    """Merge a stretch of a thread into another, which overlaps it or is empty, given the memories that both have."""
    # What stands before the first that both have.
    at = next((merged.index(key) for key in other if key in shared), 0)
    for key in other:
        if key in shared:
            at = (at if at < len(merged) and merged[at] == key else merged.index(key)) + 1
        else:
            merged.insert(at, key)
            at += 1


def _key(hit: Hit) -> Key:
    return hit.namespace, hit.id


def _age_key(hit: Hit) -> float:
    return hit.created_at.timestamp() if hit.created_at is not None else float("-inf")


def _values(hit: Hit) -> dict[str, str]:
    speaker = ""
    if hit.thread is not None:
        speaker = str(hit.metadata.get("name") or hit.metadata.get("role") or "")
    values = {
        "text": hit.text,
        "passage": hit.text if hit.passage is None else hit.passage,
        "namespace": hit.namespace,
        "id": hit.id,
        "date": f"{hit.created_at:%Y-%m-%d}" if hit.created_at is not None else "no date",
        "score": f"{hit.score:.3f}",
        "distance": "unknown" if hit.distance is None else f"{hit.distance:.3f}",
        "metadata": ", ".join(f"{key}={value}" for key, value in hit.metadata.items()),
        "speaker": f"{speaker}: " if speaker else "",
    }
    return {name: _indented(value) for name, value in values.items()}


def _indented(value: str) -> str:
    """Write a stored value so that none of its lines but the first begins at the margin."""
    return f"\n{_INDENT}".join(value.splitlines())


def _on_one_line(value: str) -> str:
    return " ".join(value.splitlines())


def _filled(argument: str, pattern: object, values: dict[str, str]) -> str:
    """Fill an argument that has names in braces."""
    if not isinstance(pattern, str):
        raise InvalidInputError(
            f"`{argument}` must be a string, got {type(pattern).__name__}: {shown(pattern)}."
        )
    try:
        return pattern.format(**values)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"`{argument}` {pattern!r} cannot be filled ({error}); it may use {sorted(values)} in braces."
        ) from error
