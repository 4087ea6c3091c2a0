"""Which calls are made into a kernel, and how a difference is made small.

The kernel is a recorded one: its map, its state before the calls, and in place of its own code a model."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machines as m
import pytest

from rmpcore.conform import conform
from rmpcore.inputs import parse_json, recording_map
from rmpcore.kernel import campaign
from rmpcore.kernel.calls import TAKES_AWAY, ListedCalls, SafeCalls, Source, Wanted, calls_of
from rmpcore.kernel.campaign import LAYOUTS, hold, run_round
from rmpcore.kernel.errors import GuestError, KernelError
from rmpcore.kernel.image import Image
from rmpcore.kernel.session import Recorded, call_arguments
from rmpcore.kernel.snp import Executed
from rmpcore.machine import Machine
from rmpcore.ops import EventKind, Kind, Op, OpCode, ResultFlag, make_op, parse_op
from rmpcore.recorded_calls import CALLS, SNP_CALLS
from rmpcore.recording import RecordingError, recorded_state
from rmpcore.state import state_to_json
from rmpcore.trace import read_trace

GOLDEN = Path(__file__).parent / "data/golden"
SNP = "6.12_pc-4g_snp"
SMALL = "6.12_pc-1g_dmap"
GIGA = "7.3_pc-8g_giga"


@functools.cache
def golden(name: str) -> Any:
    return parse_json((GOLDEN / f"{name}.json").read_text(encoding="utf-8"), name, RecordingError)


class Kernel:
    """Stands for a session: a recorded kernel before its calls.  ``free``: whether a frame range is to be had."""

    def __init__(
        self, name: str = SNP, free: Callable[[int, int], bool] = lambda first, end: True, lacks: Iterable[str] = ()
    ) -> None:
        node = golden(name)
        self.map = recording_map(node, rmp=True)
        self.before = recorded_state(node["before"], self.map)
        self.image = SimpleNamespace(release=node["kernel"].text())
        self.symbols = SimpleNamespace(get=lambda name: None if name in set(lacks) else 1)
        self.has_snp = "rmp_make_private" not in set(lacks)
        self._free = free
        self.claimed: list[tuple[int, int]] = []

    def claim(self, pfn: int, pages: int) -> bool:
        """As the kernel: memory only, and nothing that is taken already."""
        first, end = pfn, pfn + pages
        inside = any(base <= first << 12 and end << 12 <= base + size for base, size in self.map.memory)
        taken = any(first < e and f < end for f, e in self.claimed)
        if not inside or taken or not self._free(first, end):
            return False
        self.claimed.append((first, end))
        return True


def refused(function: Callable[[], object]) -> str:
    with pytest.raises(KernelError) as caught:
        function()
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- traces --------------------------------------------------------------------------------------------------------


def listed(tmp_path: Path, text: str) -> ListedCalls:
    (tmp_path / "t.trace").write_text(text, encoding="utf-8")
    return calls_of(read_trace(tmp_path / "t.trace"))


def made(source: Source, kernel: Any) -> list[Wanted]:
    source.prepare(kernel)
    return list(source.calls(kernel))


def test_forced_codes_are_for_the_call_that_follows(tmp_path: Path) -> None:
    source = listed(
        tmp_path,
        "psmash pfn=0x50000\ninject code=4 count=2\n# and one more\ninject code=2\n"
        "rmp_make_private pfn=0x50000 gpa=0x1000 level=4K asid=5\nset_memory_4k pfn=0x50000 pages=1\n",
    )
    assert source.count == 3
    calls = made(source, Kernel())
    assert [wanted.injected for wanted in calls] == [(), (4, 4, 2), ()]
    assert [OpCode(wanted.op.op).name for wanted in calls] == ["psmash", "rmp_make_private", "set_memory_4k"]
    assert [wanted.place for wanted in calls] == [f"{tmp_path}/t.trace:{line}: " for line in (1, 5, 6)]


def test_a_trace_of_nothing(tmp_path: Path) -> None:
    source = listed(tmp_path, "# nothing\n")
    assert (source.count, made(source, Kernel())) == (0, [])


@pytest.mark.parametrize("line", ["inject code=1", "inject code=4 count=3"])
def test_a_forced_code_needs_a_call(tmp_path: Path, line: str) -> None:
    text = refused(lambda: listed(tmp_path, f"psmash pfn=0x200\n{line}\n"))
    assert text == f"{tmp_path}/t.trace: ends with an inject, and no call follows it"


@pytest.mark.parametrize(
    "line",
    [
        "RMPUPDATE pa=0x1000 gpa=0 assigned=1 size=4K asid=1",
        "lookup pfn=1",
        "fail_alloc",
        "set_memory_ro pfn=0x1000 pages=1 high=1",
        "set_memory_ro pfn=0 pages=1 flavour=array",
    ],
)
def test_what_is_no_call_is_refused_by_file_and_line(tmp_path: Path, line: str) -> None:
    text = refused(lambda: listed(tmp_path, f"psmash pfn=0x200\n\n{line}\n"))
    assert text.startswith(f"{tmp_path}/t.trace:3: {parse_op(line)}: ")


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("set_memory_ro pfn=0x50000 pages=1\n", False),
        ("set_memory_4k pfn=0x50000 pages=1\npsmash pfn=0x200\n", True),
        ("inject code=1\nset_memory_4k pfn=0x50000 pages=1\n", True),
    ],
)
def test_whether_snp_is_needed(tmp_path: Path, text: str, needs: bool) -> None:
    assert listed(tmp_path, text).needs_snp(Kernel()) == needs  # type: ignore[arg-type]


def wanted(*lines: str) -> list[Wanted]:
    return [Wanted(parse_op(line)) for line in lines]


def test_frames_that_calls_take_away_are_claimed() -> None:
    """Once each: neighbours and overlaps are one range.  No more than those."""
    kernel = Kernel()
    calls = wanted(
        "set_memory_np pfn=0x50010 pages=4",
        "set_direct_map_invalid_noflush pfn=0x50000",
        "set_memory_ro pfn=0x50001 pages=2",
        "set_memory_rox pfn=0x50002 pages=2",
        "set_memory_np_noalias pfn=0x51000 pages=0",
        "set_direct_map_valid_noflush pfn=0x50012 pages=6 valid=0",
        "set_memory_ro pfn=0x50013 pages=1",
        # none of these takes anything away
        "set_memory_rw pfn=0x60000 pages=1",
        "set_memory_nx pfn=0x60000 pages=1",
        "set_memory_x pfn=0x60000 pages=1",
        "set_memory_p pfn=0x60000 pages=1",
        "set_memory_4k pfn=0x60000 pages=1",
        "_set_memory_uc pfn=0x60000 pages=1",
        "set_direct_map_default_noflush pfn=0x60000",
        "rmp_make_private pfn=0x60000 gpa=0 level=4K asid=1",
        "snp_lookup_rmpentry pfn=0x60000",
    )
    ListedCalls(calls).prepare(kernel)  # type: ignore[arg-type]
    assert kernel.claimed == [(0x50000, 0x50004), (0x50010, 0x50018)]


def test_calls_after_which_a_kernel_misses_something() -> None:
    """Those that clear P or RW (direct-map §7)."""
    for name, args in CALLS.items():
        if name in SNP_CALLS:
            continue
        host = m.Host("native", m.SMALL, kernel="7.3")
        given = {"pfn": 0x1000, "pages": 512, "valid": 0}
        assert host.call(name, **{arg: given[arg] for arg in args}) == 0
        _, entry = host.leaf(0x1000)
        assert (entry & (m.P | m.RW) != m.P | m.RW) == (name in TAKES_AWAY), name


def test_frames_that_are_in_use_are_refused() -> None:
    kernel = Kernel(free=lambda first, end: end <= 0x50000)
    source = ListedCalls(wanted("set_memory_ro pfn=0x4fff0 pages=16", "set_memory_np pfn=0x50008 pages=8"))
    text = "frames 0x50008 to 0x5000f are in use by the kernel, or are no memory: a call would take them away from it"
    assert refused(lambda: source.prepare(kernel)) == text  # type: ignore[arg-type]
    beyond = ListedCalls(wanted("set_direct_map_invalid_noflush pfn=0xfffffffffffff"))
    assert "are no memory" in refused(lambda: beyond.prepare(Kernel()))  # type: ignore[arg-type]


def test_frames_may_be_given() -> None:
    kernel = Kernel()
    ListedCalls(wanted("set_memory_np pfn=0x50000 pages=4"), [(0x50000, 0x50200)]).prepare(kernel)  # type: ignore[arg-type]
    assert kernel.claimed == [(0x50000, 0x50200)]


HANGING = (
    "rmp_make_private pfn=0x50000 gpa=0 level=2M asid=5",
    "rmp_make_shared pfn=0x50001 level=4K",
)
"""RMPUPDATE of one page of a 2 MiB one gives FAIL_OVERLAP, and rmpupdate() repeats what gives that (host §1)."""


def test_a_call_that_would_not_return_is_not_made(tmp_path: Path) -> None:
    source = listed(tmp_path, "\n".join(HANGING))
    kernel = Kernel()
    source.prepare(kernel)  # type: ignore[arg-type]
    calls = source.calls(kernel)  # type: ignore[arg-type]
    assert str(next(calls).op) == HANGING[0].replace("gpa=0 ", "gpa=0x0 ")
    text = refused(lambda: next(calls))
    assert text == f"{tmp_path}/t.trace:2: {HANGING[1]}: the kernel would never return from it"


@pytest.mark.parametrize(
    "lines",
    [
        # another code ends it
        (HANGING[0], "inject code=4 count=3\ninject code=2", HANGING[1]),
        (HANGING[0], "psmash pfn=0x50000", HANGING[1]),
        (HANGING[0], "rmp_make_shared pfn=0x50000 level=2M", HANGING[1]),
    ],
)
def test_a_call_that_returns_after_all_is_made(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert len(made(listed(tmp_path, "\n".join(lines)), Kernel())) == sum("inject" not in line for line in lines)


def test_codes_that_go_on_for_ever_are_not_made(tmp_path: Path) -> None:
    """A forced FAIL_OVERLAP goes on to the instruction itself, and that overlaps."""
    source = listed(tmp_path, "\n".join((HANGING[0], "inject code=4", HANGING[1])))
    assert "the kernel would never return from it" in refused(lambda: made(source, Kernel()))


@pytest.mark.parametrize(
    "line", ["inject code=256", "inject code=4 count=5000", "inject code=4 count=0xffffffffffffffff"]
)
def test_codes_that_no_recording_holds_are_refused(tmp_path: Path, line: str) -> None:
    """Before there is a list of them: a short line may ask for more than memory has."""
    text = refused(lambda: listed(tmp_path, f"{line}\npsmash pfn=0x200\n"))
    assert text == f"{tmp_path}/t.trace:1: {parse_op(line)}: codes are at most 255, and 4096 of them for a call"


@pytest.mark.parametrize(
    "lines",
    [
        ("set_direct_map_valid_noflush pfn=0x50000 pages=1 valid=1",),  # from 6.13 on
        ("inject code=1\ninject code=2\n" * 40 + "psmash pfn=0x50000",),  # more than can wait
    ],
)
def test_what_the_model_cannot_do_is_not_made(tmp_path: Path, lines: tuple[str, ...]) -> None:
    text = refused(lambda: made(listed(tmp_path, "\n".join(lines)), Kernel()))
    assert text.startswith(f"{tmp_path}/t.trace:") and text.endswith("the model of 6.12.95+deb12-amd64 cannot do it")


# --- random calls --------------------------------------------------------------------------------------------------

OLD = ("set_direct_map_valid_noflush",)
"""From 6.13 on (direct-map §7)."""
KERNELS = {
    "4 GiB": (SNP, OLD),
    "1 GiB": (SMALL, OLD),
    "whole 1 GiB pages": (GIGA, ()),
    "no SNP": ("6.1_pc-1g_cpa", (*SNP_CALLS, "set_memory_rox", "set_direct_map_valid_noflush")),
    "five levels": ("6.18_pc-8g-la57_dmap", ()),
}


def frames_of_image(kernel: Kernel) -> tuple[range, range, range]:
    """Text, read-only data, and all of the image, by its symbols."""
    image = kernel.map.image
    assert image is not None

    def frames(first: int, end: int) -> range:
        start, stop = (at - m.HIGH_MAPPING + image.phys_base for at in (first, end))
        return range(start >> 12, -(-stop >> 12))

    return (
        frames(image.text, image.etext),
        frames(image.start_rodata, image.end_rodata),
        frames(image.text, image.brk_end),
    )


def inside(first: int, end: int, frames: range) -> bool:
    return frames.start <= first and end <= frames.stop


@pytest.mark.parametrize("name", KERNELS)
def test_random_calls_leave_the_kernel_what_it_needs(name: str) -> None:
    """Each call by itself: what it takes away was given for it, is read-only anyway, or is no memory at all."""
    recording, lacks = KERNELS[name]
    names, places = set(), set()
    for seed in range(15):
        # the allocator refuses some, differently each time
        kernel = Kernel(recording, free=lambda first, end, seed=seed: (first // 512 + seed) % 3 != 0, lacks=lacks)
        text, rodata, image = frames_of_image(kernel)
        memory = [range(base >> 12, base + size >> 12) for base, size in kernel.map.memory]
        source = SafeCalls(120, seed)
        calls = made(source, kernel)
        assert (len(calls), source.count, source.made) == (120, 120, calls)
        assert sorted(source.frames) == sorted(kernel.claimed)
        for call in calls:
            function, args = call_arguments(call.op)
            names.add(function)
            assert function not in lacks
            first, end = args[0], args[0] + (args[1] if len(args) > 1 else 1)
            if function in SNP_CALLS:
                assert kernel.has_snp
                continue
            assert not call.injected
            ours = any(f <= first and end <= e for f, e in kernel.claimed)
            nowhere = not any(first < part.stop and part.start < end for part in memory)
            places.add("ours" if ours else "nowhere" if nowhere else "image")
            if ours or nowhere:
                continue
            assert inside(first, end, image), call.op
            if function in TAKES_AWAY:
                assert function in ("set_memory_ro", "set_memory_rox"), call.op
                assert inside(first, end, text) or inside(first, end, rodata), call.op
                places.add("read-only")
    assert places == {"ours", "nowhere", "image", "read-only"}
    assert names == set(CALLS) - set(lacks)


def test_the_same_seed_gives_the_same_calls() -> None:
    first, again, other = (made(SafeCalls(200, seed), Kernel()) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert made(SafeCalls(50, 3), Kernel()) == first[:50]


def test_codes_are_forced_unless_told_not_to() -> None:
    """They are for calls on own blocks that execute an instruction, and end with one that is not FAIL_OVERLAP."""
    forced = [call for seed in range(6) for call in made(SafeCalls(200, seed), Kernel()) if call.injected]
    assert len(forced) > 10
    for call in forced:
        assert all(code == 4 for code in call.injected[:-1])
        assert call.injected[-1] != 4
        assert OpCode(call.op.op).name in ("rmp_make_private", "rmp_make_shared", "psmash")
        assert call.op.level <= 2
    for seed in range(6):
        assert not any(call.injected for call in made(SafeCalls(200, seed, inject=False), Kernel()))


def test_forced_codes_are_used_up() -> None:
    """A call executes as many instructions as codes were forced on it, as far as the model knows."""
    for seed in range(6):
        kernel = Kernel()
        machine = Machine(kernel.map, kernel="6.12", state=kernel.before)
        for call in made(SafeCalls(200, seed), kernel):
            for code in call.injected:
                machine.apply(make_op("inject", code=code))
            machine.apply(call.op)
            if call.injected:
                assert machine.state().inject == (), call


@pytest.mark.parametrize("recording", [SNP, "6.18_pc-8g-la57_dmap"])
def test_random_calls_return_on_both_models(backend: str, recording: str) -> None:
    kernel = Kernel(recording)
    machine = Machine(kernel.map, kernel=kernel.image.release, backend=backend, state=kernel.before)
    for call in made(SafeCalls(120, 5), kernel):
        for code in call.injected:
            assert machine.apply(make_op("inject", code=code)).kind == Kind.KERNEL
        assert machine.apply(call.op).kind == Kind.KERNEL, call
    assert machine.validate() is None


def test_calls_meet_each_other() -> None:
    """Pages are given to guests and come back, and not all is refused."""
    kernel = Kernel()
    machine = Machine(kernel.map, kernel="6.12", state=kernel.before)
    results: set[tuple[str, int]] = set()
    for call in made(SafeCalls(600, 1, inject=False), kernel):
        results.add((OpCode(call.op.op).name, machine.apply(call.op).ret))
    for name in ("rmp_make_private", "rmp_make_shared", "psmash", "snp_lookup_rmpentry"):
        assert (name, 0) in results
        assert len({ret for which, ret in results if which == name}) > 1, name
    assert {name for name, ret in results if name.startswith("set_") and ret == 0} == {
        name for name in CALLS if name.startswith("set_") and name not in OLD
    }
    counters = machine.counters()
    assert counters["level3_splits"] > 0 < counters["level2_splits"]


def test_no_memory_to_spare() -> None:
    text = "the kernel has no 2 MiB block of memory to spare: give it more memory"
    assert refused(lambda: made(SafeCalls(10, 1), Kernel(free=lambda first, end: False))) == text


def test_a_map_without_an_image() -> None:
    kernel = Kernel()
    kernel.map = m.HOLE
    assert refused(lambda: made(SafeCalls(10, 1), kernel)) == "the map has no kernel image"


def test_few_blocks_are_enough() -> None:
    kernel = Kernel(SMALL, free=lambda first, end: (first, end) == (0x8000, 0x8200))
    for seed in range(200):
        try:
            calls = made(SafeCalls(20, seed), kernel)
        except KernelError:  # it did not ask for that one
            continue
        assert kernel.claimed == [(0x8000, 0x8200)]
        assert len(calls) == 20
        return
    pytest.fail("the block was never asked for")


# --- differences made small ----------------------------------------------------------------------------------------

Fault = Callable[[list[Op], Op, int], int]
"""What the pretended kernel does wrong: earlier calls, the call, its return by the model; gives another return."""


class Guests:
    """Stands for record(): each recording is of a kernel that does what the model does, but for a fault."""

    def __init__(self, recording: str, fault: Fault, backend: str = "native") -> None:
        self._recording, self._fault, self._backend = recording, fault, backend
        self.started: list[int] = []
        self.frames: list[list[tuple[int, int]]] = []

    def __call__(self, image: Image, layout: Any, source: Source) -> dict[str, object]:
        kernel: Any = Kernel(self._recording)
        self.started.append(source.count)
        source.prepare(kernel)
        self.frames.append(kernel.claimed)
        machine = Machine(kernel.map, kernel=kernel.image.release, backend=self._backend, state=kernel.before)
        machine.record_events(True)
        value: dict[str, Any] = json.loads((GOLDEN / f"{self._recording}.json").read_text(encoding="utf-8"))
        calls: list[Recorded] = []
        earlier: list[Op] = []
        for call in source.calls(kernel):
            calls.append(self._make(machine, call, earlier))
            earlier.append(call.op)
        state: dict[str, Any] = state_to_json(machine.state())
        state["page_counts"] = dict(zip(("4k", "2m", "1g"), calls[-1].page_counts, strict=True))
        value["after"] = {key: state[key] for key in value["after"]}
        value["calls"] = [call.to_json() for call in calls]
        return value

    def _make(self, machine: Any, call: Wanted, earlier: list[Op]) -> Recorded:
        for code in call.injected:
            machine.apply(make_op("inject", code=code))
        result = machine.apply(call.op)
        name, args = call_arguments(call.op)
        ret: Any = self._fault(earlier, call.op, result.ret)
        if name == "snp_lookup_rmpentry":
            ret = (ret, int(bool(result.flags & ResultFlag.ASSIGNED)), result.level)
        executed = tuple(
            Executed(
                EventKind(kind).name,
                a,
                b.to_bytes(8, "little") + c.to_bytes(8, "little") if kind == EventKind.RMPUPDATE else None,
                code,
            )
            for kind, _, _, code, a, b, c in machine.take_events().tolist()
            if kind in (EventKind.RMPUPDATE, EventKind.PSMASH, EventKind.RMPREAD)
        )
        counters = machine.counters()
        counts = tuple(counters[f"direct_map_{size}"] for size in ("4k", "2m", "1g"))
        return Recorded(name, args, ret, counts, executed, call.injected)


IMAGE = Image(Path("vmlinuz"), "6.12.95+deb12-amd64", "ab" * 32)


def is_call(op: Op, *names: str) -> bool:
    return OpCode(op.op).name in names


def start(
    monkeypatch: pytest.MonkeyPatch, folder: Path, fault: Fault, calls: int = 40, recording: str = SMALL
) -> tuple[campaign.Round, Guests, list[str]]:
    """A round on a kernel with a fault, held against the native model alone."""
    guests, told = Guests(recording, fault), []
    monkeypatch.setattr(campaign, "record", guests)
    monkeypatch.setattr(campaign, "BACKENDS", ("native",))
    return run_round(0, [IMAGE], 1, calls, folder, told.append), guests, told


def test_nothing_is_kept_where_nothing_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, guests, told = start(monkeypatch, tmp_path / "kept", lambda earlier, op, ret: ret)
    assert (done.kept, done.calls, guests.started, told) == (None, 40, [40], [])
    assert [result.passed for result in done.results] == [True]
    assert not (tmp_path / "kept").exists()


def test_the_oracle_as_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models are held against it."""
    monkeypatch.setattr(campaign, "record", Guests(SMALL, lambda earlier, op, ret: ret, "oracle"))
    done = run_round(0, [IMAGE], 2, 25, tmp_path, lambda text: None)
    assert [(result.backend, result.passed) for result in done.results] == [("native", True), ("oracle", True)]
    assert list(tmp_path.iterdir()) == []


