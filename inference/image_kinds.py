"""What a file's first bytes say it is: enough to refuse what no image model should be given.

A picture of a few kilobytes can unpack to gigabytes, so its width and height are read here, too, before anybody
decodes it. Sources: the specifications of PNG, JPEG (ITU T.81), GIF89a, WebP (RFC 9649) and BMP.
"""

from __future__ import annotations

from inference.errors import TextRefused

MOST_PIXELS = 100_000_000
"""As much as a camera gives; three bytes each once it is decoded."""
_NO_SIZE = frozenset({0xC4, 0xC8, 0xCC})
"""JPEG segments between the frame headers (C0 to CF) that are none."""


def check_image(content: bytes) -> None:
    """Prove that ``content`` begins as an image of a known kind and a bearable size.

    Raises:
        TextRefused: it does not.
    """
    size = _png(content) or _jpeg(content) or _gif(content) or _webp(content) or _bmp(content)
    if size is None:
        raise TextRefused("It is no PNG, JPEG, GIF, WebP or BMP image, or not a whole one.", reason="not_an_image")
    width, height = size
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise TextRefused(
            f"The image has {width} x {height} pixels, where 1 to {MOST_PIXELS // 1_000_000} million are allowed.",
            reason="image_pixels",
        )


Size = tuple[int, int]


def _png(content: bytes) -> Size | None:
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or content[12:16] != b"IHDR" or b"IEND" not in content[-64:]:
        return None
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _jpeg(content: bytes) -> Size | None:
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in _NO_SIZE:
            return int.from_bytes(content[at + 7 : at + 9], "big"), int.from_bytes(content[at + 5 : at + 7], "big")
        at += 1 if kind == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None


def _gif(content: bytes) -> Size | None:
    if content[:6] not in (b"GIF87a", b"GIF89a") or len(content) < 13:
        return None
    return int.from_bytes(content[6:8], "little"), int.from_bytes(content[8:10], "little")


def _webp(content: bytes) -> Size | None:
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    if int.from_bytes(content[4:8], "little") + 8 > len(content) + 1:
        return None  # cut short
    match content[12:16]:
        case b"VP8 ":
            return (
                int.from_bytes(content[26:28], "little") & 0x3FFF,
                int.from_bytes(content[28:30], "little") & 0x3FFF,
            )
        case b"VP8L":
            bits = int.from_bytes(content[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    return None


def _bmp(content: bytes) -> Size | None:
    if content[:2] != b"BM" or len(content) < 26:
        return None
    width = int.from_bytes(content[18:22], "little", signed=True)
    return width, abs(int.from_bytes(content[22:26], "little", signed=True))
