"""``aiochroma demo``: three acts of a few seconds each, everything measured in that run.

``silence``: a bot answers while thousands of records are written. ``crash``: a process is killed in the middle of writing, and
another one joins. ``acts`` runs and prints these two and a third: names, codes and numbers. ``table`` is the long comparison.
"""
