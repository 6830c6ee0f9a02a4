"""An application that the tests let uvicorn run."""

from __future__ import annotations

import asyncio
import os

from fastapi import APIRouter, FastAPI

import aiochroma
from aiochroma.fastapi import CancellingRoute, MemoryDependency, install, lifespan

app = FastAPI(lifespan=lifespan(lambda: aiochroma.Memory.from_env(timeout=30)))
install(app, details=True)
router = APIRouter(route_class=CancellingRoute)
seen = {"started": 0, "cancelled": 0}


@app.post("/memories")
async def remember(text: str, memory: MemoryDependency):
    return {"id": await memory.remember(text), "pid": os.getpid()}


@app.get("/recall")
async def recall(question: str, memory: MemoryDependency):
    recalled = await memory.recall(question)
    return {"texts": [hit.text for hit in recalled], "pid": os.getpid()}


@app.get("/pid")
async def pid():
    return os.getpid()


@app.get("/seen")
async def what_was_seen():
    return seen


@router.get("/endless")
async def endless():
    seen["started"] += 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        seen["cancelled"] += 1
        raise


app.include_router(router)
