"""A pydantic-ai agent with a memory: its tools are plain functions, so nothing stands between the two.

    python examples/pydantic_ai_agent.py --path ./memory "Remember that my cat is called Kestrel."
    python examples/pydantic_ai_agent.py --path ./memory "What is my cat called?"

Put the name of a language model (`--model anthropic:...`) to talk to one. Without, a function plays the model: it remembers what
it is told to, looks up the rest, and needs no network.
"""

from __future__ import annotations

import argparse
import asyncio

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

import aiochroma
from aiochroma.tools import memory_tools

ORDER = "remember that "
INSTRUCTIONS = "Look into your memory before you answer, and remember what the user wants you to."


def play_model(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    """Call a tool for what the user has said; with the tool's result, answer."""
    last = messages[-1].parts[-1]
    if isinstance(last, ToolReturnPart):
        if last.tool_name == "remember":
            return ModelResponse([TextPart("I shall remember that.")])
        known = [memory["text"] for memory in last.content] or ["nothing"]
        return ModelResponse([TextPart(f"I know: {' '.join(known)}")])
    said = str(last.content)
    if said.lower().startswith(ORDER):
        return ModelResponse([ToolCallPart("remember", {"text": said[len(ORDER) :]})])
    return ModelResponse([ToolCallPart("recall", {"query": said, "limit": 1})])


async def main(path: str, user: str, model: str | None, text: str) -> None:
    async with aiochroma.Memory(path) as memory:
        agent = Agent(
            model or FunctionModel(play_model),
            instructions=INSTRUCTIONS,
            tools=memory_tools(memory, scope=("assistant", user)),
        )
        print((await agent.run(text)).output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", default="./memory", help="the memory's directory")
    parser.add_argument("--user", default="ada", help="whose memories")
    parser.add_argument("--model", help="a language model, as pydantic-ai names it")
    parser.add_argument("text", help="what the user says")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.path, arguments.user, arguments.model, arguments.text))
