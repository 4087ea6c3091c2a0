"""Seeds for the fuzzing harness: ``python fuzz/seeds.py DIRECTORY`` writes them there, one input a file.

From the traces in examples/, with their frames moved into the harness's small machine, and from scenarios by hand; each
on several machines.  fuzz/harness.c says what the bytes mean: an entry, a set-up, then 255 and 64 bytes for an op.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from rmpcore.ops import OPS, Op, pack_ops, parse_op
from rmpcore.trace import read_trace

ROOT = Path(__file__).parents[1]
TAPE, CONFIG, TABLE, MEMORY, VALUES = range(5)
CALLS = 128
PER_SEED = 24
MOVED = 5120
"""Where the lowest frame of a trace comes to lie: 20 MiB, on a 2 MiB line."""
MAPS, FORMS = 4, 5

GUEST = """
SNP_INIT pfn=0x0 pages=0
rmp_make_firmware pfn=0x1400 level=4K
rmp_make_firmware pfn=0x1401 level=4K
rmp_make_firmware pfn=0x1402 level=4K
SNP_GCTX_CREATE gctx=0x1400000
SNP_ACTIVATE gctx=0x1400000 asid=5
SNP_MD_INIT gctx=0x1400000 pa=0x1401000
rmp_make_private pfn=0x1600 gpa=0x1600000 level=4K asid=5 immutable=1
rmp_make_private pfn=0x1601 gpa=0x1601000 level=4K asid=5 immutable=1
rmp_make_private pfn=0x1602 gpa=0x1602000 level=4K asid=5 immutable=1
rmp_make_private pfn=0x1800 gpa=0x1800000 level=2M asid=5 immutable=1
SNP_LAUNCH_UPDATE gctx=0x1400000 pa=0x1600000 size=4K type=1 vmpl1=1
SNP_LAUNCH_UPDATE gctx=0x1400000 pa=0x1601000 size=4K type=2
SNP_LAUNCH_UPDATE gctx=0x1400000 pa=0x1800000 size=2M type=3
rmp_make_private pfn=0x1a00 gpa=0x1a00000 level=4K asid=5 immutable=1
SNP_PAGE_SWAP_OUT gctx=0x1400000 src=0x1602000 dst=0x1402000 mdata=0x1401040 size=4K
SNP_PAGE_SWAP_IN gctx=0x1400000 src=0x1402000 dst=0x1a00000 mdata=0x1401040 size=4K
SNP_PAGE_MOVE gctx=0x1400000 src=0x1401000 dst=0x1402000 size=4K
SNP_PAGE_RECLAIM pa=0x1402000
VMRUN vmcb=0x1c00000 vmsa=0x1601000 gpa=0x1601000 avic=0x1c01000 asid=5
host_write pfn=0x1c00
RMPUPDATE pa=0x1601000 gpa=0 assigned=0 size=4K asid=0
VMEXIT vmcb=0x1c00000
SNP_DECOMMISSION gctx=0x1400000
SNP_SHUTDOWN iommu=1
"""
PAGES = """
RMPUPDATE pa=0x1600000 gpa=0x1600000 assigned=1 size=2M asid=5
PVALIDATE gva=0x1600000 rcx=1 rdx=1 pa=0x1600000 gpa=0x1600000 asid=5 level=2M
RMPADJUST gva=0x1600000 rcx=1 rdx=0x10f01 pa=0x1600000 gpa=0x1600000 asid=5 level=2M
RMPQUERY gva=0x1600000 rdx=1 pa=0x1600000 gpa=0x1600000 asid=5 level=2M
RMPREAD pa=0x1600000
psmash pfn=0x1600
PVALIDATE gva=0x1601000 rcx=0 rdx=0 pa=0x1601000 gpa=0x1601000 asid=5 level=4K
rmp_make_shared pfn=0x1601 level=4K
host_write pfn=0x1601
host_write pfn=0x1602
kvm_write_guest pfn=0x1601
kvm_read_guest pfn=0x1602
inject code=4 count=3
rmp_make_private pfn=0x1a01 gpa=0x1000 level=4K asid=1
inject code=3 count=1
rmp_make_private pfn=0x1a02 gpa=0x2000 level=4K asid=1
rmp_mark_pages_firmware pfn=0x1c00 pages=4
snp_reclaim_pages pfn=0x1c00 pages=4
snp_leak_pages pfn=0x1a00 pages=3
page_state pfn=0x1a01
SNP_INIT pfn=0x1e00 pages=512
SNP_PAGE_SET_STATE pa=0x1e00000 pages=512
access pa=0x1600000 gpa=0x1600000 who=snp access=write level=2M asid=5 vmpl=0 c=1
access pa=0x1600000 who=host access=write level=1G
"""
UNSMASH = """
SNP_INIT pfn=0x0 pages=0
rmp_make_private pfn=0x1600 gpa=0x1600000 level=2M asid=3 immutable=0
psmash pfn=0x1600
rmp_make_private pfn=0x1800 gpa=0x1800000 level=2M asid=3 immutable=1
SNP_PAGE_UNSMASH pa=0x1600000
SNP_PAGE_UNSMASH pa=0x1800000
SNP_PAGE_RECLAIM pa=0x1800001
psmash pfn=0x1800
"""
STATES = """
SNP_INIT pfn=0x0 pages=0
RMPUPDATE pa=0x1400000 gpa=0 assigned=1 size=2M immutable=1 asid=0
SNP_PAGE_SET_STATE pa=0x1400000 pages=512
rmp_make_firmware pfn=0x1600 level=4K
rmp_make_firmware pfn=0x1601 level=4K
rmp_make_firmware pfn=0x1602 level=4K
rmp_make_firmware pfn=0x1603 level=4K
SNP_GCTX_CREATE gctx=0x1600000
SNP_GCTX_CREATE gctx=0x1601000
SNP_ACTIVATE gctx=0x1601000 asid=5
SNP_ACTIVATE gctx=0x1600000 asid=5
SNP_ACTIVATE gctx=0x1600000 asid=6
SNP_MD_INIT gctx=0x1601000 pa=0x1602000
SNP_MD_INIT gctx=0x1601000 pa=0x1603000
rmp_make_private pfn=0x1800 gpa=0x1800000 level=4K asid=5 immutable=1
rmp_make_private pfn=0x1801 gpa=0x1801000 level=4K asid=5 immutable=1
SNP_PAGE_MOVE gctx=0x1601000 src=0x1800000 dst=0x1801000 size=4K
SNP_PAGE_SWAP_OUT gctx=0x1601000 src=0x1801000 dst=0x1802000 mdata=0x1602000 size=4K
SNP_PAGE_SWAP_OUT gctx=0x1601000 src=0x1603000 dst=0x1802000 mdata=0x1602040 size=4K
SNP_PAGE_SWAP_IN gctx=0x1601000 src=0x1802000 dst=0x1603000 mdata=0x1602040 size=4K
SNP_PAGE_RECLAIM pa=0x1602000
SNP_DECOMMISSION gctx=0x1600000
SNP_SHUTDOWN iommu=1
SNP_INIT pfn=0x1400 pages=3
SNP_SHUTDOWN iommu=1
"""
ACCESSES = """
RMPUPDATE pa=0x1400000 gpa=0x1400000 assigned=1 size=4K asid=5
PVALIDATE gva=0x1400000 rcx=0 rdx=1 pa=0x1400000 gpa=0x1400000 asid=5 level=4K
RMPADJUST gva=0x1400000 rcx=0 rdx=0x0301 pa=0x1400000 gpa=0x1400000 asid=5 level=4K
RMPADJUST gva=0x1400000 rcx=0 rdx=0x0f02 pa=0x1400000 gpa=0x1400000 asid=5 level=4K vmpl=1
RMPQUERY gva=0x1400000 rdx=3 pa=0x1400000 gpa=0x1400000 asid=5 level=4K vmpl=1
RMPQUERY gva=0x1400000 rdx=0 pa=0x1400000 gpa=0x1400000 asid=5 level=4K vmpl=1
RMPQUERY gva=0x1400000 rdx=9 pa=0x1400000 gpa=0x1400000 asid=5 level=4K
access who=snp access=read pa=0x1400000 gpa=0x1400000 level=4K asid=5 c=1
access who=snp access=write pa=0x1400000 gpa=0x1400000 level=4K asid=5 c=1 vmpl=2
access who=snp access=fetch pa=0x1400000 gpa=0x1400000 level=4K asid=5 c=1 vmpl=1
access who=snp access=walk pa=0x1400000 gpa=0x1400000 level=4K asid=5 c=1
access who=snp access=walk_write pa=0x1400000 gpa=0x1400000 level=4K asid=5 c=1
access who=snp access=shadow_stack pa=0x1400000 gpa=0x1400000 level=4K asid=5 c=1 vmpl=1
access who=snp access=read pa=0x1400000 gpa=0x1400000 level=2M asid=5 c=1
access who=iommu access=write pa=0x1400000 level=4K
access who=hsave pa=0x0 access=read level=4K
access who=vmsa_snp pa=0x1400000 gpa=0x1400000 access=read level=4K asid=5
VMRUN vmcb=0x1401000 vmsa=0x1400000 gpa=0x1400000 asid=5
VMRUN vmcb=0x1402000 asid=5 plain=1
access who=host access=write pa=0x1402000 level=2M
VMEXIT vmcb=0x1402000
access who=snp access=write pa=0x40000000 gpa=0x40000000 level=4K asid=5 c=1
RMPUPDATE pa=0x40000000 gpa=0x1400000 assigned=1 size=4K asid=5
RMPREAD pa=0x40000000
psmash pfn=0x40000
PVALIDATE gva=0x1400000 rcx=0 rdx=1 pa=0x40000000 gpa=0x1400000 asid=5 level=4K
"""
MAP = """
set_memory_4k pfn=0x1400 pages=1
set_memory_ro pfn=0x1400 pages=512
set_memory_rox pfn=0x1400 pages=512
set_memory_rw pfn=0x1000 pages=600
set_memory_nx pfn=0x1000 pages=40 high=1
set_memory_x pfn=0x1000 pages=4 high=1
set_memory_np pfn=0x1600 pages=600
set_memory_p pfn=0x1600 pages=600
set_memory_np_noalias pfn=0x1200 pages=3
set_memory_global pfn=0x1600 pages=512
set_memory_nonglobal pfn=0x40000 pages=0x40000
_set_memory_uc pfn=0x1200 pages=34
_set_memory_wc pfn=0x1600 pages=512
_set_memory_wb pfn=0x1600 pages=512
set_memory_encrypted pfn=0x1600 pages=1
set_memory_decrypted pfn=0x1600 pages=1
change_page_attr_set pfn=0x1800 pages=512 mask=0x800
change_page_attr_clear pfn=0x1800 pages=1 mask=0x2
cpa_address pfn=0x1400
cpa_address pfn=0x1200 high=1
set_memory_ro pfn=0 pages=2 flavour=array
set_direct_map_invalid_noflush pfn=0x2000
set_direct_map_default_noflush pfn=0x2000
set_direct_map_valid_noflush pfn=0x2000 pages=512 valid=0
fail_alloc skip=1 count=2
set_memory_4k pfn=0x1a00 pages=1200
lookup pfn=0x1a00
"""


def frames_moved(op: Op, lowest: int) -> Op:
    """The op with its frames moved, so that the lowest one of the trace lies where the harness has memory."""
    by = lowest - lowest % 512 - MOVED
    spec = OPS[op.op]
    pfn = any(arg.name == "pfn" for arg in spec.args)
    moved = op.addr - (by if pfn else by << 12)
    return op._replace(addr=moved) if moved > 0 and op.addr else op


def tape(ops: list[Op], machine: int, kernel: int = 0, policy: int = 0, part: int = 0) -> bytes:
    """An input of the entry tape."""
    records = [pack_ops([op]).tobytes() for op in ops]
    return bytes([TAPE, machine, kernel, policy, 0, part]) + b"".join(b"\xff" + record for record in records)


def machine(number: int, form: int) -> int:
    """The byte that says which map, and which form of RMP, as in the harness's enum."""
    return number + MAPS * ((form - 1) % FORMS)


