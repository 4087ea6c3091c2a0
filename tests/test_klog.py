"""Events as kernel log lines: word for word what real hosts logged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rmpcore.inputs import load_map
from rmpcore.klog import kernel_log
from rmpcore.machine import Machine
from rmpcore.ops import EVENT_DTYPE, Event, EventKind, make_op

ROOT = Path(__file__).parents[1]
DUMPS = json.loads((ROOT / "tests/data/machines/rmp-dumps.json").read_text(encoding="utf-8"))
MILAN = ROOT / "examples/maps/dell-r6515-epyc7513-256g-snp.json"


def real_lines(source: str) -> list[str]:
    """The SEV-SNP lines of a real log, without their time stamps."""
    (dump,) = (d for d in DUMPS if source in d["source"])
    return [re.sub(r"^\[ *\d+\.\d+\] ", "", line) for line in dump["lines"] if "SEV-SNP: " in line]


def log(*events: Event, plain: bool = False) -> list[str]:
    return list(kernel_log(np.array([tuple(event) for event in events], dtype=EVENT_DTYPE), plain))


def test_failed_update_and_dump_of_a_region() -> None:
    """AMDSEV issue 245, line by line."""
    (dump,) = (d for d in DUMPS if "issues/245" in d["source"])
    entries = [(int(e["pfn"], 16), int(e["lo"], 16), int(e["hi"], 16)) for e in dump["entries"]]
    lines = log(
        Event(EventKind.RMPUPDATE_FAILED, level=1, code=2, a=0x56700),
        Event(EventKind.DUMP_REGION, a=0x56700, b=0x56600, c=0x56800),
        *(Event(EventKind.DUMP_ENTRY, a=pfn, b=lo, c=hi) for pfn, lo, hi in entries),
    )
    assert lines == real_lines("issues/245")


def test_a_machine_logs_what_the_host_logged(backend: str) -> None:
    """The same dump from a machine: the entries are put in the RMP, and the firmware's refusal is injected."""
    (dump,) = (d for d in DUMPS if "issues/245" in d["source"])
    machine = Machine(load_map(MILAN), backend=backend)
    for entry in dump["entries"]:
        machine.write_rmp(int(entry["pfn"], 16), int(entry["lo"], 16), int(entry["hi"], 16))
    machine.apply(make_op("inject", code=2))
    machine.record_events(True)
    assert machine.apply(make_op("rmp_make_private", pfn=0x56700, gpa=0x1000, level=1, asid=1)).ret == -14
    assert list(kernel_log(machine.take_events())) == real_lines("issues/245")


def test_dump_of_an_assigned_entry() -> None:
    lines = log(Event(EventKind.DUMP_ENTRY, a=0x40FDF36, b=0x6010FFFFFFFFF001, c=0x1F))
    assert lines == real_lines("2602.3/03780")


def test_leak_of_a_whole_block() -> None:
    """Suspend of a Supermicro H12SSL-i: 512 pages leaked; the dumped entries were elided in the mail."""
    lines = log(
        Event(EventKind.LEAK, a=0x146800, b=0x200),
        Event(EventKind.DUMP_REGION, a=0x146800, b=0x146800, c=0x146A00),
    )
    assert lines == [line for line in real_lines("20250906122145") if "SEV-SNP: " in line and "ccp" not in line]


def test_pfn_of_a_failed_update_has_no_prefix() -> None:
    (line,) = log(Event(EventKind.RMPUPDATE_FAILED, level=1, code=2, a=0x28357F7C))
    assert line == real_lines("88a921aa3c6b")[-1]


def test_dump_of_one_entry_after_the_dump_of_its_region() -> None:
    """A region's entries rise; one that does not is the dump of a single assigned entry."""
    lines = log(
        Event(EventKind.DUMP_REGION, a=0x204, b=0x200, c=0x400),
        Event(EventKind.DUMP_ENTRY, a=0x201, b=1),
        Event(EventKind.DUMP_ENTRY, a=0x205, b=1),
        Event(EventKind.DUMP_ENTRY, a=0x205, b=1),
        Event(EventKind.DUMP_ENTRY, a=0x206, b=1),
    )
    entry = "[0x0000000000000001 - 0x0000000000000000]"
    assert lines[1:] == [
        f"SEV-SNP: PFN: 0x201, {entry}",
        f"SEV-SNP: PFN: 0x205, {entry}",
        f"SEV-SNP: PFN 0x205, RMP entry: {entry}",
        f"SEV-SNP: PFN 0x206, RMP entry: {entry}",
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            Event(EventKind.RMPUPDATE, code=4, a=0x1000, b=1, c=2),
            "RMPUPDATE rax=0x1000 [0x0000000000000001 - 0x0000000000000002] = 4 FAIL_OVERLAP",
        ),
        (Event(EventKind.PSMASH, a=0x200000), "PSMASH rax=0x200000 = 0"),
        (Event(EventKind.FLUSH_ALL), "flush all TLBs"),
        (Event(EventKind.FLUSH_PAGES, a=0x1000, b=3), "flush 3 pages from 0x1000"),
        (
            Event(EventKind.SPLIT, level=3, a=0x40000000, b=0x1E3, c=0x5000),
            "split 1G leaf 0x00000000000001e3 at 0x40000000 into table 0x5000",
        ),
        (Event(EventKind.TABLE_ALLOC, level=2, a=0x5000), "table for 2M entries at 0x5000"),
        (Event(EventKind.ALLOC_FAIL, level=1), "no page for a table of 4K entries"),
        (Event(EventKind.FLUSH_CACHE, a=0x1000, b=3), "flush cache lines of 3 pages from 0x1000"),
        (Event(EventKind.FLUSH_CACHE_ALL), "flush all caches"),
        (
            Event(EventKind.W_AND_X, level=2, a=0x200000, b=0x80000000000001E3, c=0x1E3),
            "2M entry at 0x200000 is writable and executable: flags 0x80000000000001e3 -> 0x00000000000001e3",
        ),
        (
            Event(EventKind.COLLAPSE, level=2, a=0x200000, b=0x2001E1, c=0x5000),
            "collapse table 0x5000 into 2M leaf 0x00000000002001e1 at 0x200000",
        ),
        (Event(EventKind.TABLE_FREE, a=0x5000), "table at 0x5000 given back"),
    ],
)
def test_line_of_our_own_for_every_other_event(event: Event, line: str) -> None:
    assert log(event, plain=True) == [line]
    assert log(event) == []


def test_unreadable_entry() -> None:
    assert log(Event(EventKind.DUMP_ERROR, code=-14, a=0x99)) == [
        "SEV-SNP: Failed to read RMP entry for PFN 0x99, error -14"
    ]
