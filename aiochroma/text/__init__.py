"""The index of the memories: their words, metadata and vectors in a file, the search, and how well a text covers a question.

``analysis`` prepares texts and questions, ``index`` keeps them in a file (``file``), ``terms`` looks up what a question asks
for, with ``dates`` and ``kinship``, ``search`` finds what covers it, and ``coverage`` says how well. ``vectors`` gives exact
distances, and ``sections`` cuts what is long.
"""
