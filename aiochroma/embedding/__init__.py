"""Turning text into vectors: off the event loop, off the DB thread, in batches, with a cache.

``protocol`` says what an embedder is; ``words`` and ``minilm`` have the three that work offline. ``choice`` gives all kinds of
embedders one form, ``functions`` calls them and tells them apart, and ``runner`` gives each database threads that embed for it.
"""
