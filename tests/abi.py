"""The public interface as text: ``python tests/abi.py`` prints it, ``--write`` keeps it in data/abi.txt.

One item a line, with sizes as 64-bit machines have them.  The file is what a program that was compiled before counts
on.  Something new only adds lines.  Where a line changes or goes, such a program breaks, so RMPC_ABI
(include/rmpcore/api.h) has to go up first; --write refuses to keep it otherwise.

Not in it: sentinels (the last value of an enum moves when one is added) and the version.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import cffi
import headers

FILE = Path(__file__).with_name("data") / "abi.txt"
RAISE = "raise RMPC_ABI in include/rmpcore/api.h, then run python tests/abi.py --write"
WRITE = "run python tests/abi.py --write"


class Difference(NamedTuple):
    """What tells the interface from the one that was kept."""

    gone: list[str]
    """Lines that are there no more: something was changed or removed."""
    new: list[str]
    number_raised: bool
    """RMPC_ABI is higher than it was."""

    def verdict(self) -> str:
        """What is wrong and what to do about it; empty: nothing."""
        gone = "\n".join(f"- {line}" for line in self.gone)
        new = "\n".join(f"+ {line}" for line in self.new)
        if self.gone and not self.number_raised:
            return f"The interface was changed: programs compiled before would break. To do so, {RAISE}.\n{gone}\n{new}"
        if self.number_raised:
            return f"RMPC_ABI was raised, data/abi.txt is of the interface before. {WRITE.capitalize()}.\n{gone}\n{new}"
        return f"The interface has something new. {WRITE.capitalize()}.\n{new}" if self.new else ""


def number_of(lines: list[str]) -> int:
    """RMPC_ABI, which the first line has."""
    word, number = lines[0].split()
    assert word == "abi"
    return int(number)


def difference(kept: list[str], now: list[str]) -> Difference:
    """What changed since."""
    gone = [line for line in kept[1:] if line not in set(now)]
    new = [line for line in now[1:] if line not in set(kept)]
    if number_of(now) < number_of(kept):
        gone.insert(0, kept[0])
    return Difference(gone, new, number_of(now) > number_of(kept))


def interface() -> list[str]:
    """The interface as it is now, as the lines of the file."""
    ffi = cffi.FFI()
    ffi.cdef(headers.definitions())
    lines = []
    for function in headers.functions():
        lines.append(f"{'inline' if function.inline else 'function'} {function.name}: {function.type}")
    for tag, fields in headers.structs().items():
        kind = ffi.typeof(f"struct {tag}")
        lines.append(f"struct {tag}: size {ffi.sizeof(kind)}, align {ffi.alignof(kind)}")
        known = dict(kind.fields)
        for field in fields:
            at = known[field.name]
            lines.append(f"field {tag}.{field.name}: at {at.offset}, size {ffi.sizeof(at.type)}, {field.type}")
    for tag, names in headers.enums().items():
        kind = ffi.typeof(f"enum {tag}")
        lines.append(f"enum {tag}: size {ffi.sizeof(kind)}")
        lines += [f"value {tag}.{name}: {kind.relements[name]}" for name in names if not name.endswith("_END")]
    for name, constant in headers.macros().items():
        if name != "RMPC_ABI" and not name.startswith("RMPC_VERSION_"):
            lines.append(f"macro {name}: {constant.value:#x}, {constant.type}")
    return [f"abi {headers.macros()['RMPC_ABI'].value}", *sorted(lines)]


def kept() -> list[str]:
    """The lines of the file."""
    return FILE.read_text().splitlines()


def main() -> int:
    """Print or keep the interface."""
    now = interface()
    if sys.argv[1:] != ["--write"]:
        print("\n".join(now))
        return 0
    if FILE.exists():
        found = difference(kept(), now)
        if found.gone and not found.number_raised:
            print(found.verdict())
            return 1
    FILE.write_text("\n".join(now) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
