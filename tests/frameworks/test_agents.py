"""Agent frameworks, each in an environment of its own (see `environments.py`): the examples, and how tools are described."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import printed_by

import aiochroma
from aiochroma.tools import memory_tools

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def said(example, path, *arguments):
    return printed_by(_EXAMPLES / example, "--path", path, *arguments)


def test_the_example_of_pydantic_ai(tmp_path):
    """What a user told the agent is known in another process, and to no other user."""
    pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed (see environments.py)")
    example = "pydantic_ai_agent.py"
    assert "shall remember" in said(example, tmp_path, "Remember that my cat is called Kestrel.")
    assert "my cat is called Kestrel." in said(example, tmp_path, "What is my cat called?")
    assert "I know: nothing" in said(example, tmp_path, "--user", "bob", "What is my cat called?")


async def test_pydantic_ai_describes_the_tools(tmp_path):
    """Descriptions of tools and of their arguments come out of the docstrings."""
    pydantic_ai = pytest.importorskip(
        "pydantic_ai", reason="pydantic-ai is not installed (see environments.py)"
    )
    from pydantic_ai.models.test import TestModel

    model = TestModel(call_tools=[])
    async with aiochroma.Memory(tmp_path) as memory:
        await pydantic_ai.Agent(model, tools=memory_tools(memory)).run("hello")
    tools = {tool.name: tool for tool in model.last_model_request_parameters.function_tools}
    assert set(tools) == {"recall", "list_memories", "list_namespaces", "remember", "forget"}
    assert all(tool.description for tool in tools.values())
    arguments = [
        argument for tool in tools.values() for argument in tool.parameters_json_schema["properties"].values()
    ]
    assert len(arguments) > 8
    assert all(argument["description"] for argument in arguments)


def test_the_example_of_adk(tmp_path):
    """What a user said in one session is known in the next one, in another process, and to no other user."""
    pytest.importorskip("google.adk", reason="google-adk is not installed (see environments.py)")
    example = "adk_agent.py"
    assert "Kestrel" in said(example, tmp_path, "My cat is called Kestrel.", "What is my cat called?")
    assert "Kestrel" in said(example, tmp_path, "What is my cat called?")
    assert "I know: nothing" in said(example, tmp_path, "--user", "bob", "What is my cat called?")


async def test_adk_describes_the_tools(tmp_path):
    """ADK makes a declaration of every tool."""
    pytest.importorskip("google.adk", reason="google-adk is not installed (see environments.py)")
    from google.adk.tools import FunctionTool

    async with aiochroma.Memory(tmp_path) as memory:
        declared = [FunctionTool(tool)._get_declaration() for tool in memory_tools(memory, read_only=True)]
    assert [one.name for one in declared] == ["recall", "list_memories", "list_namespaces"]
    assert all(one.description for one in declared)