def kept_calls(done: campaign.Round) -> list[dict[str, Any]]:
    assert done.kept is not None
    value = json.loads(done.kept.read_text(encoding="utf-8"))
    result = conform(done.kept)
    assert not result.passed
    return list(value["calls"])


def test_a_call_that_is_wrong_is_kept_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(earlier: list[Op], op: Op, ret: int) -> int:
        return -22 if is_call(op, "psmash") else ret

    done, guests, told = start(monkeypatch, tmp_path / "new/kept", fault)
    assert [call["fn"] for call in kept_calls(done)] == ["psmash"]
    assert done.kept == tmp_path / f"new/kept/difference-1-0-{IMAGE.release}.json"
    assert list((tmp_path / "new/kept").iterdir()) == [done.kept]
    assert not any(result.passed for result in done.results)
    assert done.calls == 40
    assert len(guests.started) <= 1 + campaign.BOOTS
    assert len(told) == 1 and told[0].startswith("round 0: a difference; making it small")
    # a call does the same in each of the guests only if the same frames are free
    assert all(frames == guests.frames[0] for frames in guests.frames)


def test_two_calls_that_are_wrong_together_are_kept_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up goes wrong once a page was given away, whatever was between them."""

    def fault(earlier: list[Op], op: Op, ret: int) -> int:
        if is_call(op, "snp_lookup_rmpentry") and any(is_call(one, "rmp_make_private") for one in earlier):
            return -5
        return ret

    done, guests, _ = start(monkeypatch, tmp_path, fault)
    assert [call["fn"] for call in kept_calls(done)] == ["rmp_make_private", "snp_lookup_rmpentry"]
    assert len(guests.started) <= 1 + campaign.BOOTS


def test_a_difference_that_shows_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the state after the calls alone, so that no call can be told to be the last that matters."""
    real = Guests.__call__

    def wrong(self: Guests, image: Image, layout: Any, source: Source) -> dict[str, object]:
        value: Any = real(self, image, layout, source)
        if any(call["fn"] == "set_memory_np" for call in value["calls"]):
            value["after"]["kernel_set_to_readonly"] ^= 1
        return value

    monkeypatch.setattr(Guests, "__call__", wrong)
    done, guests, _ = start(monkeypatch, tmp_path, lambda earlier, op, ret: ret, calls=60)
    assert [call["fn"] for call in kept_calls(done)] == ["set_memory_np"]
    assert len(guests.started) <= 1 + campaign.BOOTS


