"""The result as Markdown."""

_HEAD = ("what", "rival", "rival's figure", "stager's figure", "ratio", "bar", "")


def markdown(rows):
    """A table with one line a row."""
    lines = [_HEAD, tuple("---" for _ in _HEAD)]
    for row in rows:
        verdict = {True: "pass", False: "FAIL", None: ""}[row.passed]
        lines.append((row.what, row.rival, row.theirs, row.ours, row.ratio, row.bar, verdict))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
