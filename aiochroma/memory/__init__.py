"""Remember and recall over namespaces.

``_memory`` is the class people use; ``_namespaces`` maps any text to a legal collection name and back, ``_items`` checks
what is remembered, ``_recall`` is what comes back, ``_formatting`` writes it for a prompt, and ``_ranking`` (pure) orders it.
"""
