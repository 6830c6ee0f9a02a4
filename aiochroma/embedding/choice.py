"""Which embedder a memory uses, the caller's own or the best that is installed; and the one form that all kinds are given."""

from __future__ import annotations

import inspect
import operator
import os
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Protocol, SupportsFloat, SupportsIndex, TypedDict, TypeGuard

from aiochroma._callbacks import is_asynchronous
from aiochroma._errors import AiochromaError, EmbedderError, InvalidInputError, MissingExtraError, shown
from aiochroma._logging import EventLogger, get_logger
from aiochroma.embedding.functions import identity_of, is_same_name, kind_of, name_of, tokens_of
from aiochroma.embedding.protocol import Embedder, InlineEmbedder, QueryEmbedder, TokenEmbedder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from aiochroma.embedding.functions import EmbeddingFunction

__all__ = [
    "NAMES",
    "EmbedderFunction",
    "adapted",
    "chosen",
    "default_embedder",
    "is_langchain",
    "known_embedder",
]

log: EventLogger = get_logger("aiochroma.embedding")


class EmbedderFunction:
    """An embedder as the embedding thread calls it.

    Attributes:
        identity: The name that is stored with the data; it holds no keys and no addresses.
        is_certain: Whether equal identities mean that vectors may be compared. Where not, fingerprints are compared; see
            :mod:`aiochroma.embedding.functions`.
        fingerprint: Some numbers of its vector of ``PROBE``, or None before it has embedded that.
        dimensions: The length of its vectors, or None before it has embedded a text.
        max_distance: The cosine distance up to which the embedder itself calls two texts related, or None.
        window: The number of tokens of a text that it reads, or None where it reads all.
        count_tokens: Counts the tokens of a text, or the characters where the embedder cannot count tokens.
        function: Called with a list of texts; may be asynchronous.
        gives_tokens: Whether the function has ``embed_tokens``; see :class:`TokenEmbedder`.
    """

    def __init__(
        self,
        identity: str,
        dimensions: int | None,
        max_distance: float | None,
        function: EmbeddingFunction,
        *,
        window: int | None = None,
        count_tokens: Callable[[str], int] = len,
        is_certain: bool = True,
        gives_tokens: bool = False,
    ) -> None:
        self.identity = identity
        self.is_certain = is_certain
        self.fingerprint: str | None = None
        self.dimensions = dimensions
        self.max_distance = max_distance
        self.function = function
        self.gives_tokens = gives_tokens
        self.window = window
        self.count_tokens = count_tokens


class _Form:
    """An embedding function made of an embedder: it has the name of the embedder's class, for messages and for its thread."""

    def __init__(self, embedder: object) -> None:
        kind = type(embedder)
        self.__module__, self.__qualname__, self.__name__ = kind.__module__, kind.__qualname__, kind.__name__


class _Rows(_Form):
    """Gives an :class:`Embedder` the form of an embedding function.

    Attributes:
        inline_characters: See :class:`InlineEmbedder`.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self._embedder = embedder
        # Looked up once: asking a protocol takes as long as embedding a short text.
        self._embed_queries = embedder.embed_query if isinstance(embedder, QueryEmbedder) else embedder.embed
        inline: object = embedder.inline_characters if isinstance(embedder, InlineEmbedder) else 0
        self.inline_characters = _whole(inline, "inline_characters", least=0)

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return self._embedder.embed(texts)

    def embed_query(self, input: list[str]) -> npt.NDArray[np.float32]:
        return self._embed_queries(input)


class _TokenRows(_Rows):
    """Gives a :class:`TokenEmbedder` the form of an embedding function that also embeds tokens."""

    def __init__(self, embedder: TokenEmbedder) -> None:
        super().__init__(embedder)
        self.embed_tokens = embedder.embed_tokens
        self._is_query_embedder = isinstance(embedder, QueryEmbedder)

    def embed_query_tokens(self, texts: list[str]) -> Sequence[npt.NDArray[np.float32]]:
        """Embed questions with their tokens; the vector is that of the embedder's ``embed_query``, if it has one."""
        import numpy as np

        if not self._is_query_embedder:
            return self.embed_tokens(texts)
        vectors = [np.array(vector, dtype=np.float32) for vector in self._embed_queries(texts)]
        return [
            np.concatenate([vector[None], np.asarray(matrix, dtype=np.float32)[1:]])
            for vector, matrix in zip(vectors, self.embed_tokens(texts), strict=True)
        ]


