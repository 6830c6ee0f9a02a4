"""Write the API reference from the docstrings: ``python tests/reference.py [FOLDER]``, by default ``build/reference``.

Needs the dependency group ``docs``: ``pip install --group docs`` (pip 25.1 or newer).
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

MODULES = (
    "aiochroma",
    "aiochroma.sync",
    "aiochroma.fastapi",
    "aiochroma.streamlit",
    "aiochroma.langchain",
    "aiochroma.langgraph",
    "aiochroma.mcp.server",
    "aiochroma.telemetry",
    "aiochroma.tools",
)
"""What people import; everything else may change."""


def write_reference(folder: Path) -> dict[str, list[str]]:
    """Write one page for each public module whose optional packages are installed.

    Returns:
        The public names of each module that has a page.
    """
    import pdoc
    import pdoc.render

    public: dict[str, list[str]] = {}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        public[name] = [*module.__all__]
        # Names that are looked up late are no attributes until they were used once.
        for exported in public[name]:
            setattr(module, exported, getattr(module, exported))
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*public, output_directory=folder)
    return public


if __name__ == "__main__":
    if find_spec("pdoc") is None:
        sys.exit("The reference is written by pdoc: pip install --group docs (pip 25.1 or newer).")
    target = Path(sys.argv[1] if sys.argv[1:] else "build/reference")
    write_reference(target)
    print(target / "index.html")
