"""A memory service for Google's Agent Development Kit: what was said in one session is known in the next.

    python examples/adk_agent.py --path ./memory "My cat is called Kestrel." "What is my cat called?"

Each text is a session of its own. Put the name of a language model (`--model gemini-...`) to talk to one. Without, a class plays
the model: it repeats what ADK's `preload_memory` tool has found, and needs no network.
"""

from __future__ import annotations

import argparse
import asyncio
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from google.adk.agents import LlmAgent
from google.adk.memory import BaseMemoryService
from google.adk.memory.base_memory_service import SearchMemoryResponse
from google.adk.memory.memory_entry import MemoryEntry
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService, Session
from google.adk.tools import preload_memory
from google.genai import types

import aiochroma

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from google.adk.events import Event

APP = "assistant"


class MemoryService(BaseMemoryService):
    """ADK's memory service: a scope for each user of each application, a thread for each session."""

    def __init__(self, memory: aiochroma.Memory) -> None:
        self._memory = memory

    async def add_session_to_memory(self, session: Session) -> None:
        """Remember a session; those of its events that are known already are refreshed."""
        await self.add_events_to_memory(
            app_name=session.app_name, user_id=session.user_id, events=session.events, session_id=session.id
        )

    async def add_events_to_memory(
        self,
        *,
        app_name: str,
        user_id: str,
        events: Sequence[Event],
        session_id: str | None = None,
        custom_metadata: Mapping[str, object] | None = None,  # noqa: ARG002 - ADK's signature
    ) -> None:
        """Remember some events of a session."""
        texts = [(event, _text_of(event.content)) for event in events]
        await self._memory.remember_many(
            [
                {
                    "text": text,
                    "id": event.id,
                    "thread": session_id,
                    "scope": (app_name, user_id),
                    "metadata": {"author": event.author},
                    "created_at": datetime.fromtimestamp(event.timestamp, timezone.utc),
                }
                for event, text in texts
                if text.strip()
            ]
        )

    async def search_memory(self, *, app_name: str, user_id: str, query: str) -> SearchMemoryResponse:
        """Recall what is known of a user."""
        found = await self._memory.recall(query, scope=(app_name, user_id), k=5)
        return SearchMemoryResponse(
            memories=[
                MemoryEntry(
                    id=hit.id,
                    content=types.Content(role="user", parts=[types.Part(text=hit.text)]),
                    author=hit.metadata.get("author"),
                    timestamp=None if hit.created_at is None else hit.created_at.isoformat(),
                )
                for hit in found
            ]
        )

    async def delete_memory(self, *, app_name: str, user_id: str, memory_id: str | None = None) -> None:
        """Forget one memory, if it is the user's."""
        hit = None if memory_id is None else await self._memory.get(memory_id)
        if hit is not None and hit.scope == (app_name, user_id):
            await self._memory.forget(hit.id)


def _text_of(content: types.Content | None) -> str:
    return "\n".join(part.text for part in (content and content.parts) or [] if part.text)


class PlayedModel(BaseLlm):
    """Repeats what the memory has found."""

    model: str = "played"

    async def generate_content_async(
        self,
        llm_request: LlmRequest,
        stream: bool = False,  # noqa: ARG002 - ADK's signature
    ) -> AsyncGenerator[LlmResponse, None]:
        """Answer a request."""
        given = "\n".join(_text_of(content) for content in llm_request.contents)
        known = [line for line in given.splitlines() if line.startswith("user: ") and not line.endswith("?")]
        text = f"I know: {' '.join(known) or 'nothing'}"
        yield LlmResponse(content=types.Content(role="model", parts=[types.Part(text=text)]))


async def main(path: str, user: str, model: str | None, texts: list[str]) -> None:
    async with aiochroma.Memory(path) as memory:
        service = MemoryService(memory)
        agent = LlmAgent(name="assistant", model=model or PlayedModel(), tools=[preload_memory])
        sessions = InMemorySessionService()
        runner = Runner(app_name=APP, agent=agent, session_service=sessions, memory_service=service)
        for text in texts:
            session = await sessions.create_session(app_name=APP, user_id=user)
            message = types.Content(role="user", parts=[types.Part(text=text)])
            async for event in runner.run_async(user_id=user, session_id=session.id, new_message=message):
                print(_text_of(event.content))
            ended = await sessions.get_session(app_name=APP, user_id=user, session_id=session.id)
            if ended is not None:
                await service.add_session_to_memory(ended)
        await runner.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", default="./memory", help="the memory's directory")
    parser.add_argument("--user", default="ada", help="whose memories")
    parser.add_argument("--model", help="a language model, as ADK names it")
    parser.add_argument("text", nargs="+", help="what the user says; each text is a session")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.path, arguments.user, arguments.model, arguments.text))