class _AsynchronousRows(_Form):
    """Gives an embedder whose ``embed`` is asynchronous the form of an asynchronous embedding function."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self._embed: EmbeddingFunction = embedder.embed
        self._embed_queries: EmbeddingFunction = getattr(embedder, "embed_query", embedder.embed)

    async def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        vectors: npt.NDArray[np.float32] = await self._embed(texts)
        return vectors

    async def embed_query(self, input: list[str]) -> npt.NDArray[np.float32]:
        vectors = self._embed_queries(input)
        found: npt.NDArray[np.float32] = await vectors if inspect.isawaitable(vectors) else vectors
        return found


class _LangChainEmbeddings(Protocol):
    """The two methods of LangChain's ``Embeddings``."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]: ...

    def embed_query(self, text: str) -> list[float]: ...


class _LangChainRows(_Form):
    """Gives LangChain's ``Embeddings`` the form of an embedding function."""

    def __init__(self, embeddings: _LangChainEmbeddings) -> None:
        super().__init__(embeddings)
        self._embeddings = embeddings

    def __call__(self, texts: list[str]) -> list[list[float]]:
        return self._embeddings.embed_documents(texts)

    def embed_query(self, input: list[str]) -> list[list[float]]:
        return [self._embeddings.embed_query(text) for text in input]


NAMES = ("auto", "minilm", "wordllama", "hashed")
"""The embedders that a text may name; ``"auto"`` is the default."""

EMBEDDER_VARIABLE = "AIOCHROMA_EMBEDDER"
"""The environment variable that names the embedder of memories that are opened without one."""


def chosen(embedder: object, stored: Sequence[str] = ()) -> EmbedderFunction:
    """Return the embedder that a memory uses; may load a model, so not to be called on an event loop.

    Args:
        embedder: An embedder as :func:`adapted` takes it, one of ``NAMES``, or None for the one that ``AIOCHROMA_EMBEDDER`` names
            in the environment, else ``"auto"``.
        stored: The identities of the embedders that the database was written with, the most frequent first. ``"auto"`` is
            the first of them that is built in and installed, and for a new database the best one installed.

    Raises:
        InvalidInputError: It is no embedder, or no name of one.
        EmbedderError: The one that is named cannot be loaded, or the one that is given fails when it is asked what it is.
    """
    expected = "`embedder` must be an embedder or one of"
    if embedder is None:
        embedder = os.environ.get(EMBEDDER_VARIABLE, "").strip().lower() or "auto"
        if embedder != "auto":
            expected = f"{EMBEDDER_VARIABLE} must be one of"
            log.info("embedder.from_environment", embedder=embedder, variable=EMBEDDER_VARIABLE)
    if embedder == "auto":
        return (
            next((known for identity in stored if (known := known_embedder(identity))), None)
            or default_embedder()
        )
    if not isinstance(embedder, str):
        try:
            return adapted(embedder)
        except AiochromaError:
            raise
        except Exception as error:
            raise EmbedderError(
                f"The embedder {name_of(embedder)!r} cannot be used: asked for its name, its configuration or its "
                f"limits, it failed with {type(error).__name__}."
            ) from error
    if embedder not in NAMES:
        raise InvalidInputError(f"{expected} {', '.join(map(repr, NAMES))}, got {shown(embedder)}.")
    return _named(embedder)


def known_embedder(identity: str) -> EmbedderFunction | None:
    """Return the built-in embedder with this identity, or None where there is none or it is not installed."""
    name = next((name for kind, name in _KINDS.items() if identity.startswith(kind)), None)
    if name is None:
        return None
    try:
        embedder = _named(name)
    except (EmbedderError, MissingExtraError):
        return None
    return embedder if is_same_name(identity, embedder.identity) else None


