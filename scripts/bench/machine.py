"""What machine this is, and whether somebody else disturbs it."""

import os


def _first(path, default="?"):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return default


def cache_drops():
    """How often anybody dropped the page cache of the whole machine since boot."""
    with open("/proc/vmstat", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("drop_pagecache ")), 0)


def available():
    """Bytes of memory that could be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


def user_seconds():
    """User-mode CPU seconds of everybody since boot."""
    user, nice = _first("/proc/stat").split()[1:3]
    return (int(user) + int(nice)) / os.sysconf("SC_CLK_TCK")


def busy():
    """A warning when the machine already has something to do, else an empty string."""
    load = os.getloadavg()[0]
    return f"load average {load:.2f} before the first run: others use this machine" if load > 1 else ""


def reports_free_memory():
    """Whether this is a virtual machine that gives free memory back to its host (after two seconds)."""
    return os.path.exists("/sys/module/page_reporting/parameters/page_reporting_order")


def pages_out():
    """What DAMON does here on its own: it may take cold pages out of the cache although memory is free."""
    base = "/sys/kernel/mm/damon/admin/kdamonds"
    try:
        count = int(_first(f"{base}/nr_kdamonds", "0"))
    except ValueError:
        return ""
    found = set()
    for at in range(count):
        if _first(f"{base}/{at}/state") == "on":
            found.add(_first(f"{base}/{at}/contexts/0/schemes/0/action", ""))
    return ", ".join(sorted(found - {"", "?"}))


def lru():
    """Which page reclaim is in force: `classic` or `MGLRU`."""
    bits = _first("/sys/kernel/mm/lru_gen/enabled", "0x0000")
    return f"MGLRU ({bits})" if int(bits, 16) & 1 else "classic"


def _mount(folder):
    """(mount point, filesystem type, device) of `folder`."""
    found = ("/", "?", "?")
    real = os.path.realpath(folder)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            point, (fstype, device) = left.split()[4], right.split()[:2]
            if len(point) >= len(found[0]) and (real + "/").startswith(point.rstrip("/") + "/"):
                found = (point, fstype, device)
    return found


def facts(folder):
    """Label and text pairs that a reader needs to judge the numbers."""
    point, fstype, device = _mount(folder)
    number = os.stat(folder).st_dev
    bdi = f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb"
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [
        ("kernel", os.uname().release),
        ("cores", str(os.cpu_count())),
        ("memory", f"{total / 2**30:.1f} GiB, {available() / 2**30:.1f} available"),
        ("filesystem", f"{fstype} on {device} at {point}, read_ahead_kb {_first(bdi)}"),
        ("page reclaim", lru() + (f", and DAMON: {pages_out()}" if pages_out() else "")),
        ("free memory", "goes back to the host of this machine" if reports_free_memory() else "stays here"),
        ("load", f"{os.getloadavg()[0]:.2f}"),
    ]
