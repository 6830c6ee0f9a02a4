"""The page over what other programs have written: every view shows it, or says what it cannot show."""

from __future__ import annotations

import importlib.util

import pytest
from programs import python

from aiochroma import sync

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("streamlit") is None,
    reason="streamlit is not installed (dependency group `frameworks`)",
)

PROGRAM = """
import os, sys
from pathlib import Path
from streamlit.testing.v1 import AppTest
from aiochroma import ui

os.environ.update({ui.PATH: sys.argv[1], ui.TOKEN: "token", ui.WRITE: "1"})

page = AppTest.from_file(str(Path(ui.__file__).with_name("page.py")), default_timeout=300)
page.query_params["token"] = "token"
page.run()

for view in ("Overview", "Browse", "Expired", "Map", "Near-duplicates", "Memory"):
    page.sidebar.radio[0].set_value(view).run()
    for namespace in ("odd", "flat", "empty") if page.main.selectbox else ("all",):
        if page.main.selectbox:
            page.main.selectbox[0].set_value(namespace).run()
        if (view, namespace) == ("Memory", "odd"):
            page.main.text_input[0].set_value("odd 1").run()
            print("shown", [text.value for text in page.main.text])
        if (view, namespace) == ("Expired", "odd"):
            print("shown", sorted(page.main.dataframe[0].value["id"]))
        print("view", view, namespace, [each.message for each in page.exception], [each.value for each in page.error])
"""
TIMES = [-1e300, 1e300, -(10**18), "tomorrow", [1, 2]]


@pytest.mark.timeout(600)
def test_every_view_shows_what_others_wrote(tmp_path):
    """Times that are no dates, vectors of one dimension or without a number, ids that are none for us, no record at all."""
    with sync.Memory(tmp_path / "memory", embedder="hashed") as memory:
        memory.remember("The boat is in the shed.", namespace="odd")
        told = memory.client.get_collection("odd", embedding_function=None).metadata
        memory.client.create_collection(
            "flat", metadata={"aiochroma:embedder": told["aiochroma:embedder"]}, embedding_function=None
        ).add(ids=["a", "b", "c"], embeddings=[[1.0], [2.0], [3.0]], documents=["one", "two", "three"])
        memory.client.create_collection("empty", metadata=told, embedding_function=None)
    written = python("-c", PLAIN, tmp_path / "memory")
    assert written.returncode == 0, written.stderr
    with sync.Memory(tmp_path / "memory", embedder="hashed"):
        pass
    shown = python("-c", PROGRAM, tmp_path / "memory", AIOCHROMA_RUNTIME_DIR=str(tmp_path))
    lines = shown.stdout.splitlines()
    assert [line for line in lines if line.startswith("shown ")] == [
        "shown ['odd 0', 'odd 2']",
        "shown ['The boat of record 1.']",
    ], shown.stderr
    views = [line for line in lines if line.startswith("view ")]
    assert len(views) == 16
    assert [line for line in views if not line.endswith(" [] []") and " holds vectors of " not in line] == []


PLAIN = f"""
import sys, chromadb
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("odd", embedding_function=None)
vector = collection.get(limit=1, include=["embeddings"])["embeddings"][0]
for number, time in enumerate({TIMES!r}):
    collection.add(ids=[f"odd {{number}}"], embeddings=[vector], documents=[f"The boat of record {{number}}."],
                   metadatas=[{{"aiochroma:expires_at": time, "aiochroma:created_at": time}}])
collection.add(ids=["no text"], embeddings=[vector])
collection.add(ids=["of\\0others"], embeddings=[vector], documents=["An id that is none for us."])
collection.add(ids=["too long a vector"], embeddings=[[1e30] * len(vector)], documents=["A long vector."])
"""
