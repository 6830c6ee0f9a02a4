"""A LangGraph agent that remembers its users across conversations.

The graph has a checkpointer of its own for what was said in one thread; what it shall know in every thread is in the store. A
language model would decide what is worth remembering and write the answer; here two lines do, so that the example runs without.

    python examples/langgraph_agent.py --path ./memory --user ada "My cat is called Kestrel."
    python examples/langgraph_agent.py --path ./memory --user ada "What is my cat called?"
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig  # noqa: TC002 - LangGraph reads the annotation
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.base import BaseStore  # noqa: TC002 - LangGraph reads the annotation

from aiochroma.langgraph import AiochromaStore


async def answer(state: MessagesState, config: RunnableConfig, *, store: BaseStore) -> dict[str, Any]:
    """Look up what is known of the user, answer, and note what the user has said."""
    said = str(state["messages"][-1].content)
    namespace = ("memories", config["configurable"]["user"])
    known = await store.asearch(namespace, query=said, limit=3)
    if not said.endswith("?"):
        await store.aput(namespace, uuid.uuid4().hex, {"text": said})
        return {"messages": [AIMessage("I shall remember that.")]}
    facts = " ".join(item.value["text"] for item in known) or "nothing"
    return {"messages": [AIMessage(f"What I know: {facts}")]}


async def main(path: str, user: str, texts: list[str]) -> None:
    async with AiochromaStore(path, index={"fields": ["text"]}) as store:
        graph = (
            StateGraph(MessagesState)
            .add_node("answer", answer)
            .add_edge(START, "answer")
            .compile(checkpointer=InMemorySaver(), store=store)
        )
        for text in texts:
            config: RunnableConfig = {"configurable": {"thread_id": uuid.uuid4().hex, "user": user}}
            state = await graph.ainvoke({"messages": [HumanMessage(text)]}, config)
            print(state["messages"][-1].content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", default="./memory", help="the store's directory")
    parser.add_argument("--user", default="ada", help="whose memories")
    parser.add_argument("text", nargs="+", help="what the user says; each text begins a conversation")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.path, arguments.user, arguments.text))
