"""A chat bot that searches four namespaces for every message, and answers even when one of them fails.

Everybody has notes and a conversation of their own: what one person says is never shown to another. The handlers look as they do
with discord.py or python-telegram-bot; the network is left out, messages come from standard input. Each line is a message, with
its author before a `>`; `!remember NAMESPACE TEXT` remembers, `!forget` forgets the author, anything else is a question.

    python examples/four_namespace_bot.py --path ./bot
    echo "ada> what is my cat called?" | python examples/four_namespace_bot.py --path ./bot
    python examples/four_namespace_bot.py --path ./bot --broken         # one namespace really fails
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path

import aiochroma

# How many memories of each namespace may go into an answer.
NAMESPACES = {"personal": 5, "academic": 2, "projects": 2, "style": 1}
TURNS = 6
"""How many of the last messages of a person go into an answer."""
AT_ONCE = 8
BLANK_LINES = "\n\n"


class Bot:
    """What a framework would call: `on_message` for every message, many at the same time."""

    def __init__(self, memory: aiochroma.Memory) -> None:
        self.memory = memory

    async def on_message(self, author: str, content: str) -> str:
        """Return the answer to a message; whatever happens to the store, there is one."""
        try:
            if content.startswith("!remember "):
                return await self._remember(author, content.removeprefix("!remember "))
            if content == "!forget":
                return f"Forgot {await self.memory.forget(scope=author)} memories of {author}."
            return await self._answer(author, content)
        except aiochroma.InvalidInputError as error:
            return f"I did not understand that: {error}"

    async def _remember(self, author: str, content: str) -> str:
        namespace, _, text = content.partition(" ")
        if namespace not in NAMESPACES:
            return f"I know the namespaces {', '.join(NAMESPACES)}."
        id = await self.memory.remember(text, namespace=namespace, scope=author)
        # The memory degrades: if the store is unavailable the id is empty, and says why.
        return f"Remembered in {namespace}." if id else f"I could not remember that: {id.error}"

    async def _answer(self, author: str, question: str) -> str:
        recalled = await self.memory.recall(question, namespaces=NAMESPACES, scope=author)
        lately = await self.memory.list("chat", scope=author, thread="chat", newest_first=True, limit=TURNS)
        message = {"role": "user", "name": author, "content": question}
        await self.memory.remember_messages([message], namespace="chat", scope=author, thread="chat")
        # Here a language model would answer. This is what it would be sent.
        notes = recalled.as_context(max_chars=1500, template="- {text}")
        before = "".join(f"{hit.metadata['name']}: {hit.text}\n" for hit in reversed(lately))
        prompt = f"Answer from these notes.\n\n{notes}\n\n{before}{author}: {question}"
        # One namespace that fails loses none of what the others found.
        failed = [
            f"({name or 'everything'} could not be searched: {error})"
            for name, error in recalled.errors.items()
        ]
        return "\n".join([prompt, *failed])


async def from_standard_input():
    """Yield authors and messages from standard input without blocking the event loop."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        author, mark, content = line.partition(">")
        if line.strip():
            yield (author.strip() if mark else "you"), (content if mark else line).strip()


async def serve(bot: Bot) -> None:
    """Handle messages as they come, several at a time, and print each answer in one piece."""
    limit = asyncio.Semaphore(AT_ONCE)
    tasks: set[asyncio.Task[None]] = set()

    async def handle(author: str, content: str) -> None:
        async with limit:
            print(await bot.on_message(author, content), end=BLANK_LINES, flush=True)

    async for author, content in from_standard_input():
        command = content.startswith("!")
        task = asyncio.create_task(handle(author, content))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if command:
            await task  # What is asked afterwards may rely on it.
    await asyncio.gather(*tasks)


def letters(texts: list[str]) -> list[list[float]]:
    """Embed texts by how often each letter occurs: the embedder of somebody else, whose vectors are not comparable to ours."""
    return [
        [float(Counter(text.lower())[letter]) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts
    ]


async def break_one(path: Path) -> None:
    """Let another program, with another embedder, write the namespace `academic`."""
    async with aiochroma.Memory(path) as memory:
        await memory.forget_namespace("academic")
    async with aiochroma.Memory(path, embedder=letters) as memory:
        await memory.remember("The thesis is due in May.", namespace="academic")


async def main(path: Path, *, broken: bool, timeout: float) -> None:
    if broken:
        await break_one(path)
    # In a chat nobody wants a traceback: what the store cannot do comes back empty, with the reason.
    async with aiochroma.Memory(path, on_failure="degrade", timeout=timeout) as memory:
        await serve(Bot(memory))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--path", type=Path, default=Path("./bot"))
    arguments.add_argument("--broken", action="store_true", help="let the namespace `academic` fail")
    arguments.add_argument(
        "--timeout", type=float, default=5.0, help="answer without the memory after this many seconds"
    )
    given = arguments.parse_args()
    asyncio.run(main(given.path, broken=given.broken, timeout=given.timeout))
