"""Write the traces in examples/traces: what a host does while one guest lives, and a short tour of a 6 TiB machine.

    python examples/make_trace.py [FOLDER]

The output is always the same.  The guest's numbers follow a small loader (160 launch pages) rather than a whole
OVMF image, so that the trace stays readable; order and kind of the operations are those of a Linux host.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

ASID = 3
PAGES_2M = 512

# Frames of dell-r6515-epyc7513-256g-snp, all in the usable row 0x100000000-0x407f0fffff.
TMR = 0x146800
SINGLE_PAGES = (0x1A3F17, 0x2C0D4E)
VMSA = 0x10F5DB
LAUNCH = 0x1F4000
FAULT_REGIONS = (0x3E4200, 0x812A00, 0xC97C00, 0x1801600)
LARGE_REGIONS = 0x2A00000
FRESH = 0x361E400

VMSA_GPA = 0xFFFF_FFFF_F000
FAULTS_PER_REGION = 64
LARGE_PAGES = 24


def heading(text: str) -> Iterator[str]:
    yield ""
    for line in text.strip().splitlines():
        yield f"# {line.strip()}"


def assign(pfn: int, gpa: int, level: str = "4K", immutable: int = 0) -> str:
    return f"rmp_make_private pfn={pfn:#x} gpa={gpa:#x} level={level} asid={ASID} immutable={immutable}"


def share(pfn: int, level: str = "4K") -> str:
    return f"rmp_make_shared pfn={pfn:#x} level={level}"


def look_up(pfn: int) -> str:
    return f"snp_lookup_rmpentry pfn={pfn:#x}"


def firmware(pfn: int) -> str:
    return f"rmp_make_firmware pfn={pfn:#x} level=4K"


def small_faults() -> list[tuple[int, int]]:
    """(pfn, gpa) of the pages that the guest touches one by one, scattered over a few 2 MiB blocks of the host."""
    pages = []
    for region, first in enumerate(FAULT_REGIONS):
        for i in range(FAULTS_PER_REGION):
            pages.append((first + (i * 37 + region) % PAGES_2M, 0x100000 + (region * FAULTS_PER_REGION + i) * 0x1000))
    return pages


def one_guest() -> Iterator[str]:
    yield "# One SEV-SNP guest starts, runs and ends on examples/maps/dell-r6515-epyc7513-256g-snp.json."
    yield "# Written by examples/make_trace.py."
    yield "#"
    yield "# Firmware commands are not ops yet.  What the firmware alone can take back (PAGE_RECLAIM) or make mutable"
    yield "# (LAUNCH_UPDATE) therefore stays immutable: the trusted memory region, the context and response pages, the"
    yield "# launch pages and the VMSA are never returned here."

    yield from heading("SNP firmware init: the 2 MiB trusted memory region, 512 pages one by one.")
    for i in range(PAGES_2M):
        yield firmware(TMR + i)

    yield from heading("VM init: the page for attestation responses, and the guest's context page.")
    for pfn in SINGLE_PAGES:
        yield firmware(pfn)

    yield from heading("""Launch: each page of the loader is looked up and must be unassigned, then given to the
        guest as immutable; LAUNCH_UPDATE would follow.  Always 4K, even though the source is contiguous.""")
    for i in range(160):
        yield look_up(LAUNCH + i)
        yield assign(LAUNCH + i, i << 12, immutable=1)

    yield from heading("Launch finish: the VMSA, at a frame that is not 2 MiB-aligned (erratum).")
    yield assign(VMSA, VMSA_GPA, immutable=1)

    yield from heading("The guest runs.  Mainline guest_memfd: one look-up and one 4K page for each fault.")
    faults = small_faults()
    for pfn, gpa in faults:
        yield look_up(pfn)
        yield assign(pfn, gpa)

    yield from heading("""Development trees back guest_memfd with 2 MiB folios: when the whole folio is unassigned,
        one 2M entry.  (The kernel looks up all 512 frames; two stand for them here.)""")
    large = [(LARGE_REGIONS + i * PAGES_2M, 0x1000_0000 + i * 0x20_0000) for i in range(LARGE_PAGES)]
    for pfn, gpa in large:
        yield look_up(pfn)
        yield look_up(pfn + PAGES_2M - 1)
        yield assign(pfn, gpa, "2M")

    yield from heading("""The guest validates its GHCB page, 4K inside a 2M entry: nested fault with the size-mismatch
        bit.  The host looks, smashes, and the page becomes shared.  The second PSMASH finds the entry in use once and
        is repeated, as KVM does.""")
    ghcb = [(large[0][0] + 0x1F, large[0][1] + 0x1F000), (large[5][0] + 0x130, large[5][1] + 0x130000)]
    yield look_up(ghcb[0][0])
    yield f"psmash pfn={large[0][0]:#x}"
    yield look_up(ghcb[0][0])
    yield share(ghcb[0][0])
    yield look_up(ghcb[1][0])
    yield "inject code=3"
    yield f"psmash pfn={large[5][0]:#x}"
    yield f"psmash pfn={large[5][0]:#x}"
    yield share(ghcb[1][0])

    yield from heading("""The bounce buffer becomes shared: whole 2M entries go back as such, and 40 pages at its edge
        after one PSMASH.""")
    for pfn, _ in large[8:16]:
        yield look_up(pfn)
        yield share(pfn, "2M")
    edge = large[16][0]
    yield look_up(edge)
    yield f"psmash pfn={edge:#x}"
    for i in range(40):
        yield share(edge + i)

    yield from heading("""Pages that the guest shares and takes back: the old frame is returned, the new one is another.
        While the firmware holds the region's entry, RMPUPDATE answers FAIL_OVERLAP and the kernel repeats it.""")
    moved = faults[10:42]
    for i, (pfn, gpa) in enumerate(moved):
        yield look_up(pfn)
        if i % 8 == 3:
            yield f"inject code=4 count={5 + i}"
        yield share(pfn)
        yield look_up(FRESH + i)
        yield assign(FRESH + i, gpa)

    yield from heading("What the host maps of it by now.")
    for pfn in (TMR, LAUNCH, VMSA, faults[0][0], large[1][0], large[5][0], edge, FRESH, 0x2000000):
        yield f"lookup pfn={pfn:#x}"

    yield from heading("""The guest is gone: every private page that still is one goes back; 4K pages first, then what
        is left of smashed entries, then whole 2M entries.""")
    for pfn, _ in faults[:10] + faults[42:]:
        yield look_up(pfn)
        yield share(pfn)
    for i in range(len(moved)):
        yield look_up(FRESH + i)
        yield share(FRESH + i)
    for pfn, kept in (
        (large[0][0], [i for i in range(PAGES_2M) if i != 0x1F]),
        (large[5][0], [i for i in range(PAGES_2M) if i != 0x130]),
        (edge, list(range(40, PAGES_2M))),
    ):
        for i in kept:
            yield share(pfn + i)
    for i, (pfn, _) in enumerate(large):
        if i not in (0, 5, 16) and not 8 <= i < 16:
            yield look_up(pfn)
            yield share(pfn, "2M")

    yield from heading(
        """A page that nobody can take back without the firmware: the kernel complains, and gives it up."""
    )
    yield share(VMSA)
    yield f"snp_leak_pages pfn={VMSA:#x} pages=1"


