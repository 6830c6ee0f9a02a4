"""Telling embedders apart, without writing down anything that is nobody's business."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import pytest

import aiochroma
from aiochroma.embedding.choice import adapted
from aiochroma.embedding.functions import fingerprint_of, is_alike, is_same_name

FACTS = [
    "the blue kettle is in the kitchen",
    "my bicycle has a flat tyre",
    "the dentist moved to Harbour Street",
]


def encode(texts, *, model, dimensions=32):
    """Stands for a model: the sum of a random vector for each word, another one for each model."""
    rows = np.zeros((len(texts), dimensions))
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(f"{model} {word}".encode()).digest()[:8])
            row += np.random.default_rng(seed).standard_normal(dimensions)
    return rows


def same_model_by_another_name(texts):
    return encode(texts, model="small")


class Model:
    def __init__(self, name):
        self.name = name

    def encode(self, texts):
        return encode(texts, model=self.name)

    def __call__(self, texts):
        return encode(texts, model=self.name)


class Gateway:
    """As Chroma's functions for hosted models: configuration with all that a request needs."""

    def __init__(self, *, model="large-3", token="Bearer s3cret", url="https://gateway.example", timeout=10):
        self.config = {
            "api_key_env_var": "KEY",
            "model_name": model,
            "default_headers": {"Authorization": token},
            "api_base": url,
            "timeout": timeout,
        }

    def __call__(self, input):
        return encode(input, model=self.config["model_name"])

    @staticmethod
    def name():
        return "gateway"

    def get_config(self):
        return self.config


async def _reopened(path, first, second):
    async with aiochroma.Memory(path, embedder=first) as memory:
        await memory.remember_many(FACTS, namespace="home")
    async with aiochroma.Memory(path, embedder=second) as memory:
        return [hit.text for hit in await memory.recall(FACTS[0], namespaces="home", mode="vector", k=1)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (functools.partial(encode, model="small"), functools.partial(encode, model="large")),
        (
            functools.partial(encode, model="small"),
            functools.partial(encode, model="small", dimensions=64),
        ),
        (Model("small").encode, Model("large").encode),
        (Model("small"), Model("large")),
        (lambda texts: encode(texts, model="small"), lambda texts: encode(texts, model="large")),
        (Gateway(), Gateway(model="large-4")),
    ],
    ids=["partials", "lengths", "bound methods", "instances", "lambdas", "configured"],
)
async def test_another_model_under_the_same_name_is_refused(tmp_path, first, second):
    """What differs only in its arguments or its state is another embedder, and its data are not compared."""
    with pytest.raises(aiochroma.EmbedderMismatchError):
        await _reopened(tmp_path, first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (functools.partial(encode, model="small"), functools.partial(encode, model="small")),
        (functools.partial(encode, model="small"), same_model_by_another_name),
        (Gateway(), Gateway(token="Bearer rotated", url="http://elsewhere.example", timeout=60)),
    ],
    ids=["equal", "renamed", "another key and host"],
)
async def test_the_same_model_is_the_same_embedder(tmp_path, first, second):
    """A renamed function, a rotated key, another host or time-out lock nobody out."""
    assert await _reopened(tmp_path, first, second) == [FACTS[0]]


async def test_identities_hold_no_secrets(tmp_path):
    """Neither what is stored, nor health, statistics and errors show keys, headers or addresses."""
    async with aiochroma.Memory(tmp_path, embedder=Gateway()) as memory:
        await memory.remember("hello")
        collection = await memory.client.get_collection("default", embedding_function=None)
        shown = f"{await memory.client.health()} {memory.stats()} {collection.metadata}"
    async with aiochroma.Memory(tmp_path, embedder=Gateway(model="other")) as memory:
        with pytest.raises(aiochroma.EmbedderMismatchError) as refused:
            await memory.recall("hello")
    for text in (shown, str(refused.value)):
        assert "s3cret" not in text
        assert "gateway.example" not in text
    assert "large-3" in str(refused.value)


def test_a_name_of_its_own_is_the_identity():
    """A function that has an `identity` is called by it."""

    def embed(texts):
        return encode(texts, model="small")

    embed.identity = "small-1"
    assert adapted(embed).identity == "small-1"


def test_identities_of_whole_configurations_are_understood():
    """What was written with addresses and keys in it names the same embedder as today's identity."""
    written = 'chroma:ollama:{"model_name": "nomic", "timeout": 60, "url": "http://here"}'
    assert is_same_name(written, 'chroma:ollama:{"model_name": "nomic"}')
    assert not is_same_name(written, 'chroma:ollama:{"model_name": "other"}')


def test_fingerprints_bear_what_hardware_changes():
    """A fingerprint is that of the same model on other hardware, at any length of the vectors, and of no other model."""
    vector = np.random.default_rng(1).standard_normal(384)
    stored = fingerprint_of(vector)
    assert is_alike(stored, fingerprint_of(7 * vector + 0.01))
    assert not is_alike(stored, fingerprint_of(np.random.default_rng(2).standard_normal(384)))
    assert not is_alike(stored, fingerprint_of(vector[:10]))
    assert not is_alike("no fingerprint", stored)
