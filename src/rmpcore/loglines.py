"""The lines of a kernel log that speak of the RMP, as values.

Kernels say the same thing in several wordings, with time stamps and prefixes in front: :func:`parse` looks for what all
of them have, anywhere in a line.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class LogLine(NamedTuple):
    """What one line says."""

    kind: str
    values: dict[str, Any]
    """Numbers, but for the few that are words (see ``_WORDS``); what the line leaves out is not there."""


def _x(*names: str) -> tuple[str, ...]:
    """Numbers in hexadecimal, with or without 0x."""
    return tuple(rf"(?:0x)?(?P<{name}>[0-9a-fA-F]{{1,16}})(?![0-9a-fA-F])" for name in names)


def _d(*names: str) -> tuple[str, ...]:
    """Decimal numbers."""
    return tuple(rf"(?P<{name}>-?[0-9]{{1,10}})(?![0-9])" for name in names)


_DECIMAL = re.compile(
    "level|ret|error|rc|npages|max|npt_level|rmp_level|private|index|size|min|limit|assigned|immutable|pagesize|asid|"
    "vmsa|validated"
)
_WORDS = re.compile("device|event|what|rest")
_ENTRY = r"{} \[assigned={} immutable={} pagesize={} gpa={} asid={} vmsa={} validated={}\]"
_LINES: tuple[tuple[str, str], ...] = (
    # the RMP
    ("rmp_table", r"RMP table physical (?:range|address) \[?{} - {}".format(*_x("base", "end"))),
    ("rmp_table", "rmp_base={}, rmp_end={}".format(*_x("base", "end"))),
    ("rmp_base_table", r"Segmented RMP base table physical range \[{} - {}\]".format(*_x("base", "end"))),
    ("segment_size", "Segmented RMP using {}GB segments".format(*_d("size"))),
    (
        "rmp_segment",
        r"RMP segment {} physical address \[{} - {}\] covering \[{} - {}\]".format(
            *_d("index"), *_x("base", "end", "first", "last")
        ),
    ),
    ("segment_cut", r"RMP segment {} mapped size \({}\) reduced".format(*_d("index"), *_x("mapped"))),
    ("reserved_block", r"Reserving start/end of RMP table on a 2MB boundary \[{}\]".format(*_x("base"))),
    # the kernel refuses it
    ("not_reserved", "Memory for the RMP table has not been reserved by BIOS"),
    ("bad_range", "RMP configuration not valid: base={}, end={}".format(*_x("base", "end"))),
    ("too_small", r"RMP table does not cover full system RAM \(expected {} got {}\)".format(*_x("expected", "got"))),
    ("short", r"Segmented RMP does not cover full system RAM \(expected {} got {}\)".format(*_x("expected", "got"))),
    (
        "segment_bounds",
        r"RMP segment size \({}\) is not within advertised bounds \(min={}, max={}\)".format(
            *_d("size", "min", "limit")
        ),
    ),
    ("segment_too_large", "Invalid RMP size {} for configured segment size {}".format(*_x("got", "expected"))),
    ("segment_place", "Invalid RMP segment base address {} for configured segment size".format(*_x("base"))),
    ("segment_twice", "RMP segment descriptor already exists at index {}".format(*_d("index"))),
    ("end_not_zero", "Segmented RMP enabled but RMP_END MSR is non-zero"),
    ("not_mapped", "SEV-SNP: Failed to map RMP (?P<what>table|bookkeeping area|segment)"),
    ("iommu_refusal", "SNP: IOMMU [^.]{1,200}SNP cannot be supported"),
    # entries
    ("entry", r"PFN {}, RMP entry: \[{} - {}\]".format(*_x("pfn", "lo", "hi"))),
    ("region_entry", r"PFN: {}, \[{} - {}\]".format(*_x("pfn", "lo", "hi"))),
    (
        "region",
        r"PFN {} unassigned, dumping non-zero entries in 2M PFN region: \[{} - {}\]".format(*_x("pfn", "first", "end")),
    ),
    (
        "decoded",
        "RMPEntry .{,80}?paddr "
        + _ENTRY.format(
            *_x("address"), *_d("assigned", "immutable", "pagesize"), *_x("gpa"), *_d("asid", "vmsa", "validated")
        ),
    ),
    ("old_entry", "RMPEntry paddr {} {} {}".format(*_x("address", "hi", "lo"))),
    ("dump_error", "Failed to read RMP (?:entry|contents) for PFN {}, error {}".format(*_x("pfn"), *_d("error"))),
    # faults
    ("address", "BUG: unable to handle page fault for address: {}".format(*_x("address"))),
    ("fault", r"#PF: error_code\({}\)".format(*_x("code"))),
    (
        "walk",
        r"\bPGD {}(?: P4D {})?(?: PUD {})?(?: PMD {})?(?: PTE {})?".format(*_x("pgd", "p4d", "pud", "pmd", "pte")),
    ),
    (
        "nested_fault",
        r"#VMEXIT \(NPF\) - .{,80}?err "
        + "{}(?: npt_level {}, rmp_level {}, private {})?".format(
            *_x("code"), *_d("npt_level", "rmp_level", "private")
        ),
    ),
    ("kvm_fault", "SEV: Unexpected RMP fault.{,80}? GPA " + "{}(?: PFN {})?".format(*_x("gpa", "pfn"))),
    (
        "iommu_event",
        r"(?:(?P<device>[0-9a-f:.]{7,12}): )?AMD-Vi: Event logged \[(?P<event>RMP_\w{1,20}) (?P<rest>[^]]{,200})\]",
    ),
    # instructions and firmware commands
    ("update_failed", "RMPUPDATE failed for PFN {}, pg_level: {}, ret: {}".format(*_x("pfn"), *_d("level", "ret"))),
    (
        "update_retried",
        r"rmpupdate failed, ret: {}, pfn: {}, npages: {}, level: {}, retrying \(max: {}\)".format(
            *_d("ret"), *_x("pfn"), *_d("npages", "level", "max")
        ),
    ),
    ("psmash_failed", "psmash failed, gpa {} pfn {} rc {}".format(*_x("gpa", "pfn"), *_d("rc"))),
    ("psmash_failed", "SEV: Unable to split RMP entry for GPA {} PFN {} ret {}".format(*_x("gpa", "pfn"), *_d("rc"))),
    ("psmash", "trying psmash gpa {} pfn {}".format(*_x("gpa", "pfn"))),
    ("split_failed", "Failed to split direct map for PFN {}, ret: {}".format(*_x("pfn"), *_d("ret"))),
    ("leak", "Leaking PFN range {}-{}".format(*_x("first", "end"))),
    ("psp_dead", "sev command {} timed out, disabling PSP".format(*_x("command"))),
    (
        "firmware_failed",
        r"SEV(?:-SNP)?: failed to (?P<what>\w+) error " + "{}, rc {}".format(*_x("status"), *_d("rc")),
    ),
    (
        "firmware_failed",
        r"SEV(?:-SNP)?: failed to (?P<what>\w+) rc " + "{}, error {}".format(*_d("rc"), *_x("status")),
    ),
    ("firmware_failed", "SEV-SNP firmware (?P<what>shutdown) failed, rc {}, error {}".format(*_d("rc"), *_x("status"))),
    ("no_buffer", "SEV: too many firmware commands are in-progress"),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _LINES)
_MARK = re.compile("RMP|rmp_|SNP|SEV|#PF|PGD |page fault|NPF|PFN|psmash|rmpupdate|sev command")
"""A line without any of these is none of the above, as most lines of a log are."""


def parse(line: str) -> LogLine | None:
    """What a line says; None: nothing about the RMP."""
    if not _MARK.search(line):
        return None
    for kind, pattern in _PATTERNS:
        found = pattern.search(line)
        if found is not None:
            values: dict[str, Any] = {}
            for name, text in found.groupdict().items():
                if text is not None:
                    base = 10 if _DECIMAL.fullmatch(name) else 16
                    values[name] = text if _WORDS.fullmatch(name) else int(text, base)
            return LogLine(kind, values)
    return None