_KINDS = {
    "hashed-ngrams": "hashed",
    "wordllama:": "wordllama",
    "minilm:": "minilm",
    "chroma:default:": "minilm",
    "chroma:onnx_mini_lm_l6_v2:": "minilm",
}


@cache
def _named(name: str) -> EmbedderFunction:
    """Load a built-in embedder, once in a process: all memories share its weights."""
    if name == "minilm":
        from aiochroma.embedding.minilm import MiniLmEmbedder

        return adapted(MiniLmEmbedder())
    if name == "wordllama":
        from aiochroma.embedding.words import WordLlamaEmbedder

        return adapted(WordLlamaEmbedder())
    from aiochroma.embedding.words import HashedEmbedder

    return adapted(HashedEmbedder())


@lru_cache(maxsize=1)
def default_embedder() -> EmbedderFunction:
    """Return the best embedder that is installed and needs no network.

    That is static word vectors where the extra ``local`` is installed, else MiniLM where ``minilm`` is, else hashed n-grams.
    Together with the words of a question static vectors find within one point of what MiniLM finds, in a hundredth of its time;
    to have MiniLM, name it. Loading the weights takes 0.1 to 0.5 s, so do not call it on an event loop. The choice is logged
    once.
    """
    from aiochroma.embedding.minilm import is_packaged

    try:
        embedder = _named("wordllama")
    except MissingExtraError as error:
        if is_packaged():
            return _named("minilm")
        embedder = _named("hashed")
        log.warning(
            "embedder.fallback",
            embedder=embedder.identity,
            reason=str(error),
            hint="finds words, names and codes but no meaning; install the extra `local` for static word vectors",
        )
    else:
        log.info("embedder.default", embedder=embedder.identity)
    return embedder


def adapted(embedder: object) -> EmbedderFunction:
    """Return what the embedding thread needs of an embedder.

    Args:
        embedder: An :class:`Embedder`, a Chroma embedding function, LangChain's ``Embeddings``, or a synchronous or
            asynchronous callable that takes a list of texts and returns a vector for each.

    Raises:
        InvalidInputError: It is none of these, says of itself what cannot be, or has ``embed_tokens`` and is asynchronous.
    """
    if isinstance(embedder, EmbedderFunction):
        return embedder
    if isinstance(embedder, type):
        raise InvalidInputError(
            f"`embedder` must be an object, got the class {embedder.__qualname__}: call it first."
        )
    if isinstance(embedder, Embedder):
        return EmbedderFunction(
            *_checked_claims(embedder),
            _function_of(embedder),
            gives_tokens=isinstance(embedder, TokenEmbedder),
            **_window(embedder),
        )
    own = getattr(embedder, "embedder", None)
    if isinstance(own, EmbedderFunction):
        return own
    if is_langchain(embedder):
        return EmbedderFunction(
            _langchain_identity(embedder),
            None,
            None,
            _LangChainRows(embedder),
            is_certain=False,
            **_window(embedder),
        )
    if not callable(embedder):
        lacking = [f"`{name}`" for name in _MEMBERS if not hasattr(embedder, name)]
        why = f", which lacks {', '.join(lacking)}" if len(lacking) < len(_MEMBERS) else ""
        raise InvalidInputError(
            f"`embedder` must be an aiochroma Embedder, a Chroma embedding function, LangChain's Embeddings, or a callable "
            f"from a list of texts to vectors, got {shown(embedder)}{why}."
        )
    own_model = _chromas_model(embedder)
    if own_model is not None:
        return own_model
    identity, is_certain = identity_of(embedder)
    max_distance = getattr(embedder, "max_distance", None)
    return EmbedderFunction(
        identity,
        None,
        max_distance if isinstance(max_distance, float) and max_distance > 0 else None,
        embedder,
        is_certain=is_certain,
        **_window(embedder),
    )


_MEMBERS = ("identity", "dimensions", "max_distance", "embed")
"""Of an :class:`Embedder`."""


