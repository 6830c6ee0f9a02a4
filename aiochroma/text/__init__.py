"""The index of the memories: their words, metadata and vectors in a file, the search, and how well a text covers a question.

``analysis`` prepares texts and questions, ``index`` keeps them in a file, whose tables ``memories``, ``metadata`` and
``namespaces`` hold; ``terms`` and ``dates`` look up what a question asks for, ``coverage`` says how well a text covers it.
``vectors`` gives exact distances, ``codes`` compares tokens, and ``rows`` reads many rows in one step.
"""
