"""An assistant that saves and finds memories, in a Streamlit page.

    pip install 'aiochroma-memory[streamlit,local]'
    streamlit run examples/streamlit_assistant/app.py

The script runs again at every click, in every tab, on another thread each time. The memory is opened once and shared by all.
Another process that has the directory open (a second Streamlit server, for example) makes a message, not a traceback, and the
page recovers by itself when that process has ended.
"""

from __future__ import annotations

import os

import streamlit as st

from aiochroma.streamlit import as_markdown, cached_memory, guarded, store_status

PATH = os.environ.get("CHROMA_DB_PATH", "./memory")

st.set_page_config(page_title="Assistant", page_icon="🧠")
st.title("What do I know about you?")

# Nothing on this page works without the memory. While it cannot be opened the page says why, and tries again every 2 seconds.
memory = guarded(lambda: cached_memory(PATH), again_every=2)
if memory is None:
    st.stop()

with st.sidebar:
    store_status(memory, every=5)
    namespace = st.text_input("Namespace", "personal")

with st.form("save", clear_on_submit=True):
    text = st.text_input("Something to remember")
    # Remembering a text twice is harmless, so a second click, or a retry, does no harm.
    if st.form_submit_button("Save") and (id := guarded(lambda: memory.remember(text, namespace=namespace))):
        st.success(f"Saved as `{id}`")

question = st.text_input("Question")
max_distance = st.slider("Largest distance (0 is the same, 2 the opposite)", 0.0, 2.0, 0.9, 0.05)
if question:
    recall = guarded(lambda: memory.recall(question, namespaces=namespace, k=5, max_distance=max_distance))
    if recall is not None:
        if not recall:
            st.info("Nothing that I know is that close.")
        for hit in recall:
            st.write(f"**{as_markdown(hit.text)}**")
            st.caption(
                f"`{hit.id}` · distance {'none, found by its words' if hit.distance is None else f'{hit.distance:.2f}'}"
            )
        # Here a language model would answer. This is what it would be sent.
        st.subheader("Context for the language model")
        st.code(recall.as_context(max_chars=2000), language=None)

sought = st.text_input("Memory by its id")
if sought:
    hit = guarded(lambda: memory.get(sought, namespace=namespace))
    if hit is None:
        st.info("There is no memory of that id here.")
    else:
        st.json({"text": hit.text, "namespace": hit.namespace, "created": str(hit.created_at)})
