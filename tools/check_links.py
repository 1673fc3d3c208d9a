"""Checks that every relative link and anchor in the project's Markdown leads somewhere.

Links to other sites are left alone: whether those answer is no property of this repository.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("*.md", "docs/**/*.md", "deploy/**/*.md")

_FENCE = re.compile(r"^ {0,3}(```|~~~)")
_CODE_SPAN = re.compile(r"`+[^`]*`+")
_INLINE = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?(\S+?)>?(?:\s|$)")
_HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"", re.IGNORECASE)
_HTML_ANCHOR = re.compile(r"\b(?:id|name)=\"([^\"]+)\"")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Line number and line of ``text``, without what stands in fenced code."""
    fence = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _FENCE.match(line):
            if not fence:
                fence = match[1]
            elif fence == match[1]:
                fence = ""
        elif not fence:
            yield number, line


def links(text: str) -> Iterator[tuple[int, str]]:
    """Line number and target of every link and picture."""
    for number, line in prose(text):
        plain = _CODE_SPAN.sub("", line)
        for pattern in (_INLINE, _REFERENCE, _HTML):
            yield from ((number, target) for target in pattern.findall(plain))


def anchors(text: str) -> set[str]:
    """What a ``#fragment`` may name: the headings as code hosts spell them, and explicit ids."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for _, line in prose(text):
        found.update(_HTML_ANCHOR.findall(line))
        if heading := _HEADING.match(line):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])  # a link's text counts, its target does not
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return found


def broken_links(root: Path) -> Iterator[str]:
    """One sentence for each link under ``root`` that leads nowhere."""
    for document in sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)}):
        for number, target in links(document.read_text(encoding="utf-8")):
            if not _ELSEWHERE.match(target) and (why := _broken(root, document, target)):
                yield f"{document.relative_to(root)}:{number}: {target}: {why}"


def _broken(root: Path, document: Path, target: str) -> str:
    """Why the link leads nowhere; empty where it does lead somewhere."""
    path, _, fragment = unquote(target).partition("#")
    start = root if path.startswith("/") else document.parent
    goal = (start / path.lstrip("/")).resolve() if path else document
    if not goal.is_relative_to(root):
        return "leads out of the repository"
    if not goal.exists():
        return "there is no such file"
    if fragment and goal.suffix == ".md" and fragment not in anchors(goal.read_text(encoding="utf-8")):
        return f"{goal.name} has no such heading"
    return ""


def main() -> int:
    """Print what is broken; exit status 1 if anything is."""
    broken = list(broken_links(ROOT))
    print("\n".join(broken) or "Every link in the documentation leads somewhere.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
