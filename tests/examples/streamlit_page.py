"""A page that counts its own runs, for the browser tests. The tests copy it, edit the copy, and let it fail."""

import os

import streamlit as st

from aiochroma.streamlit import cached_memory, guarded

memory = guarded(
    lambda: cached_memory(os.environ["CHROMA_DB_PATH"], process=os.environ.get("CHROMA_PROCESS")),
    again_every=1,
)
if memory is None:
    st.stop()


@st.cache_resource
def counters():
    return {"runs": 0}


counters()["runs"] += 1
guarded(lambda: memory.remember(f"run number {counters()['runs']} of process {os.getpid()}"))
st.button("again")
if st.button("fail"):
    raise LookupError("the script's own")
st.text(f"VERSION ONE: run {counters()['runs']}, memory {id(memory)}, holds {memory.count()}")
