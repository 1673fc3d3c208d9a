"""Parsers of single settings: text to value, or ValueError that says what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cdc.errors import ConfigError

Parse = Callable[[str], Any]
"""Turns what was typed into a value, or raises ValueError with what is allowed."""


def choice(*allowed: str) -> Parse:
    """Return a parser of one of ``allowed``."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError("one of " + ", ".join(allowed))
        return text

    return parse


def integer(low: int, high: int) -> Parse:
    """Return a parser of whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9](_?[0-9])*", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def number(low: float, high: float) -> Parse:
    """Return a parser of numbers from ``low`` to ``high``."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not low <= float(text) <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return float(text)

    return parse


_UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 1000, "MB": 10**6, "GB": 10**9}


def size(text: str) -> int:
    """Parse a size in bytes, with or without a unit."""
    match = re.fullmatch(r"([0-9]+)\s*([A-Za-z]*)", text)
    if not match or match[2].upper() not in _UNITS or int(match[1]) * _UNITS[match[2].upper()] < 1 << 20:
        raise ValueError("a size of at least 1MiB, such as 64MiB or 67108864")
    return int(match[1]) * _UNITS[match[2].upper()]


def size_or_zero(text: str) -> int:
    """Parse a size in bytes, or 0 for none."""
    return 0 if text == "0" else size(text)


def identifier(text: str) -> str:
    """Parse any name that PostgreSQL can hold."""
    if "\0" in text or not 1 <= len(text.encode()) <= 63:
        raise ValueError("a PostgreSQL name of 1 to 63 bytes")
    return text


def schema(text: str) -> str:
    """Parse a schema's name."""
    if text.startswith("pg_") or text == "information_schema":
        raise ValueError("a schema that is not the server's own")
    return identifier(text)


def slot(text: str) -> str:
    """Parse a replication slot's name."""
    if not re.fullmatch(r"[a-z0-9_]{1,63}", text):
        raise ValueError("1 to 63 lower-case letters, digits and underscores")
    return text


def text(text: str) -> str:
    """Take the text as it is."""
    return text


def dsn(text: str) -> str:
    """Check that libpq can read a URL or key=value string."""
    from cdc.postgres.connect import URL_SHAPE, parse_dsn  # here, so that `walvec --help` need not load libpq

    try:
        parse_dsn(text)
    except ConfigError as exc:
        raise ValueError(f"one that libpq reads: {URL_SHAPE} ({exc.message})") from None
    return text


def triton_urls(text: str) -> str:
    """Parse one or several Triton URLs of one scheme."""
    urls = [part.strip() for part in text.split(",")]
    schemes = {url.partition("://")[0] for url in urls}
    if any(not re.fullmatch(r"(grpc|grpcs|http|https)://[^\s/@]+(/\S*)?", url) for url in urls) or len(schemes) > 1:
        raise ValueError("grpc://host:port, grpcs://, http:// or https://; several of one kind with commas between")
    return ",".join(urls)


def http_url(text: str) -> str:
    """Parse the base URL of a web API. A password has no place in it."""
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", text):
        raise ValueError("https://host, http://host:port, or one with a path")
    return text


def headers(text: str) -> str:
    """Parse HTTP headers, ``name=value``, one a line or with commas between."""
    for name, value in header_pairs(text):
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[ -~]+", value):
            raise ValueError("name=value, one a line or with commas between")
    return text


def header_pairs(text: str) -> list[tuple[str, str]]:
    """Return the names and values of headers as :func:`headers` takes them."""
    lines = text.splitlines() if "\n" in text else text.split(",")
    parts = (line.partition("=") for line in lines if line.strip())
    return [(name.strip(), value.strip()) for name, _, value in parts]


def token(text: str) -> str:
    """Parse a bearer token."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("a token of printable ASCII with no blank")
    return text


def file(text: str) -> str:
    """Parse the path of a file or folder that is there."""
    if not Path(text).exists():
        raise ValueError("the path of a file that is there")
    return text


def folders(text: str) -> str:
    """Parse the absolute paths of folders, with commas between."""
    if not all(Path(part.strip()).is_absolute() and Path(part.strip()).is_dir() for part in text.split(",")):
        raise ValueError("absolute paths of folders that are there, with commas between")
    return text


def http(text: str) -> str:
    """Parse a listening address, or ``off``."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:]+):([0-9]{1,5})", text)
    if text != "off" and (not match or not 0 <= int(match[2]) <= 65535):
        raise ValueError("host:port, or off")
    return text
