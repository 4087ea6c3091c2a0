"""A host kernel in machine code on a Milan host: Unicorn runs it, rmpcore is its memory, its page tables and its RMP.

    python examples/unicorn_demo.py           # the story
    python examples/unicorn_demo.py --time    # what the adapter costs

The code gives one page to a guest, writes to a neighbour of it, and gets the page fault of the RMP.  Its fault handler
asks the host (an OUT that this script answers) to split the direct map, and the write is tried again.
"""

import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rmpcore
from rmpcore.emu.unicorn import Emulator, const, x86

MAP = Path(__file__).parent / "maps" / "dell-r6515-epyc7513-256g-snp.json"
CODE, TABLES, STACK, OPERAND = 0x138000, 0x138001, 0x138003, 0x138004
PRIVATE, NEIGHBOUR = 0x140007, 0x140005
HANDLER = 0x800
PORT = 0x80
PAGE_FAULT = 14

MAIN = bytes.fromhex(
    "f20f01fe"  # rmpupdate      rax: the page; rcx: its new entry
    "4c8907"  # mov [rdi], r8    the neighbour
    "4c8906"  # mov [rsi], r8    the page itself
    "f4"  # hlt
)
FAULT_HANDLER = bytes.fromhex(
    "50"  # push rax
    "0f20d0"  # mov rax, cr2
    "e680"  # out 0x80, al      in: the address; out: al = 1 to try again
    "84c0"  # test al, al
    "7407"  # jz give_up
    "58"  # pop rax
    "4883c408"  # add rsp, 8    the error code
    "48cf"  # iretq
    "f4"  # give_up: hlt
)


class Host:
    """The machine, a processor on it, and what the kernel would keep."""

    def __init__(self, walker: str = "rmpcore") -> None:
        self.machine = rmpcore.Machine(rmpcore.load_map(MAP))
        self.machine.apply(rmpcore.make_op("set_memory_x", pfn=CODE, pages=1))
        self.emulator = Emulator(self.machine, walker=walker)
        self.emulator.load_tables(self.address(TABLES), {PAGE_FAULT: self.address(CODE, HANDLER)})
        self.emulator.write(self.address(CODE, HANDLER), FAULT_HANDLER)
        self.emulator.uc.hook_add(const.UC_HOOK_INSN, self.out, None, 1, 0, x86.UC_X86_INS_OUT)
        self.say: Callable[[str], None] = lambda text: None

    def address(self, pfn: int, offset: int = 0) -> int:
        return self.machine.map.page_offset + (pfn << 12) + offset

    def out(self, _engine: object, _port: int, _size: int, _value: int, _data: object) -> None:
        """The hypercall of the fault handler."""
        address = self.register("RAX")
        pfn = address - self.machine.map.page_offset >> 12
        error = struct.unpack("<Q", self.read(self.register("RSP") + 8))[0]
        self.say(f"    #PF: address {address:#x}, error code {error:#x}; the handler asks the host")
        split = rmpcore.make_op("adjust_direct_map", pfn=pfn, level=1)
        self.say(f"    {split}  {rmpcore.format_result(split, self.emulator.apply(split))}")
        probe = rmpcore.make_op("host_write", pfn=pfn)
        result = self.emulator.apply(probe)
        self.say(f"    {probe}  {rmpcore.format_result(probe, result)}")
        self.set(RAX=int(result.kind == rmpcore.Kind.ALLOWED))

    def set(self, **registers: int) -> None:
        for name, value in registers.items():
            self.emulator.uc.reg_write(getattr(x86, f"UC_X86_REG_{name}"), value)

    def register(self, name: str) -> int:
        return int(self.emulator.uc.reg_read(getattr(x86, f"UC_X86_REG_{name}")))

    def read(self, address: int) -> bytes:
        data = self.emulator.read(address, 8)
        assert isinstance(data, bytes)
        return data

    def load(self, code: bytes) -> int:
        self.emulator.write(self.address(CODE), code)
        self.emulator.uc.ctl_flush_tb()
        return self.address(CODE)


