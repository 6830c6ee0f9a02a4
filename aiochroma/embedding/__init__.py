"""Turning text into vectors: off the event loop, off the DB thread, in batches, with a cache.

``_protocol`` says what an embedder is, ``_wordllama`` and ``_hashed`` are the two that work offline, ``_functions`` calls
Chroma's embedding functions and plain callables alike, and ``_runner`` gives each database a thread that embeds for it.
"""
