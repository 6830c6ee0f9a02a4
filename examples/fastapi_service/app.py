"""A memory service: embedded in development, against a Chroma server with several workers in production.

In development the database is a directory, and the service is one process:

    pip install 'aiochroma-memory[fastapi,local]' uvicorn
    uvicorn app:app

In production several workers, or machines, share a Chroma server; the program stays as it is:

    CHROMA_MODE=http CHROMA_HOST=chroma.internal CHROMA_PORT=8443 CHROMA_SSL=true CHROMA_CA_FILE=ca.pem CHROMA_AUTH_TOKEN=... \
        uvicorn app:app --workers 4

`compose.yaml` beside this file starts all of that. Then:

    curl -X POST localhost:8000/memories -H 'Content-Type: application/json' -d '{"text": "The key is under the mat."}'
    curl 'localhost:8000/recall?question=where+is+the+key'
    curl localhost:8000/health/chromadb
"""

from __future__ import annotations

import os
from typing import Annotated

from fastapi import APIRouter, FastAPI, HTTPException, Query
from pydantic import BaseModel

import aiochroma
from aiochroma.fastapi import CancellingRoute, MemoryDependency, install, lifespan

# No request may hang for longer than its caller is likely to wait. What takes longer is answered with 504.
TIMEOUT_SECONDS = float(os.environ.get("CHROMA_TIMEOUT", "10"))


class NewMemory(BaseModel):
    """What is sent to be remembered."""

    text: str
    namespace: str = "default"


class Found(BaseModel):
    """What is found."""

    id: str
    text: str
    namespace: str
    distance: float | None = None


class Answer(BaseModel):
    """What was found for a question, and which namespaces could not be searched."""

    hits: list[Found]
    failed: dict[str, str]


def found(hit: aiochroma.Hit) -> Found:
    return Found(id=hit.id, text=hit.text, namespace=hit.namespace, distance=hit.distance)


# A question whose asker has hung up need not be answered: what still waits for the database never runs.
router = APIRouter(route_class=CancellingRoute)


@router.post("/memories", status_code=201)
async def remember(new: NewMemory, memory: MemoryDependency) -> dict[str, str]:
    # Blank text and the like raise InvalidInputError, which becomes a 422. When this returns, the memory would survive kill -9.
    return {"id": await memory.remember(new.text, namespace=new.namespace)}


@router.get("/memories/{namespace}/{id}")
async def get(namespace: str, id: str, memory: MemoryDependency) -> Found:
    hit = await memory.get(id, namespace=namespace)
    if hit is None:
        raise HTTPException(404, "There is no such memory.")
    return found(hit)


@router.get("/recall")
async def recall(
    question: str,
    memory: MemoryDependency,
    k: Annotated[int, Query(ge=1, le=100)] = 5,
    namespace: str | None = None,
) -> Answer:
    recalled = await memory.recall(question, namespaces=namespace, k=k)
    return Answer(
        hits=[found(hit) for hit in recalled],
        failed={name: type(error).__name__ for name, error in recalled.errors.items()},
    )


# Opens the memory when the service starts, and closes it when it ends. A store that is not there yet does not keep the service
# from starting: /health/chromadb answers with 503 until it is, and the log says why.
app = FastAPI(title="Memories", lifespan=lifespan(lambda: aiochroma.Memory.from_env(timeout=TIMEOUT_SECONDS)))
app.include_router(router)
install(app)  # /health/chromadb, and the store's errors as responses