def test_no_more_guests_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that needs all of the calls is kept as it is."""
    monkeypatch.setattr(campaign, "BOOTS", 7)

    def fault(earlier: list[Op], op: Op, ret: int) -> int:
        return -5 if len(earlier) == 29 else ret

    done, guests, _ = start(monkeypatch, tmp_path, fault, calls=30)
    assert len(kept_calls(done)) == 30
    assert len(guests.started) == 1 + 7


def test_a_difference_that_does_not_come_back_is_kept_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(campaign, "BOOTS", 5)

    def fault(earlier: list[Op], op: Op, ret: int) -> int:
        seen.append(0)
        return -5 if len(seen) == 13 else ret

    done, _, _ = start(monkeypatch, tmp_path, fault, calls=30)
    calls = kept_calls(done)
    assert len(calls) == 30


def test_guests_that_fail_while_it_is_made_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was recorded first is not lost."""
    guests = Guests(SMALL, lambda earlier, op, ret: -22 if is_call(op, "psmash") else ret)

    def record(image: Image, layout: Any, source: Source) -> dict[str, object]:
        if guests.started:
            guests.started.append(source.count)
            raise GuestError("the guest ended: a panic or a reset", ("panic",))
        return guests(image, layout, source)

    monkeypatch.setattr(campaign, "record", record)
    monkeypatch.setattr(campaign, "BACKENDS", ("native",))
    done = run_round(0, [IMAGE], 1, 40, tmp_path, lambda text: None)
    assert len(kept_calls(done)) == 40
    assert len(guests.started) <= 1 + campaign.BOOTS