def seeds() -> dict[str, bytes]:
    """All of them, by name."""
    found: dict[str, bytes] = {}
    for path in sorted((ROOT / "examples/traces").glob("*.trace")):
        trace = read_trace(path)
        ops = [trace.op(i) for i in range(len(trace))]
        frames = [op.addr if op.addr < 1 << 31 else op.addr >> 12 for op in ops if op.addr]
        ops = [frames_moved(op, min(frames)) for op in ops]
        pieces = [ops[i : i + PER_SEED] for i in range(0, len(ops), PER_SEED)]
        for i, piece in enumerate(pieces):
            found[f"{path.stem}-{i}"] = tape(piece, machine(i % MAPS, 1 + i // MAPS % 4), kernel=0, policy=i % 9)
    texts = {"guest": GUEST, "pages": PAGES, "unsmash": UNSMASH, "states": STATES, "accesses": ACCESSES, "map": MAP}
    for (name, text), form, number in itertools.product(texts.items(), range(FORMS), range(MAPS)):
        ops = [parse_op(line) for line in text.strip().splitlines()]
        mix = form * MAPS + number
        found[f"{name}-{form}{number}"] = tape(ops, machine(number, form), mix % 10, mix % 9, mix % 3)
    for call, number, salt in itertools.product(range(17), range(MAPS), range(3)):
        operands = bytes((7 * i * (salt + 1) + 36 * salt + call) % 256 for i in range(48))
        start = bytes([TAPE, machine(number, 1 + salt), 0, salt * 3, 0, 2])
        found[f"call-{call}{number}{salt}"] = start + bytes([CALLS + call]) + operands
    region = bytes([CALLS + 16, 12, 12, 0, 2, 5]).ljust(49, b"\0")
    for i, form in enumerate((1, 2, 3, 4)):
        ops = [parse_op(line) for line in UNSMASH.strip().splitlines()]
        joined = tape(ops[:1], machine(0, form)) + region + tape(ops[4:], 0)[6:]
        found[f"region-{i}"] = joined
        for what, count in ((0, 70), (1, 1050), (2, 1050), (3, 1050), (4, 512)):
            fill = bytes([CALLS + 16, what, 44, count % 256, count // 256, 1]).ljust(49, b"\0")
            found[f"fill-{what}{form}"] = tape(ops[:1], machine(i, form)) + fill + tape(ops[1:], 0)[6:]
    for how, who, prefix in itertools.product(range(6), (0, 1, 0x21, 0x80), (b"", b"\x67", b"\x48")):
        registers = bytes([44, 0, 0, 44, 0, 1, 0, 0]) + bytes(8) + bytes([5, 0])
        operands = bytes([how, who, len(prefix)]) + prefix + registers
        pages = [parse_op(line) for line in ACCESSES.strip().splitlines()[:2]]
        call = bytes([CALLS + 8]) + operands.ljust(48, b"\0")
        found[f"execute-{how}{who}{len(prefix)}{prefix[:1].hex()}"] = tape(pages, machine(0, 1), part=2) + call
    boot = bytes([3, 20, 1, 20, 0, 20, 0])
    for levels, form in itertools.product(range(2), range(4)):
        rows = bytes([2, 0, 0x3F, 1, 0x7F]) + bytes([0, 0]) + bytes([0x6B, 1])
        found[f"boot-{levels}{form}"] = bytes([CONFIG]) + boot + bytes([levels + 2 * form, form]) + b"\x0c" + rows
    found["put"] = bytes([CONFIG, 1, 20, 1, 0, 0, 1, 0, 0, 3, 3, 0, 0, 2, 0, 0, 1, 0, 0])
    for how in range(0, 256, 4):
        found[f"table-{how}"] = bytes([TABLE, how, 0, 0, 1, 0, 1, 4, 15]) + bytes(range(0, 200, 5))
    for how in range(8):
        found[f"memory-{how}"] = bytes([MEMORY, how, how, 3, 5, 2]) + bytes(
            (how * 31 + i * 17) % 256 for i in range(90)
        )
    code = bytes.fromhex("f20f01fe f30f01ff 66f2480f01ff 67f30f01fd")
    found["values"] = bytes([VALUES, 1, 1, 2, 0, 0, 0, 6, 0, 0, 0, 15, 0, 0, 0]) + bytes(10) + bytes([14]) + code
    return found | FIXED


FIXED = {
    # a frame that no range can hold was said to be mapped
    "fixed-mapped": bytes([TAPE, 0, 0, 0, 0, 0, CALLS + 11, 0xFB]).ljust(60, b"\0"),
    # RMP probing read a segment table of any size
    "fixed-probe": bytes([TABLE, 5, 11, 20, 0xFF, 0xFF, 0xFF, 0xFF, 0, 21, 1, 18, 30, 6, 0, 0]),
    # an encryption bit inside the memory: two addresses for one table, or none
    "fixed-c-bit": bytes([CONFIG, 1, 20, 1, 64, 0, 0, 0, 0, 1, 0xCC, 0, 0, 12, 1, 0, 0x68, 0, 0]),
    # leaves at boot without PSE, which are none
    "fixed-mask": bytes([CONFIG, 1, 20, 1, 64, 0, 0, 0, 1, 0xC7, 0, 0, 0, 12, 1, 0, 0x68, 0, 0]),
    # 2^31 steps through a hole at boot
    "fixed-boot": bytes([CONFIG, 1, 20, 1, 1 + 8, 0, 8, 1, 0, 0x44, 1, 0, 0x44, 0, 0xEB]),
    # 2^34 pages of nothing, one by one
    "fixed-hole": tape([parse_op("set_memory_x pfn=0 pages=0x400000000")], machine(0, 1), kernel=1),
}
"""What the harness, or writing it, has found: kept when the corpus is made anew."""


def main() -> int:
    """Write them."""
    if len(sys.argv) != 2:
        print("usage: python fuzz/seeds.py DIRECTORY", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
