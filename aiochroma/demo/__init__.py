"""``aiochroma demo``: three acts of a few seconds each, everything measured in that run.

``silence``: a bot answers while thousands of records are written. ``words``: names, codes and numbers. ``crash``: a process is
killed in the middle of writing, and another one joins. ``acts`` runs and prints them; ``table`` is the long comparison.
"""