def _checked_claims(embedder: Embedder) -> tuple[str, int | None, float | None]:
    """Return the identity of an embedder, its dimensions and its distance; the last two may be None, as unknown.

    Raises:
        InvalidInputError: One of them cannot be.
    """
    identity: object = embedder.identity
    if not isinstance(identity, str) or not identity:
        raise InvalidInputError(
            f"The `identity` of an embedder must be a text that is not empty, got {shown(identity)}."
        )
    distance: object = embedder.max_distance
    farthest = float(distance) if isinstance(distance, SupportsFloat) else 0.0
    if distance is not None and not farthest > 0:
        raise InvalidInputError(
            f"The `max_distance` of an embedder must be a number above 0, got {shown(distance)}."
        )
    return (
        identity,
        None if embedder.dimensions is None else _whole(embedder.dimensions, "dimensions"),
        None if distance is None else farthest,
    )


def _whole(value: object, name: str, unit: str = "a whole number", least: int = 1) -> int:
    """Return a number that an embedder says of itself.

    Raises:
        InvalidInputError: It is none, or too small.
    """
    if isinstance(value, SupportsIndex) and not isinstance(value, bool) and operator.index(value) >= least:
        return operator.index(value)
    raise InvalidInputError(
        f"The `{name}` of an embedder must be {unit} of at least {least}, got {shown(value)}."
    )


def _function_of(embedder: Embedder) -> EmbeddingFunction:
    if isinstance(embedder, TokenEmbedder):
        methods = ("embed", "embed_query", "embed_tokens")
        asynchronous = [name for name in methods if is_asynchronous(getattr(embedder, name, None))]
        if asynchronous:
            raise InvalidInputError(
                f"An embedder that has `embed_tokens` must be synchronous: `{asynchronous[0]}` of {embedder.identity!r} is not. "
                "It is called on a thread of its own."
            )
        return _TokenRows(embedder)
    return (_AsynchronousRows if inspect.iscoroutinefunction(embedder.embed) else _Rows)(embedder)


def _chromas_model(function: EmbeddingFunction) -> EmbedderFunction | None:
    """Return our MiniLM in place of Chroma's two functions for it, where Chroma's model is on the disk: same vectors, faster."""
    from aiochroma.embedding.minilm import MiniLmEmbedder, chromas_folder

    if kind_of(function) not in _CHROMAS_FUNCTIONS or not (chromas_folder() / "model.onnx").is_file():
        return None
    try:
        return adapted(MiniLmEmbedder(chromas_folder()))
    except (EmbedderError, MissingExtraError) as error:
        log.warning("embedder.slower", function=kind_of(function), reason=str(error))
        return None


_CHROMAS_FUNCTIONS = frozenset(
    {
        "chromadb.api.types.DefaultEmbeddingFunction",
        "chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2.ONNXMiniLM_L6_V2",
    }
)


def is_langchain(embedder: object) -> TypeGuard[_LangChainEmbeddings]:
    """Tell whether something has the two methods of LangChain's ``Embeddings``."""
    return all(callable(getattr(embedder, name, None)) for name in ("embed_documents", "embed_query"))


def _langchain_identity(embeddings: _LangChainEmbeddings) -> str:
    """Return a name for LangChain's embeddings: their class, and their model, which is an attribute of one of two names."""
    kind = type(embeddings)
    model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
    named = f":{model}" if isinstance(model, str) else ""
    return f"langchain:{kind.__module__}.{kind.__qualname__}{named}"


class _Window(TypedDict, total=False):
    """The arguments of :class:`EmbedderFunction` for an embedder that reads only the beginning of a text."""

    window: int
    count_tokens: Callable[[str], int]


def _window(embedder: object) -> _Window:
    """Return how much of a text an embedder reads, if it says so.

    Raises:
        InvalidInputError: Its window is not a number of tokens above 0.
    """
    window = getattr(embedder, "window", None)
    chromas_name_for_it = getattr(embedder, "max_tokens", None)
    if window is None and callable(chromas_name_for_it):
        window = chromas_name_for_it()
    if window is None:
        return {}
    count = getattr(embedder, "count_tokens", None)
    return {
        "window": _whole(window, "window", "a number of tokens"),
        "count_tokens": len if count is None else partial(tokens_of, embedder, count),
    }
