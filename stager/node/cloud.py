"""Whether this node is a machine of Alibaba Cloud, where the internal endpoints of its services can be reached."""

from __future__ import annotations

from contextlib import suppress

_DMI = "sys/class/dmi/id"
_FIELDS = ("sys_vendor", "product_name", "chassis_asset_tag")


def is_alibaba(root: str = "/") -> bool:
    """True when the firmware says so. Asks nobody over the network; False where containers hide the firmware's words."""
    for field in _FIELDS:
        with suppress(OSError), open(f"{root.rstrip('/')}/{_DMI}/{field}", "rb") as file:
            if b"alibaba" in file.read(256).lower():
                return True
    return False
