"""Writing a benchmark's report into a folder: ``report.html``, ``report.md``, ``results.jsonl``."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

from stager.core.bench import page as bench_page
from stager.core.bench.reports import BenchResults
from stager.core.errors import from_oserror
from stager.core.units import shown

PAGE, TWIN = "report.html", "report.md"


def prepare_folder(folder: str) -> None:
    """Make `folder` unless it is there, and prove that a file can be written there: before the hours, not after them.

    Raises what an ``OSError`` becomes when it cannot be written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
    except OSError as exc:
        raise _failed(exc, folder) from exc


def write_report(results: BenchResults, folder: str) -> None:
    """Write the three files into `folder`, which is made unless it is there; those of an earlier report are replaced.

    Each file is whole or the old one. Raises `NotFound`, `AccessDenied` or `LocalIOError` when it cannot be written.
    """
    lines = "".join(f"{line}\n" for _, line in bench_page.json_lines(results))
    files = {
        bench_page.LINES: lines,
        TWIN: bench_page.markdown(results),
        PAGE: bench_page.html(results),
    }
    parts: dict[str, str] = {}
    try:
        os.makedirs(folder, exist_ok=True)
        for name, text in files.items():
            parts[name] = _written(folder, name, text)
        for name in files:
            os.replace(parts[name], os.path.join(folder, name))
            del parts[name]
    except OSError as exc:
        raise _failed(exc, folder) from exc
    finally:
        for part in parts.values():
            with suppress(OSError):
                os.unlink(part)


def _written(folder: str, name: str, text: str) -> str:
    """The name of a new file in `folder` that holds `text`, on the disk, with the permissions that new files have here."""
    fd, part = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    return part


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def _failed(exc: OSError, folder: str) -> Exception:
    error = from_oserror(exc, f"cannot write the report into `{shown(folder)}`")
    error.hint = error.hint or "give `--report` a folder that can be written"
    return error