def tour_of_6t() -> Iterator[str]:
    yield "# A few ops all over examples/maps/synthetic-6t.json: 6 TiB cost no more than what is touched."
    yield "# Written by examples/make_trace.py."
    pfns = {
        "near 4 GiB": 0x100200,
        "around 1 TiB": 0xFCFF400,
        "above the hole": 0x10000800,
        "in the middle": 0x30000000,
        "the last 2 MiB below the RMP": 0x5FD7C400,
    }
    for where, pfn in pfns.items():
        yield from heading(f"{where[0].upper()}{where[1:]}: a 2M page for a guest, smashed, and a page of it shared.")
        yield f"lookup pfn={pfn:#x}"
        yield assign(pfn, pfn << 12, "2M")
        yield f"psmash pfn={pfn:#x}"
        yield share(pfn + 5)
        yield f"lookup pfn={pfn + 5:#x}"
        yield look_up(pfn + 4)
        yield f"dump_rmpentry pfn={pfn + 4:#x}"
    yield from heading("The RMP covers itself; a frame beyond it has no entry.")
    yield f"snp_lookup_rmpentry pfn={0x6037FFFF:#x}"
    yield f"snp_lookup_rmpentry pfn={0x60400000:#x}"
    yield from heading("The direct map alone: 3 MiB forced to 4K, a page taken out and put back.")
    yield "set_memory_4k pfn=0x20000000 pages=768"
    yield "set_direct_map_invalid_noflush pfn=0x20000123"
    yield "lookup pfn=0x20000123"
    yield "set_direct_map_default_noflush pfn=0x20000123"
    yield "lookup pfn=0x20000123"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "traces"
    for name, lines in (("one-guest.trace", one_guest()), ("tour-of-6t.trace", tour_of_6t())):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
