"""Hits as text for a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from aiochroma._errors import InvalidInputError
from aiochroma.memory.items import check_k

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiochroma.memory.recall import Hit

__all__ = ["as_context", "estimated_tokens"]

_BYTES_PER_TOKEN = 4


def estimated_tokens(text: str) -> int:
    """Estimate tokens as a quarter of the UTF-8 bytes, rounded up: a rule of thumb for English and a bound for others."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


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
    if order not in {"score", "newest", "oldest"}:
        raise InvalidInputError(f"`order` must be 'score', 'newest' or 'oldest', got {order!r}.")
    tokens = count_tokens or estimated_tokens
    lines = [_filled("template", template, _values(hit)) for hit in hits]
    chosen: list[int] = []
    for position in range(len(hits)):
        text = _arranged(hits, lines, [*chosen, position], heading, order)
        too_long = max_chars is not None and len(text) > max_chars
        if too_long or (max_tokens is not None and tokens(text) > max_tokens):
            continue  # A shorter one further down may still fit.
        chosen.append(position)
    return _arranged(hits, lines, chosen, heading, order)


def _arranged(
    hits: Sequence[Hit], lines: Sequence[str], chosen: Sequence[int], heading: str | None, order: str
) -> str:
    if order != "score":
        newest = order == "newest"
        chosen = sorted(chosen, key=lambda position: _age_key(hits[position]), reverse=newest)
    if heading is None:
        return "\n".join(lines[position] for position in chosen)
    groups: dict[str, list[str]] = {}
    for position in chosen:
        groups.setdefault(hits[position].namespace, []).append(lines[position])
    return "\n\n".join(
        "\n".join([_filled("heading", heading, {"namespace": namespace}), *group])
        for namespace, group in groups.items()
    )


def _age_key(hit: Hit) -> float:
    return hit.created_at.timestamp() if hit.created_at is not None else float("-inf")


def _values(hit: Hit) -> dict[str, str]:
    return {
        "text": hit.text,
        "passage": hit.text if hit.passage is None else hit.passage,
        "namespace": hit.namespace,
        "id": hit.id,
        "date": f"{hit.created_at:%Y-%m-%d}" if hit.created_at is not None else "no date",
        "score": f"{hit.score:.3f}",
        "distance": "unknown" if hit.distance is None else f"{hit.distance:.3f}",
        "metadata": ", ".join(f"{key}={value}" for key, value in hit.metadata.items()),
    }


def _filled(argument: str, pattern: Any, values: dict[str, str]) -> str:
    """Fill an argument that has names in braces."""
    if not isinstance(pattern, str):
        raise InvalidInputError(f"`{argument}` must be a string, got {type(pattern).__name__}: {pattern!r}.")
    try:
        return pattern.format(**values)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"`{argument}` {pattern!r} cannot be filled ({error}); it may use {sorted(values)} in braces."
        ) from error