def story() -> None:
    host = Host()
    host.say = print
    start = host.load(MAIN)
    entry = struct.pack("<QBBBBI", 0x1000, 1, 0, 0, 0, 5)  # gpa, assigned, 4K, not immutable, ASID 5
    host.emulator.write(host.address(OPERAND), entry)
    host.set(RIP=start, RAX=PRIVATE << 12, RCX=host.address(OPERAND), R8=0x1122334455667788)
    host.set(RDI=host.address(NEIGHBOUR, 0x10), RSI=host.address(PRIVATE, 0x10), RSP=host.address(STACK, 0x1000))

    print(f"RMPUPDATE in machine code: frame {PRIVATE:#x} becomes private")
    host.emulator.step()
    print(f"    EAX = {host.register('RAX')}, RMP entry {host.machine.read_rmp(PRIVATE)[0]:#x}")
    print(f"MOV to its neighbour, frame {NEIGHBOUR:#x}, through a 1G mapping")
    host.emulator.run(until=start + 7)
    print(f"    tried again: the memory holds {host.read(host.address(NEIGHBOUR, 0x10)).hex()}")
    print(f"MOV to the private page itself, frame {PRIVATE:#x}, through a 4K mapping")
    host.emulator.run()
    gave_up = host.register("RIP") == host.address(CODE, HANDLER + len(FAULT_HANDLER))
    print(f"    the handler {'gave up' if gave_up else 'let it pass'}: the memory holds ", end="")
    print(host.read(host.address(PRIVATE, 0x10)).hex())


def measure(name: str, host: Host, code: bytes, count: int, **registers: int) -> None:
    """The time of one round of a loop in RCX, in microseconds; the best of three."""
    start, best = host.load(code), float("inf")
    for _ in range(3):
        host.emulator.flush()
        host.set(RCX=count, RSP=host.address(STACK, 0x1000), **registers)
        began = time.perf_counter()
        host.emulator.run(start)
        best = min(best, time.perf_counter() - began)
        assert host.register("RCX") == 0
    print(f"{name:62} {best / count * 1e6:9.3f} us")


def times() -> None:
    write = bytes.fromhex("488907 4801d7 48ffc9 75f5 f4")  # mov [rdi], rax; add rdi, rdx; dec rcx; jnz back; hlt
    for walker in ("rmpcore", "unicorn"):
        host = Host(walker)
        pages, hot = 0x2000, {"RDI": host.address(NEIGHBOUR)}
        measure(f"write, page in the TLB, walker {walker}", host, write, 1_000_000, **hot, RDX=0)
        measure(f"first write to a page, walker {walker}", host, write, pages, **hot, RDX=0x1000)
    host = Host()
    trap = bytes.fromhex("4889d8 f30f01ff 48ffc9 75f4 f4")  # mov rax, rbx; psmash; dec rcx; jnz back; hlt
    measure("PSMASH of a bad address: no operand, no TLB flush", host, trap, 10_000, RBX=1)
    # mov r9, rcx; mov rax, rbx; mov rcx, rsi; rmpupdate; mov rcx, r9; dec rcx; jnz back; hlt
    trap = bytes.fromhex("4989c9 4889d8 4889f1 f20f01fe 4c89c9 48ffc9 75eb f4")
    operand = {"RBX": PRIVATE << 12, "RSI": host.address(OPERAND)}
    measure("RMPUPDATE: operand read, TLB flushed", host, trap, 10_000, **operand)
    refused(1_000)


def refused(count: int) -> None:
    """Writes that fault, are delivered, repaired by a split, and tried again: one in each 2 MiB region."""
    host = Host()
    for number in range(count):
        update = {"pa": (0x200000 + 512 * number + 7) << 12, "gpa": 0x1000, "assigned": 1, "size": 0, "asid": 5}
        host.emulator.write(host.address(0x200000 + 512 * number), b"\0")  # the machine's first touch takes its time
        host.machine.apply(rmpcore.make_op("RMPUPDATE", **update))
    code = bytes.fromhex("488907 4801d7 48ffc9 75f5 f4")
    start = host.load(code)
    host.set(RCX=count, RDI=host.address(0x200000), RDX=2 << 20, RSP=host.address(STACK, 0x1000))
    began = time.perf_counter()
    host.emulator.run(start)
    took = time.perf_counter() - began
    assert host.register("RCX") == 0
    print(f"{'refused write: #PF, handler, split, IRETQ, tried again':62} {took / count * 1e6:9.3f} us")


if __name__ == "__main__":
    if sys.argv[1:] == ["--time"]:
        times()
    elif not sys.argv[1:]:
        story()
    else:
        sys.exit(__doc__)
