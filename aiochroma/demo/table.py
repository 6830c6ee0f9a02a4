"""``aiochroma demo --table``: one assistant's memory under load, beside plain chromadb in threads.

``stores`` are the contenders behind one interface, ``load`` asks and remembers and measures, ``report`` prints.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from typing import TYPE_CHECKING

from aiochroma.demo.corpus import read_corpus, read_questions
from aiochroma.demo.load import judge, run_load
from aiochroma.demo.report import print_comparison, print_opening, print_samples
from aiochroma.demo.stores import MemoryStore, PlainStore

if TYPE_CHECKING:
    from rich.console import Console

    from aiochroma.demo.load import Measurement
    from aiochroma.demo.stores import Store

__all__ = ["run_table"]


def run_table(console: Console, *, seconds: float = 3.0, tasks: int = 32) -> None:
    """Run three loads and print what each did; blocks for a few seconds more than the loads take.

    Args:
        console: Where to print.
        seconds: How long each of the three loads runs.
        tasks: How many tasks ask at the same time.
    """
    begun = time.perf_counter()
    asyncio.run(_demonstrate(console, seconds, tasks))
    console.print(
        f"Done in {time.perf_counter() - begun:.1f} s; the temporary directories are gone.", style="dim"
    )


async def _demonstrate(console: Console, seconds: float, tasks: int) -> None:
    corpus, questions = read_corpus(), read_questions()
    hybrid = MemoryStore("hybrid")
    stores: list[Store] = [hybrid, MemoryStore("vector"), PlainStore()]
    print_opening(console, corpus, len(questions), seconds, tasks)
    # One after the other, each alone in the process: they would take the processor from each other.
    measured = [await _measured(console, store, seconds, tasks, samples=store is hybrid) for store in stores]
    print_comparison(console, measured, hybrid.embedder)


async def _measured(
    console: Console, store: Store, seconds: float, tasks: int, *, samples: bool
) -> Measurement:
    corpus, questions = read_corpus(), read_questions()
    with tempfile.TemporaryDirectory(prefix="aiochroma-demo-") as directory:
        await store.open(directory)
        try:
            begun = time.perf_counter()
            for namespace, sentences in corpus.items():
                await store.load(namespace, sentences)
            loaded = time.perf_counter() - begun
            # Everything once before anything is measured: the first use of a collection reads its index.
            answers = [(question, await store.ask(question.text)) for question in questions]
            if samples:
                print_samples(
                    console, [(question, hits, judge(question, hits)) for question, hits in answers]
                )
            console.print(f"{tasks} tasks ask {store.name} for {seconds:g} s ...", style="dim")
            return await run_load(store, corpus, questions, seconds, tasks, loaded)
        finally:
            await store.close()
