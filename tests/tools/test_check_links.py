from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_links import anchors, broken_links

PAGE = """# A page: *with* `signs` & 2 words
## Twice
## Twice
<a id="by-hand"></a>
```sh
# no heading [and](no-link.md)
```
"""


def test_anchors_are_spelt_as_code_hosts_do() -> None:
    assert anchors(PAGE) == {"a-page-with-signs--2-words", "twice", "twice-1", "by-hand"}


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("[x](docs/page.md)", ""),
        ("[x](docs/page.md#twice-1)", ""),
        ("[x](docs/page.md#twice-2)", "no such heading"),
        ("[x](#readme)", ""),
        ("[x](#nowhere)", "no such heading"),
        ("[x](gone.md)", "no such file"),
        ("![p](docs/picture.svg)", "no such file"),
        ('<img src="gone.svg">', "no such file"),
        ("[x][ref]\n\n[ref]: gone.md", "no such file"),
        ("[x](../outside.md)", "out of the repository"),
        ("[x](https://example.org/gone)", ""),
        ("`[x](gone.md)`", ""),
        ("```\n[x](gone.md)\n```", ""),
    ],
)
def test_links(tmp_path: Path, link: str, why: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text(PAGE)
    (tmp_path / "README.md").write_text(f"# Readme\n\n{link}\n")
    found = list(broken_links(tmp_path))
    assert [why in sentence for sentence in found] == ([True] if why else [])
    assert all(sentence.startswith("README.md:") for sentence in found)
