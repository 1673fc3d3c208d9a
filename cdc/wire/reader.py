"""A cursor over one message that cannot read past its end."""

from __future__ import annotations

from struct import Struct
from typing import Final

from cdc.errors import DecodeError

_U16: Final = Struct(">H")
_U32: Final = Struct(">I")


class ByteReader:
    """Reads big-endian fields from ``body`` in order.

    Every method raises :class:`DecodeError`, naming the message and the byte, when the field is not there.

    Args:
        body: One whole message.
        name: What the message is called in errors; set once the tag is known.
    """

    __slots__ = ("_body", "_pos", "name")

    def __init__(self, body: bytes, name: str = "message") -> None:
        self._body = body
        self._pos = 0
        self.name = name

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._body) - self._pos

    def fail(self, what: str) -> DecodeError:
        """Return the error that says ``what`` is wrong at the current byte. Never carries the bytes themselves."""
        return DecodeError(f"pgoutput {self.name}, byte {self._pos} of {len(self._body)}: {what}")

    def byte(self) -> int:
        if self._pos >= len(self._body):
            raise self.fail("the message ends early")
        value = self._body[self._pos]
        self._pos += 1
        return value

    def u16(self) -> int:
        return int(self.fields(_U16)[0])

    def u32(self) -> int:
        return int(self.fields(_U32)[0])

    def fields(self, layout: Struct) -> tuple[int, ...]:
        """Read the fixed-size integers that ``layout`` describes."""
        self._need(layout.size)
        values = layout.unpack_from(self._body, self._pos)
        self._pos += layout.size
        return values

    def data(self) -> bytes:
        """Read a 32-bit length and that many bytes. A negative length reads as a huge one and fails."""
        length = self.u32()
        self._need(length)
        start = self._pos
        self._pos += length
        return self._body[start : self._pos]

    def string(self) -> str:
        """Read a NUL-terminated UTF-8 string."""
        end = self._body.find(0, self._pos)
        if end < 0:
            raise self.fail("a string has no end")
        try:
            text = self._body[self._pos : end].decode()
        except UnicodeDecodeError:
            raise self.fail("a string is not UTF-8") from None
        self._pos = end + 1
        return text

    def finish(self) -> None:
        """Check that nothing is left over."""
        if self.remaining:
            raise self.fail(f"{self.remaining} bytes too many")

    def _need(self, size: int) -> None:
        if self.remaining < size:
            raise self.fail(f"{size} bytes are expected and {self.remaining} are left")
