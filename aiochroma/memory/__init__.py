"""Remember and recall over namespaces.

``memory`` has the class that people use, ``blocking`` its form without an event loop. A call is a function that checks its
arguments and returns what is to be done on an open store (``opening.Call``): ``remembering``, ``changing``, ``recalling``,
``listing``, ``forgetting``, ``erasing``, ``reembedding`` and ``transfer``. ``store`` opens the database and knows its namespaces,
``vectors`` embeds texts, ``writing`` makes records of them, ``reranking`` asks the caller's judge. ``recall`` and ``results`` are
what comes back, ``formatting`` writes it for a prompt.
"""
