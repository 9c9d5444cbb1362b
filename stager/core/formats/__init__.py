"""Model formats: which files a checkpoint consists of, in which order engines load them, and whether it is whole.

Nothing here opens a file: bytes come through a `Read` callable of the caller.
"""

from stager.core.formats.check import check_weight
from stager.core.formats.detect import detect
from stager.core.formats.names import is_weight
from stager.core.formats.source import Read

__all__ = ["Read", "check_weight", "detect", "is_weight"]