def test_the_first_guest_of_a_round_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(image: Image, layout: Any, source: Source) -> dict[str, object]:
        raise GuestError("it broke")

    monkeypatch.setattr(campaign, "record", record)
    assert refused(lambda: run_round(0, [IMAGE], 1, 10, tmp_path, lambda text: None)) == "it broke"
    assert list(tmp_path.iterdir()) == []


def test_rounds_take_kernels_and_machines_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel on every machine, with other calls each time, and the same again for the same number."""
    seen: list[tuple[str, Any]] = []
    guests = Guests(SMALL, lambda earlier, op, ret: ret)

    def record(image: Image, layout: Any, source: Source) -> dict[str, object]:
        seen.append((image.release, layout))
        return guests(image, layout, source)

    monkeypatch.setattr(campaign, "record", record)
    monkeypatch.setattr(campaign, "BACKENDS", ("native",))
    images = [IMAGE, Image(Path("other"), "7.3.4+deb13-amd64", "cd" * 32)]
    total = len(images) * len(LAYOUTS)
    rounds = [run_round(number, images, 1, 1, tmp_path, lambda text: None) for number in range(total)]
    assert len(set(seen)) == total
    assert len({done.seed for done in rounds}) == total
    again = run_round(3, images, 1, 1, tmp_path, lambda text: None)
    assert (again.seed, again.image, again.layout) == (rounds[3].seed, rounds[3].image, rounds[3].layout)
    assert run_round(3, images, 2, 1, tmp_path, lambda text: None).seed != rounds[3].seed


def test_a_recording_is_held_against_both_models(tmp_path: Path) -> None:
    value = json.loads((GOLDEN / "6.1_pc-1g_boot.json").read_text(encoding="utf-8"))
    results = hold(value, tmp_path / "r.json")
    assert [(result.backend, result.passed, result.file) for result in results] == [
        ("native", True, str(tmp_path / "r.json")),
        ("oracle", True, str(tmp_path / "r.json")),
    ]
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == value
    value["boot"]["page_counts"]["2m"] += 1
    assert not any(result.passed for result in hold(value, tmp_path / "r.json"))
