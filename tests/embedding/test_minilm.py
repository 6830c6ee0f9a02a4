"""The sentence model: read from files, never downloaded, and Chroma's own functions served by it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from chromadb.api.types import DefaultEmbeddingFunction
from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2

import aiochroma
from aiochroma.embedding import minilm
from aiochroma.embedding.choice import adapted, chosen
from aiochroma.embedding.minilm import MiniLmEmbedder, chromas_folder, is_packaged

needs_weights = pytest.mark.skipif(not is_packaged(), reason="the extra `minilm` is not installed")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory in which Chroma has downloaded nothing yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def downloaded(home, monkeypatch):
    """The same, as if Chroma had downloaded the model before."""
    folder = chromas_folder()
    folder.mkdir(parents=True)
    model, tokenizer, _ = minilm._located(None)
    (folder / "model.onnx").symlink_to(model)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    for name in ("config.json", "special_tokens_map.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).write_text("{}")
    monkeypatch.setattr(ONNXMiniLM_L6_V2, "DOWNLOAD_PATH", folder.parent)
    return folder


@needs_weights
def test_related_texts_are_near():
    """Meaning counts, not words; a text embeds the same alone and in a batch; a blank one embeds to nothing."""
    embedder = MiniLmEmbedder()
    texts = ["A cat sat on the mat.", "A kitten was sitting on the rug.", "Quarterly earnings rose.", " "]
    rows = embedder.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(rows[:3], axis=1), 1.0, atol=1e-5)
    assert rows[0] @ rows[1] > 0.5 > 0.2 > rows[0] @ rows[2]
    assert not rows[3].any()
    np.testing.assert_allclose(embedder.embed(texts[:1])[0], rows[0], atol=0.05)
    assert rows.shape == (4, embedder.dimensions)


@needs_weights
async def test_nothing_of_a_long_text_is_cut_off(tmp_path):
    """A text that is longer than the model reads is found by its end."""
    sentences = [f"In chapter {number} the crew repairs the mast." for number in range(60)]
    text = " ".join([*sentences, "At last they find the treasure of the pirates."])
    async with aiochroma.Memory(tmp_path, embedder=MiniLmEmbedder()) as memory:
        await memory.remember(text)
        await memory.remember("Dinner is at eight.")
        (hit,) = await memory.recall("gold hidden by corsairs", k=1, mode="vector")
        assert "treasure" in hit.passage


@needs_weights
def test_chromas_functions_are_served_by_the_model_that_chroma_keeps(downloaded):
    """Both functions, before and after their first use, are one embedder with its window and its distance."""
    own = ONNXMiniLM_L6_V2(preferred_providers=["CPUExecutionProvider"])
    vector = own(["A cat sat on the mat."])[0]
    for function in (DefaultEmbeddingFunction(), ONNXMiniLM_L6_V2(), own):
        embedder = adapted(function)
        assert embedder.identity == MiniLmEmbedder(downloaded).identity == MiniLmEmbedder().identity
        assert (embedder.window, embedder.max_distance) == (256, 0.7)
        np.testing.assert_allclose(embedder.function(["A cat sat on the mat."])[0], vector, atol=0.05)


async def test_chromas_function_without_its_model_says_what_to_do(home, tmp_path, monkeypatch):
    """Where Chroma cannot download, the error is an embedder's, and names a way out."""
    monkeypatch.setattr(ONNXMiniLM_L6_V2, "MODEL_DOWNLOAD_URL", "http://127.0.0.1:9/onnx.tar.gz")
    monkeypatch.setattr(ONNXMiniLM_L6_V2, "DOWNLOAD_PATH", home / "models")
    async with aiochroma.Memory(tmp_path / "store", embedder=DefaultEmbeddingFunction()) as memory:
        with pytest.raises(aiochroma.EmbeddingFailedError, match="Put the model where Chroma keeps it"):
            await memory.remember("hello")


def test_a_missing_model_names_the_places_that_were_looked_at(home, monkeypatch):
    """Neither Chroma's folder nor a package: the message names both, and nothing is downloaded."""
    monkeypatch.setattr(minilm, "package_folder", lambda name: None)
    with pytest.raises(aiochroma.EmbedderError, match="aiochroma-memory\\[minilm\\]") as missing:
        MiniLmEmbedder()
    assert str(chromas_folder()) in str(missing.value)
    with pytest.raises(aiochroma.EmbedderError, match="should hold model"):
        MiniLmEmbedder(home)


@needs_weights
def test_other_weights_are_refused(tmp_path, monkeypatch):
    """A file of the package that is not the known one is not loaded."""
    model, tokenizer, _ = minilm._located(None)
    (tmp_path / "model.onnx").write_bytes(b"something else")
    (tmp_path / minilm._PACKAGED_TOKENIZER).parent.mkdir(parents=True)
    shutil.copy(tokenizer, tmp_path / minilm._PACKAGED_TOKENIZER)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(minilm, "package_folder", lambda name: tmp_path)
    with pytest.raises(aiochroma.EmbedderError, match="SHA-256"):
        MiniLmEmbedder()
    assert model.is_file()


def test_what_a_database_was_written_with_comes_before_what_is_best():
    """The default goes on with the embedder that is there; one that is not ours or not installed does not count."""
    hashed = chosen("hashed")
    assert chosen(None, [hashed.identity]).identity == hashed.identity
    assert chosen("auto", ["openai", hashed.identity]).identity == hashed.identity
    assert chosen(None, ["openai"]).identity == chosen(None).identity == chosen("wordllama").identity
    with pytest.raises(aiochroma.InvalidInputError, match="'hashed'"):
        chosen("word2vec")


async def test_the_environment_names_an_embedder_and_says_so(tmp_path, monkeypatch, caplog):
    """A memory that is opened without an embedder has the one that the environment names; an argument comes first."""
    monkeypatch.setenv("AIOCHROMA_EMBEDDER", "hashed")
    with caplog.at_level("INFO", logger="aiochroma.embedding"):
        assert chosen(None).identity == chosen("hashed").identity
    assert "AIOCHROMA_EMBEDDER" in caplog.text
    assert chosen("wordllama").identity != chosen("hashed").identity
    monkeypatch.setenv("AIOCHROMA_EMBEDDER", "word2vec")
    async with aiochroma.Memory(tmp_path, embedder="hashed") as memory:
        await memory.remember("hello")
    with pytest.raises(aiochroma.InvalidInputError, match="AIOCHROMA_EMBEDDER must be one of"):
        chosen(None)


def test_the_environment_names_the_folder_of_the_model(home, monkeypatch):
    """The folder of the environment is looked in before Chroma's and the package; an empty one is named in the error."""
    monkeypatch.setenv("AIOCHROMA_ONNX_DIR", str(home / "model"))
    with pytest.raises(aiochroma.EmbedderError, match="should hold model") as missing:
        MiniLmEmbedder()
    assert str(home / "model") in str(missing.value)
