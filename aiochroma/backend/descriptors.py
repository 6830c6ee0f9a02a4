"""What of the process's own resources Chroma depends on: open files while it is open, memory after it has closed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["collections_within_limit", "give_memory_back", "raise_descriptor_limit"]

_ENOUGH_DESCRIPTORS = 65_536
_DESCRIPTORS_PER_COLLECTION = 16
"""An index takes four or five; Chroma begins to unload indexes long before the limit, and one that was never written to its files
cannot be loaded again."""


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may, because Chroma's cache of indexes is a share of that number.

    With the usual soft limit of 1,024 a database with some sixty collections is opened again and again.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wish = _ENOUGH_DESCRIPTORS if hard == unlimited else min(hard, _ENOUGH_DESCRIPTORS)
    if soft != unlimited and soft < wish:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wish, hard))
        except (OSError, ValueError):
            return  # The system allows less than it says; `collections_within_limit` goes by what holds.


def collections_within_limit() -> int | None:
    """Return how many collections Chroma keeps loaded safely under the present limit of open files; None where there is none."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft // _DESCRIPTORS_PER_COLLECTION


def give_memory_back() -> None:
    """Have the C library return what Chroma's threads have freed; only glibc keeps it, for every thread that ever was."""
    if not sys.platform.startswith("linux"):
        return
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # Another C library, which keeps nothing.
    trim(0)
