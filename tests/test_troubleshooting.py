"""The README's troubleshooting table quotes what stager says, word for word."""

from __future__ import annotations

import ast
import re

from tests.harness import ROOT

ERRNO = ("no such file or directory (ENOENT)",)  # made of the C library's words


def said() -> list[str]:
    """Every text in stager's source, with a NUL where something is filled in."""
    texts = []
    for path in (ROOT / "stager").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_messages_are_stagers_own() -> None:
    section = (ROOT / "README.md").read_text().split("### Troubleshooting", 1)[1].split("\n## ", 1)[0]
    messages = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(messages) > 15
    texts = said()
    assert [m for m in messages if m not in ERRNO and not any(m in text for text in texts)] == []
