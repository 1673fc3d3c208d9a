"""Secrets and row text taken out of whatever is about to be shown.

Two nets, because neither is enough: values known to be secret are replaced wherever they occur, and whatever looks
like a secret (a password in a connection string, userinfo in a URL, a value under a telling name) is replaced too.
Too much is hidden rather than too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

MASK = "***"

_NAME = r"(?:password|passwd|passphrase|pwd|token|secret|dsn|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key)"
_KEY = re.compile(
    rf"(?:^|[_\-.\s]){_NAME}$|password|secret|(?:^|[_\-.\s])(?:authorization|credentials?|conninfo)$", re.IGNORECASE
)
_VALUE = r"""(?:"(?:\\.|[^"\\])*"?|'(?:\\.|''|[^'\\])*'?|[^\s"']+)"""
_ASSIGNMENT = re.compile(rf"""({_NAME}["']?\s*[=:]\s*){_VALUE}""", re.IGNORECASE)
_SQL_PASSWORD = re.compile(r"(\bpassword\s+)'(?:''|[^'])*'?", re.IGNORECASE)  # ALTER ROLE … PASSWORD '…'
_AUTHORIZATION = re.compile(r"\b(bearer|basic)\s+[\w\-.~+/=]{4,}", re.IGNORECASE)
# With a colon before the first slash, up to the last @ of the word, for passwords with an unescaped @ or / in them.
_USERINFO = re.compile(r"""(\b[a-z][a-z0-9+.\-]*://)(?:[^\s/]*:\S*@|[^\s/?#"'<>]*@)""", re.IGNORECASE)
# PostgreSQL quotes row values in these fields of its messages, over several lines where a value has some; HINT never
# holds any. A traceback goes on after the exception's text with one of two sentences.
_SERVER_FIELDS = re.compile(
    r"^[ \t]*(DETAIL|CONTEXT|LINE \d+|QUERY|STATEMENT):.*?"
    r"(?=^[ \t]*HINT:|^\nThe above exception was|^\nDuring handling of|\Z)",
    re.MULTILINE | re.DOTALL,
)
_COUNTS = (bool, int, float, type(None))


def _wherever(secret: str) -> str:
    r"""Return the pattern of a secret: anywhere, but a common word (``postgres``) is no part of another.

    ``\n`` and its like, as ``repr`` writes them, end with a letter that is no part of the word behind it.
    """
    if not re.fullmatch(r"[A-Za-z]+", secret):
        return re.escape(secret)
    return rf"(?:(?<![^\W_])|(?<=\\[abfnrtv])){secret}(?![^\W_])"


class Redactor:
    """Replaces secrets with ``***``.

    Args:
        secrets: Values known to be secret; those shorter than 4 characters would hide half of every message and are
            left to the patterns. One of letters alone is hidden as a whole word only.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: frozenset[str] = frozenset()
        self._known: re.Pattern[str] | None = None
        self.hide(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Replace these values, too, from now on."""
        new = {form for s in secrets for form in (s, quote(s, safe=""), quote(s)) if len(s) >= 4}
        if not new <= self._forms:
            self._forms = self._forms | new
            ordered = sorted(self._forms, key=len, reverse=True)  # a secret that contains another goes first
            self._known = re.compile("|".join(map(_wherever, ordered)))

    def text(self, text: str) -> str:
        """Return ``text`` without secrets and without the fields in which PostgreSQL quotes rows."""
        text = _SERVER_FIELDS.sub(rf"\1: {MASK}\n", text)
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _USERINFO.sub(rf"\1{MASK}@", text)
        text = _AUTHORIZATION.sub(rf"\1 {MASK}", text)
        text = _SQL_PASSWORD.sub(rf"\1{MASK}", text)
        return _ASSIGNMENT.sub(rf"\1{MASK}", text)

    def value(self, value: object) -> object:
        """Return ``value`` without secrets: containers are rebuilt, strangers become their redacted ``repr``."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, _COUNTS):
            return value
        if isinstance(value, Mapping):
            return {self.text(str(k)): self.field(str(k), v) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item) for item in value]
        return self.text(str(value) if isinstance(value, BaseException) else repr(value))

    def field(self, name: str, value: object) -> object:
        """Return ``value`` as it may be shown under ``name``. Flags and None stay: they say whether, not what."""
        if _KEY.search(name) and not isinstance(value, bool | type(None)):
            return MASK
        return self.value(value)
