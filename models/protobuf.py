"""Messages of Protocol Buffers taken apart and put together, for graphs where they are served.

The `onnx` package is not installed there. Only fields that matter are looked into; all others are
copied as they are, and once: what is put together stays in parts until somebody joins all of it.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_LONGEST: Final = 10  # bytes of a number

Parts = list[bytes | memoryview]  # of a message, in order


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: which field.
        body: its bytes without key and length; empty unless it has a length.
        whole: its bytes as they lie in the message.
        value: of a whole number; 0 for all else.
    """

    number: int
    body: memoryview
    whole: memoryview
    value: int


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message in order.

    Raises:
        ValueError: it is none, or not all of one.
    """
    place = 0
    while place < len(message):
        start = place
        key, place = _varint(message, place)
        wire, size, value = key & 7, 0, 0
        if wire == _VARINT:
            value, place = _varint(message, place)
        elif wire == _BYTES:
            size, place = _varint(message, place)
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("it is not a protobuf message")
        body = message[place : place + size]
        place += size
        if place > len(message):
            raise ValueError("it is cut off")
        yield Field(key >> 3, body, message[start:place], value)


def bodies(message: memoryview, number: int) -> list[memoryview]:
    """The bodies of all fields of this number."""
    return [field.body for field in fields(message) if field.number == number]


def texts(message: memoryview, number: int) -> list[str]:
    """The strings of this number."""
    return [bytes(body).decode() for body in bodies(message, number)]


def text(message: memoryview, number: int) -> str:
    """The first string of this number, empty where there is none."""
    return next(iter(texts(message, number)), "")


def whole_number(message: memoryview, number: int) -> int:
    """The first whole number of this number, 0 where there is none, as the format has it."""
    return next((field.value for field in fields(message) if field.number == number), 0)


def with_length(number: int, *body: bytes | memoryview) -> Parts:
    """A field that holds a string or a message, which may itself come in parts."""
    size = sum(len(part) for part in body)
    return [_encoded(number << 3 | _BYTES) + _encoded(size), *body]


def with_value(number: int, value: int) -> bytes:
    """A field that holds a whole number, at least 0."""
    return _encoded(number << 3 | _VARINT) + _encoded(value)


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return the number at `place` and where it ends."""
    value = 0
    for shift in range(0, 7 * _LONGEST, 7):
        if place == len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("it is cut off")


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
