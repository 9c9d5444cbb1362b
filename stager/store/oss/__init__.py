"""Objects in Alibaba Cloud OSS: oss2 signs and parses, stager's own connections carry the bytes."""

from stager.store.oss.endpoint import Endpoint, Style
from stager.store.oss.store import OssStore

__all__ = ["Endpoint", "OssStore", "Style"]
