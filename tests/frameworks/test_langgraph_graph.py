"""LangGraph: compiled graphs with the store, and LangMem's tools on it (see `environments.py`)."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import pytest
from programs import printed_by

pytest.importorskip("langgraph.graph", reason="langgraph is not installed (see environments.py)")
with warnings.catch_warnings():
    # It imports a name of LangGraph's from where it no longer is.
    warnings.simplefilter("ignore")
    langmem = pytest.importorskip("langmem", reason="langmem is not installed (see environments.py)")

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from aiochroma.langgraph import AiochromaStore

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "langgraph_agent.py"


def test_the_example(tmp_path):
    """What a user has said in one conversation is known in another, in another process, and to nobody else."""

    def say(user, *texts):
        return printed_by(_EXAMPLE, "--path", tmp_path, "--user", user, *texts)

    assert "remember that" in say("ada", "My cat is called Kestrel.", "My bicycle is green.")
    assert "My cat is called Kestrel." in say("ada", "What is my cat called?")
    assert say("bob", "What is my cat called?").strip() == "What I know: nothing"


def calling(tool, **arguments):
    """What a language model says when it wants a tool to be called."""
    return AIMessage("", tool_calls=[{"name": tool, "args": arguments, "id": "call", "type": "tool_call"}])


@pytest.mark.parametrize("on_loop", [True, False])
async def test_langmems_tools(tmp_path, on_loop):
    """A model that calls LangMem's tools remembers, changes, finds and deletes in the namespace of its user."""
    async with AiochromaStore(tmp_path, index={}) as store:
        namespace = ("memories", "{user}")
        tools = [
            langmem.create_manage_memory_tool(namespace=namespace),
            langmem.create_search_memory_tool(namespace=namespace),
        ]
        graph = StateGraph(MessagesState).add_node("tools", ToolNode(tools)).add_edge(START, "tools")
        compiled = graph.compile(store=store)

        async def say(message):
            state = {"messages": [HumanMessage("..."), message]}
            config = {"configurable": {"user": "ada"}}
            if on_loop:
                result = await compiled.ainvoke(state, config)
            else:
                result = await asyncio.to_thread(compiled.invoke, state, config)
            return result["messages"][-1].content

        assert "created memory" in await say(
            calling("manage_memory", content="Her cat is called Kestrel.", action="create")
        )
        (item,) = await store.asearch(("memories", "ada"))
        assert item.value == {"content": "Her cat is called Kestrel."}
        assert "Kestrel" in await say(calling("search_memory", query="the name of her cat"))
        await say(calling("manage_memory", id=item.key, content="Her cat is called Merlin.", action="update"))
        found = await say(calling("search_memory", query="the name of her cat"))
        assert "Merlin" in found
        assert "Kestrel" not in found
        await say(calling("manage_memory", id=item.key, action="delete"))
        assert await store.asearch(("memories",)) == []
