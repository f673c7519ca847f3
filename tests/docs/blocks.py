"""The blocks of code in the documentation, with what a comment before them says of their test.

``<!-- test: NAME -->`` names what a block needs around it (``surroundings.py``), and
``<!-- not tested: REASON -->`` leaves it out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "find_blocks"]

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in (
        *("README.md", "inferlet_py/README.md", "docs/*.md", "docs/*/*.md"),
        "examples/*/README.md",
    )
    for path in ROOT.glob(pattern)
    if path.name != "api.md"  # signatures, which another test compares with the code
)

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>test|not tested): (?P<what>.*?) -->\n)?"
    r"(?P<fence>`{3,})(?P<language>[a-z]+)\n(?P<text>.*?)^(?P=fence)$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page: That it stands on.
        line: Of its first line.
        language: As the page says.
        text: Without the fences.
        surroundings: Named for its test; empty for those of all.
        reason: Why it is not tested; empty if it is.
    """

    page: Path
    line: int
    language: str
    text: str
    surroundings: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def find_blocks(page: Path, text: str, language: str) -> list[Block]:
    """Return the blocks of a page that are in a language."""
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        if match["language"] != language:
            continue
        line = text.count("\n", 0, match.start("text")) + 1
        what = match["what"] or ""
        is_tested = match["mark"] != "not tested"
        found.append(
            Block(
                *(page, line, language, match["text"]),
                surroundings=what if is_tested else "",
                reason="" if is_tested else what,
            )
        )
    return found
