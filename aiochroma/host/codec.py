"""Plain data and registered types as MessagePack: what comes out is equal, in value and type, to what went in.

Strict: a class that is neither plain nor registered is refused before anything is sent, instead of silently becoming
something else. Nothing that is decoded runs code: a registered type is made by the function that was registered for it.

Knows neither sockets nor Chroma; numpy is imported when the first array comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import msgpack

from aiochroma._types import Vector
from aiochroma.host.frames import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


__all__ = ["Codec", "Decoding", "Rows"]

_DEPTH = 32
"""How deep registered types may be nested in each other when they are decoded; each level takes room on the C stack."""

_MOST_ITEMS = 2**24
_PIECE_BYTES = 128 * 1024
_MOST_PIECE_BYTES = 2**20
_PIECE_DEPTH = 3
_CONTAINERS = frozenset({dict, list})

_TUPLE, _INTEGER, _ARRAY, _SCALAR, _ROWS, _UUID = range(1, 7)
_FIRST_FREE = 10

_NUMERIC = frozenset("fiub")
_NARROWED = "f8<f4"
_DTYPES = frozenset(
    f"{order}{kind}"
    for order, kinds in (
        ("<", ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")),
        ("|", ("b1", "i1", "u1")),
    )
    for kind in kinds
) | {_NARROWED}


class Rows:
    """A list of equally long vectors, which travels as one array and arrives as a list again.

    Args:
        vectors: Arrays of one dimension, one length and one type.
    """

    __slots__ = ("vectors",)

    def __init__(self, vectors: list[Vector]) -> None:
        self.vectors = vectors

    @staticmethod
    def fitting(value: Any) -> Any:
        """Return a list of vectors as rows, or the value itself where it is none."""
        if type(value) is not list or not value or type(value[0]).__module__ != "numpy":
            return value
        first = value[0]
        shape, dtype = first.shape, first.dtype
        if len(shape) != 1 or dtype.str not in _DTYPES:
            return value
        kind = type(first)
        if all(type(vector) is kind and vector.shape == shape and vector.dtype == dtype for vector in value):
            return Rows(value)
        return value


class Codec:
    """Encodes and decodes; one may be used by several threads at once.

    Further types are registered before the first use, on both sides alike.
    """

    def __init__(self) -> None:
        self._encoders: dict[type, tuple[int, Callable[[Any], bytes]]] = {
            tuple: (_TUPLE, lambda value: self._pack(list(value))),
            UUID: (_UUID, lambda value: value.bytes),
            Rows: (_ROWS, self._rows_to_bytes),
        }
        self._decoders: dict[int, Callable[[bytes, int], Any]] = {
            _TUPLE: lambda data, depth: tuple(_list(self._unpack(data, depth))),
            _UUID: lambda data, _: UUID(bytes=data),
            _INTEGER: lambda data, _: int.from_bytes(data, "little", signed=True),
            _ARRAY: self._array,
            _SCALAR: lambda data, depth: self._array(data, depth)[()],
            _ROWS: lambda data, depth: list(self._array(data, depth)),
        }

    def register(
        self, code: int, kind: type, to_plain: Callable[[Any], Any], from_plain: Callable[[Any], Any]
    ) -> None:
        """Let a class travel.

        Args:
            code: Its number on the wire, from 10 to 127.
            kind: The class; instances of subclasses do not travel with it.
            to_plain: Returns plain data, or data of registered types.
            from_plain: Makes an instance of it again.
        """
        if not _FIRST_FREE <= code <= 127 or code in self._decoders or kind in self._encoders:
            raise ValueError(f"{kind.__qualname__} cannot be registered as {code}: one of them is taken.")
        self._encoders[kind] = (code, lambda value: self._pack(to_plain(value)))
        self._decoders[code] = lambda data, depth: from_plain(self._unpack(data, depth))

    # -- encoding --------------------------------------------------------------------------------------------------------

    def encode(self, value: Any) -> bytes:
        """Return a value as bytes.

        Raises:
            TypeError: There is something in it that does not travel; the message names its class.
            ValueError: It is nested too deep.
        """
        return self._pack(value)

    def pieces(self, value: Any) -> Iterator[bytes]:
        """Yield the bytes of a large value, a piece at a time: between two pieces other threads and messages have their turn.

        Raises:
            TypeError: As :meth:`encode`; pieces may have been yielded before.
        """
        packer = self._packer(autoreset=False)
        yield from self._walk(packer, value, _PIECE_DEPTH)
        yield from _taken(packer)

    def _walk(self, packer: Any, value: Any, depth: int) -> Iterator[bytes]:
        if depth and type(value) is dict:
            packer.pack_map_header(len(value))
            for key, item in value.items():
                packer.pack(key)
                yield from self._walk(packer, item, depth - 1)
        elif depth and type(value) is list:
            packer.pack_array_header(len(value))
            for item in value:
                if depth > 1 and type(item) in _CONTAINERS:
                    yield from self._walk(packer, item, depth - 1)
                    continue
                packer.pack(item)
                if len(packer.getbuffer()) > _PIECE_BYTES:
                    yield from _taken(packer)
        else:
            packer.pack(value)
            if len(packer.getbuffer()) > _PIECE_BYTES:
                yield from _taken(packer)

    def _packer(self, *, autoreset: bool = True) -> Any:
        return msgpack.Packer(
            default=self._default, strict_types=True, unicode_errors="surrogatepass", autoreset=autoreset
        )

    def _pack(self, value: Any) -> bytes:
        return cast("bytes", self._packer().pack(value))

    def _default(self, value: Any) -> Any:
        kind = type(value)
        known = self._encoders.get(kind)
        if known is not None:
            return msgpack.ExtType(known[0], known[1](value))
        if kind is int:
            return msgpack.ExtType(
                _INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            )
        if kind.__module__ == "numpy" and hasattr(value, "dtype") and value.dtype.kind in _NUMERIC:
            return self._numpy(value)
        for plain in (str, int, float, bytes, list, dict):
            # As Chroma stores it: the value of a text that is also a member of an enumeration, and so on.
            if isinstance(value, plain):
                return _PLAIN[plain](value)
        raise TypeError(
            f"A value of the class {kind.__module__}.{kind.__qualname__} cannot be sent to another process: {value!r:.100}"
        )

    def _numpy(self, value: Any) -> Any:
        dtype = value.dtype.newbyteorder("<").str
        if dtype not in _DTYPES:
            raise TypeError(f"An array of type {value.dtype} cannot be sent to another process.")
        is_array = type(value).__name__ == "ndarray"
        return msgpack.ExtType(_ARRAY if is_array else _SCALAR, self._array_to_bytes(value))

    def _array_to_bytes(self, value: Any) -> bytes:
        import numpy as np

        dtype = value.dtype.newbyteorder("<").str
        if dtype == "<f8" and value.shape:
            # Chroma's vectors are 32-bit numbers; they travel as such where nothing is lost.
            with np.errstate(over="ignore"):
                narrow = value.astype("<f4")
            if np.array_equal(narrow, value):
                return self._pack([_NARROWED, list(value.shape), narrow.tobytes()])
        return self._pack([dtype, list(value.shape), value.astype(dtype, copy=False).tobytes()])

    def _rows_to_bytes(self, rows: Rows) -> bytes:
        import numpy as np

        return self._array_to_bytes(np.stack(rows.vectors))

    # -- decoding --------------------------------------------------------------------------------------------------------

    def decode(self, data: bytes) -> Any:
        """Return the value that was encoded.

        Raises:
            ProtocolError: These are no such bytes.
        """
        try:
            return self._unpack(data, 0)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever bytes make of msgpack and of the types
            raise ProtocolError(f"A message cannot be decoded: {type(error).__name__}: {error}") from None

    def decoding(self, limit: int) -> Decoding:
        """Begin to decode a message that comes in parts, of at most ``limit`` bytes."""
        return Decoding(msgpack.Unpacker(max_buffer_size=0, **self._options(0)), limit)

    def _unpack(self, data: bytes, depth: int) -> Any:
        return msgpack.unpackb(data, **self._options(depth))

    def _options(self, depth: int) -> dict[str, Any]:
        def hook(code: int, data: bytes) -> Any:
            decoder = self._decoders.get(code)
            if decoder is None or depth >= _DEPTH:
                raise ProtocolError(
                    f"A value of the unknown type {code} came, or one that is nested too deep."
                )
            return decoder(data, depth + 1)

        return {
            "ext_hook": hook,
            "strict_map_key": False,
            "unicode_errors": "surrogatepass",
            "max_array_len": _MOST_ITEMS,
            "max_map_len": _MOST_ITEMS,
        }

    def _array(self, data: bytes, depth: int) -> Any:
        import numpy as np

        dtype, shape, values = _list(self._unpack(data, depth))
        if dtype not in _DTYPES:
            raise ProtocolError(f"An array of the unknown type {dtype!r} came.")
        if dtype == _NARROWED:
            return np.frombuffer(values, "<f4").reshape(shape).astype(np.float64)
        return np.frombuffer(values, dtype).reshape(shape).copy()


class Decoding:
    """A value that is decoded as its bytes arrive."""

    def __init__(self, unpacker: Any, limit: int) -> None:
        self._unpacker = unpacker
        self._left = limit
        self._values: list[Any] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            ProtocolError: They do not belong to one value, or are too many.
        """
        self._left -= len(data)
        if self._left < 0:
            raise ProtocolError("A message is too large.")
        try:
            self._unpacker.feed(data)
            self._values.extend(self._unpacker)
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever bytes make of msgpack and of the types
            raise ProtocolError(f"A message cannot be decoded: {type(error).__name__}: {error}") from None
        if len(self._values) > 1:
            raise ProtocolError("Two values came where one message was expected.")

    def value(self) -> Any:
        """Return the value.

        Raises:
            ProtocolError: It is not complete.
        """
        if not self._values:
            raise ProtocolError("A message ended before its end.")
        return self._values[0]


_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__index__,
    float: float.__float__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    list: list.copy,
    dict: dict.copy,
}


def _taken(packer: Any) -> Iterator[bytes]:
    """Yield what has been packed so far."""
    data = packer.bytes()
    packer.reset()
    for start in range(0, len(data), _MOST_PIECE_BYTES):
        yield data[start : start + _MOST_PIECE_BYTES]


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ProtocolError("A list was expected.")
    return value
