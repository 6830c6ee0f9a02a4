"""Remember and recall over namespaces.

``memory`` has the class that people use, on top of ``opening``, the life of a memory. A call is a function that checks its
arguments and returns a coroutine that works on an open store: ``remembering``, ``stored`` (look-ups, lists, changes),
``recalling``, ``forgetting``, ``reembedding``, ``compacting`` and ``transfer``. ``store`` opens the database and knows its
namespaces, ``vectors`` embeds texts, ``copies`` lets the copy of a namespace take its place. ``results`` is what comes back, and
``formatting`` writes it for a prompt.
"""
