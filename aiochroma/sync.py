"""The same engine for callers without an event loop: scripts, threads, Streamlit.

No event loop runs behind these: a call puts its request into the queue of the DB thread and blocks until the outcome is
there. They may be used from any number of threads at once, beside asynchronous clients of the same directory, and refuse to
run on a thread whose event loop would stand still.
"""

from __future__ import annotations

from aiochroma.client.blocking_opening import EphemeralClient, HttpClient, PersistentClient, connect
from aiochroma.memory.blocking import Memory

__all__ = ["EphemeralClient", "HttpClient", "Memory", "PersistentClient", "connect"]
