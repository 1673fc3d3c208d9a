"""What a server said, made fit for a log: short, one line, and never quoting a row or a key."""

from __future__ import annotations

from collections.abc import Sequence

QUOTE = 16
"""A run of this many characters that a message shares with a text counts as quoting it."""
LONGEST_SEARCH = 1 << 20
LONGEST_DETAILS = 200


def quotable(details: str, texts: Sequence[str] = (), secrets: Sequence[str] = ()) -> str:
    """Return the first line of a server's message, or a note in its place when it quotes one of ``texts``.

    Args:
        details: the message.
        texts: what was sent.
        secrets: keys, which are blotted out.
    """
    line = (details.strip().splitlines() or ["no reason given"])[0].rstrip(".")
    for secret in secrets:
        if secret:
            line = line.replace(secret, "***")
    line = line[:LONGEST_DETAILS]
    if sum(map(len, texts)) > LONGEST_SEARCH or any(_shares(line, text) for text in texts):
        return "its message is withheld because it may quote a row; see the server's log"
    return line


def _shares(line: str, text: str) -> bool:
    stripped = text.strip()
    if len(stripped) <= QUOTE:
        return len(stripped) > 3 and stripped in line
    return any(line[i : i + QUOTE] in text for i in range(max(0, len(line) - QUOTE) + 1) if len(line) >= QUOTE)
