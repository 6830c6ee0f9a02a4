"""Turning text into vectors: off the event loop, off the DB thread, in batches, with a cache.

``protocol`` says what an embedder is; ``wordllama``, ``minilm`` and ``hashed`` are the three that work offline. ``choice`` makes
one form of all kinds of embedders, ``identity`` tells them apart, ``functions`` calls them, and ``runner`` gives each database
threads that embed for it.
"""
