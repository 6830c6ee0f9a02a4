"""What a memory returns is a response model of FastAPI as it is, and a field of a pydantic model."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (extra `fastapi`)")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, TypeAdapter

import aiochroma
from aiochroma import Count, Hit, Id, Items, Page, Recall, StoreUnavailableError, UnavailableHit

HIT = Hit(id="a", text="the key is under the mat", namespace="home", distance=0.5, score=1.0)
RECALL = Recall(hits=(HIT,), errors={"work": StoreUnavailableError("/srv/private is damaged")})
PAGE = Page([HIT])
PAGE.next = "cursor"

RESULTS = {
    "recall": (Recall, RECALL),
    "page": (Page, PAGE),
    "hits": (Items[Hit], Items([HIT])),
    "names": (Items[str], Items(["home"])),
    "count": (Count, Count(3)),
    "id": (Id, Id("a")),
    "unavailable": (UnavailableHit, UnavailableHit.failed(StoreUnavailableError("/srv/private is damaged"))),
    "recalls": (list[Recall], [RECALL]),
}


def route(value):
    """A route that answers with a value."""

    async def answer():
        return value

    return answer


@pytest.fixture
def client():
    """An application with a route for each kind of result."""
    app = FastAPI()
    for name, (kind, value) in RESULTS.items():
        app.add_api_route(f"/{name}", route(value), response_model=kind)
    with TestClient(app) as opened:
        yield opened


@pytest.mark.parametrize("name", RESULTS)
def test_each_result_is_a_response_model(client, name):
    """The answer is plain JSON, and says of an error its class alone: a message may name paths."""
    answer = client.get(f"/{name}")
    assert answer.status_code == 200
    assert "/srv/private" not in answer.text
    assert f"/{name}" in client.get("/openapi.json").json()["paths"]


def test_what_the_answers_say(client):
    """Hits with all their fields, lists as lists, numbers and texts as such."""
    recall = client.get("/recall").json()
    assert recall["hits"][0]["text"] == HIT.text
    assert recall["errors"] == {"work": "StoreUnavailableError"}
    assert client.get("/page").json() == recall["hits"]
    assert client.get("/names").json() == ["home"]
    assert (client.get("/count").json(), client.get("/id").json()) == (3, "a")
    assert client.get("/unavailable").json()["error"] == "StoreUnavailableError"


def test_it_is_a_field_of_a_model():
    """With what it is, an object of ours; and the model writes it as JSON."""

    class Answer(BaseModel):
        recall: Recall
        change: aiochroma.MemoryChange | None = None
        health: aiochroma.Health | None = None

    answer = Answer(recall=RECALL)
    assert answer.recall[0] == HIT
    assert '"StoreUnavailableError"' in answer.model_dump_json()


@pytest.mark.parametrize(
    "kind",
    [
        name
        for name in aiochroma.__all__
        if name.endswith(("Report", "Receipt", "Change", "Stats", "Health", "Latency", "Search"))
    ],
)
def test_every_report_has_a_schema(kind):
    """Whatever is returned to users can be returned to theirs."""
    assert TypeAdapter(getattr(aiochroma, kind)).json_schema(mode="serialization")["type"] == "object"
