"""The counters as the kernel shows them: the DirectMap lines of /proc/meminfo, the direct_map lines of /proc/vmstat."""

from __future__ import annotations

import re

from rmpcore.maps import MachineMap
from rmpcore.state import State


def kernel_version(text: str) -> tuple[int, int] | None:
    """Major and minor number of a kernel release, None where it does not start with them."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", text)
    return (int(found[1]), int(found[2])) if found else None


def meminfo(state: State, machine_map: MachineMap) -> str:
    """The DirectMap lines of /proc/meminfo.  1 GiB pages have one only where they are in use (direct-map §9)."""
    rows = [("DirectMap4k", "direct_map_4k", 2), ("DirectMap2M", "direct_map_2m", 11)]
    if machine_map.large_pages == "1G":
        rows.append(("DirectMap1G", "direct_map_1g", 20))
    return "".join(f"{name + ':':<16}{state.counters[counter] << shift:>8} kB\n" for name, counter, shift in rows)


def vmstat(state: State, kernel: str) -> str:
    """The direct_map lines of /proc/vmstat; collapses are counted from kernel 6.15 on (direct-map §9)."""
    names = ["level2_splits", "level3_splits"]
    version = kernel_version(kernel)
    if version is not None and version >= (6, 15):
        names += ["level2_collapses", "level3_collapses"]
    return "".join(f"direct_map_{name} {state.counters[name]}\n" for name in names)
