"""Workloads (docs/workloads.md): the ops of a host, their counts, and that a real host's rules hold for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from machines import MIB, build_map

from rmpcore.cli import cli
from rmpcore.inputs import load_map
from rmpcore.machine import POLICIES, Machine
from rmpcore.ops import BY_NAME, OP_DTYPE, Kind, OpCode, OpFlag
from rmpcore.page_allocator import PageAllocator, free_memory
from rmpcore.trace import read_trace
from rmpcore.workload import PRESETS, Step, Workload, WorkloadError, _Host, resized, steps

Ops = npt.NDArray[np.void]

MAPS = Path(__file__).parent.parent / "examples" / "maps"
MAP = build_map([(0, 256 * MIB)], e820=[(0, 256 * MIB, 1), (256 * MIB, 2 * MIB, 2)], rmp=(256 * MIB, 258 * MIB - 1))
"""256 MiB with an RMP above, for small guests."""

SMALL = Workload(
    name="small",
    guests=3,
    together=2,
    memory=24 * MIB,
    vcpus=2,
    backing="4K",
    scatter=False,
    touched=0.7,
    exits=300,
    changes=4,
    commands=20,
    strays=3,
    host=4 * MIB,
    pressure=0.1,
)
SHAPES: dict[str, dict[str, object]] = {
    "4K": {},
    "4K scattered": {"scatter": True},
    "2M": {"backing": "2M"},
    "2M scattered": {"backing": "2M", "scatter": True, "memory": 64 * MIB},
    "2M, no 2 MiB block left": {"backing": "2M", "pressure": 1.0, "together": 2},
    "no room for changes": {"memory": 16 * MIB, "touched": 0.0, "changes": 20},
    "nothing but memory": {"exits": 0, "changes": 0, "commands": 0, "strays": 0, "pressure": 0.0},
    **{
        name: {"guests": 2, "together": 1, "memory": 16 * MIB, "exits": 200, "commands": 30, "host": MIB}
        for name in PRESETS
    },
}
"""Workloads that fit :data:`MAP`: variants of SMALL, and the presets made small."""


def shape(name: str) -> Workload:
    return resized(PRESETS.get(name, SMALL), **SHAPES[name])


def all_ops(found: Iterable[Step]) -> Ops:
    return np.concatenate([step.ops for step in found])


def ops_of(workload: Workload, seed: int = 1) -> Ops:
    return all_ops(steps(workload, MAP, seed))


def named(ops: Ops, *names: str) -> Ops:
    found: Ops = ops[np.isin(ops["op"], [OpCode[name] for name in names])]
    return found


def counts(ops: Ops) -> Counter[str]:
    return Counter({OpCode(code).name: n for code, n in zip(*np.unique(ops["op"], return_counts=True), strict=True)})


# What it is --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_ops() -> None:
    first, again, other = (list(steps(SMALL, MAP, seed)) for seed in (5, 5, 6))
    assert len(first) == len(again)
    for a, b in zip(first, again, strict=True):
        assert (a.phase, a.progress) == (b.phase, b.progress)
        assert np.array_equal(a.ops, b.ops)
    assert not np.array_equal(all_ops(first), all_ops(other))


@pytest.mark.parametrize("name", SHAPES)
def test_steps_in_order(name: str) -> None:
    """Phases in order, progress that only grows and ends at 1, arrays of a good size."""
    found = list(steps(shape(name), MAP, 1))
    assert [phase for i, phase in enumerate(step.phase for step in found) if i == 0 or found[i - 1].phase != phase] == [
        "boot",
        "run",
        "end",
    ]
    progress = [step.progress for step in found]
    assert progress == sorted(progress) and progress[0] >= 0 and progress[-1] == 1.0 and progress[-2] < 1.0
    assert all(0 < len(step.ops) <= 1 << 17 and step.ops.dtype == OP_DTYPE for step in found)
    assert all(len(step.ops) >= 1 << 14 for step in found[1:-2])


def test_only_fields_that_an_op_has() -> None:
    """A record with anything else would be another op than its text says, or refused."""
    all_of_them = ops_of(SMALL)
    for name in counts(all_of_them):
        ops = named(all_of_them, name)
        used = {arg.field for arg in BY_NAME[name].args}
        for field in set(OP_DTYPE.names or ()) - used - {"op"}:
            assert not ops[field].any(), (name, field)


@pytest.mark.parametrize("name", SHAPES)
def test_everything_succeeds_upstream(name: str) -> None:
    """§3: but for the strays' writes, which fault and whose victim is the owner."""
    workload, machine = shape(name), Machine(MAP)
    strays = 0
    for step in steps(workload, MAP, 2):
        results = machine.run(step.ops)
        bad = (results["ret"] != 0) | np.isin(results["kind"], [Kind.REFUSED, Kind.HANG])
        assert set(step.ops["op"][bad]) <= {OpCode.kvm_write_guest}
        assert (results["kind"][bad] == Kind.FAULT).all()
        strays += int(bad.sum())
    counters = machine.counters()
    assert strays == counters["host_faults_owner"] == workload.guests * workload.strays
    assert counters["host_faults_neighbour"] == counters["leaked_pages"] == 0


def test_both_backends() -> None:
    """A guest as small as it gets, op by op."""
    workload = resized(SMALL, guests=1, together=1, memory=16 * MIB, touched=0.0, exits=20, changes=1, commands=3)
    tiny = build_map([(0, 32 * MIB)], e820=[(0, 32 * MIB, 1), (32 * MIB, MIB, 2)], rmp=(32 * MIB, 33 * MIB - 1))
    ops = all_ops(steps(resized(workload, host=MIB, backing="2M"), tiny, 1))
    native, oracle = (Machine(tiny, backend=backend) for backend in ("native", "oracle"))
    results = native.run(ops)
    assert np.array_equal(results, oracle.run(ops))
    assert int((results["ret"] != 0).sum()) == workload.strays
    assert native.state() == oracle.state()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["4K", "2M scattered"])
def test_no_policy_refuses_an_op(name: str, policy: str) -> None:
    """The ops are the same whatever became of those before."""
    workload, machine = shape(name), Machine(MAP, policy=policy)
    for step in steps(workload, MAP, 2):
        assert not np.isin(machine.run(step.ops)["kind"], [Kind.REFUSED, Kind.HANG]).any()
    counters = machine.counters()
    assert counters["host_faults_owner"] == workload.guests * workload.strays
    if policy == "none":
        assert counters["host_faults_neighbour"] > 0
    if policy == "fault-split":
        assert counters["forced_shared"] == workload.guests * workload.strays


# Who has which page ------------------------------------------------------------------------------------------------


class Owners:
    """Who has each page, followed by the ops alone.  Every op has to make sense."""

    def __init__(self) -> None:
        self.pages: dict[int, tuple[int, int]] = {}
        """Owner (0 the firmware, else the ASID) and gpa of a page that is not the host's."""
        self.gpas: set[tuple[int, int]] = set()
        self.running: set[int] = set()
        self.strays = 0

    def take(self, pfn: int, pages: int, owner: int, gpa: int) -> None:
        for i in range(pages):
            assert pfn + i not in self.pages, f"page {pfn + i:#x} is given away twice"
            self.pages[pfn + i] = owner, gpa + i
            if owner and gpa != 0xFFFFFFFFF:
                assert (owner, gpa + i) not in self.gpas, f"guest {owner} has gpa {gpa + i:#x} twice"
                self.gpas.add((owner, gpa + i))

    def give_back(self, pfn: int, pages: int) -> None:
        for i in range(pages):
            self.gpas.discard(self.pages.pop(pfn + i))

    def do(self, name: str, op: dict[str, int]) -> None:
        pfn, pages = op["addr"], 512 if op["level"] == 2 else 1
        if name in ("VMRUN", "VMEXIT", "PVALIDATE", "SNP_LAUNCH_UPDATE", "SNP_DECOMMISSION", "SNP_ACTIVATE"):
            pfn >>= 12
        if name == "rmp_mark_pages_firmware":
            self.take(pfn, op["count"], 0, 0)
        elif name == "snp_reclaim_pages":
            assert self.pages[pfn][0] == 0
            self.give_back(pfn, op["count"])
        elif name == "rmp_make_private":
            assert op["id"] > 0
            self.take(pfn, pages, op["id"], op["gpa"] >> 12)
        elif name == "rmp_make_shared":
            assert self.pages[pfn][0] > 0
            self.give_back(pfn, pages)
        elif name == "PVALIDATE":
            assert self.pages[pfn] == (op["id"], op["gpa"] >> 12) and op["va"] == op["gpa"]
            assert op["rcx"] == op["level"] - 1
        elif name == "SNP_LAUNCH_UPDATE":
            assert self.pages[pfn][0] > 0 and self.pages[op["va"] >> 12][0] == 0
        elif name in ("SNP_DECOMMISSION", "SNP_ACTIVATE"):
            assert self.pages[pfn][0] == 0
        elif name == "VMRUN":
            vmsa = op["va"] >> 12
            assert pfn not in self.pages and self.pages[vmsa] == (op["id"], 0xFFFFFFFFF)
            assert pfn % 512 and vmsa % 512, "an erratum (rmp §3.7)"
            assert pfn not in self.running
            self.running.add(pfn)
            assert len(self.running) <= 64
        elif name == "VMEXIT":
            self.running.remove(pfn)
        elif name == "kvm_write_guest" and pfn in self.pages:
            self.strays += 1
        elif name in ("kvm_write_guest", "kvm_read_guest", "host_write", "host_read"):
            assert pfn not in self.pages and pfn not in self.running


@pytest.mark.parametrize("name", SHAPES)
def test_no_page_has_two_owners(name: str) -> None:
    """And everything comes back, but for the trusted region; pages are free memory of the map."""
    workload, owners = shape(name), Owners()
    ops = ops_of(workload, 3)
    fields = [field for field in ("level", "id", "addr", "gpa", "count", "va", "rcx")]
    names = [OpCode(code).name for code in ops["op"].tolist()]
    for op_name, *values in zip(names, *(ops[field].tolist() for field in fields), strict=True):
        owners.do(op_name, dict(zip(fields, values, strict=True)))
    assert owners.strays == workload.guests * workload.strays
    assert not owners.running and not owners.gpas
    assert len(owners.pages) == 512 and set(owners.pages.values()) == {(0, i) for i in range(512)}
    assert min(owners.pages) % 512 == 0
    frames = np.concatenate([np.arange(low, high) for low, high in free_memory(MAP)])
    assert np.isin(named(ops, "host_write", "rmp_make_private", "kvm_write_guest")["addr"], frames).all()


@pytest.mark.parametrize("name", ["4K", "2M scattered"])
def test_the_allocator_gets_everything_back(name: str) -> None:
    host = _Host(shape(name), MAP, np.random.default_rng(1))
    before = host._allocator.free_pages
    for _ in host.steps():
        pass
    assert host._allocator.free_pages == before
    assert sorted(host._asids) == list(range(1, 510))


# Counts ------------------------------------------------------------------------------------------------------------


def test_launch() -> None:
    """§1.2: with four vCPUs 1061 pages are assigned, 1059 of them measured, 29 of those not written before."""
    workload = resized(SMALL, guests=1, together=1, vcpus=4, exits=0, changes=0, commands=0, strays=0)
    ops = ops_of(workload)
    updates = named(ops, "SNP_LAUNCH_UPDATE")
    assert Counter(updates["level"].tolist()) == {1: 1024, 2: 4, 3: 29, 5: 1, 6: 1}
    launched = named(ops, "rmp_make_private")
    launched = launched[launched["flags"] == OpFlag.IMMUTABLE]
    marks = named(ops, "rmp_mark_pages_firmware")
    assert len(launched) + len(marks[marks["count"] == 1]) == 1061
    assert (launched["addr"] == updates["addr"] >> 12).all()
    first = np.flatnonzero(ops["op"] == OpCode.SNP_GCTX_CREATE)[0]
    last = np.flatnonzero(ops["op"] == OpCode.SNP_LAUNCH_UPDATE)[-1]
    assert counts(ops[first:last])["host_write"] == 1024 + 2 + 4
    assert counts(ops[first:last])["snp_lookup_rmpentry"] == 1055


def test_launch_with_2m_backing() -> None:
    """§1.2: 4K entries, but image and low pages lie in three 2 MiB blocks; the rest of the last is accepted."""
    ops = ops_of(resized(SHAPES_2M, exits=0, changes=0, commands=0, strays=0))
    private = named(ops, "rmp_make_private")
    launched = private[(private["flags"] == OpFlag.IMMUTABLE) & (private["gpa"] != 0xFFFFFFFFF000)]["addr"]
    assert (launched % 512 == np.arange(1055) % 512).all()
    assert len(set((launched >> 9).tolist())) == 3
    rest = private[(private["flags"] == 0) & (private["level"] == 1)]["addr"]
    assert (rest == launched[-1] + 1 + np.arange(512 - 31)).all()


def test_accepting_all_memory() -> None:
    """§1.3: every page of the guest once, less the 31 of the launch; §1.7: all of them come back."""
    workload = resized(SMALL, guests=1, together=1, touched=1.0, exits=0, changes=0, commands=0, strays=0)
    found = counts(ops_of(workload))
    pages = 24 * MIB // 4096 - 31
    assert found["PVALIDATE"] == pages
    assert found["rmp_make_private"] == found["rmp_make_shared"] == pages + 1024 + 31 + 2
    assert found["snp_lookup_rmpentry"] == 2 * (pages + 1024 + 31)
    assert found["snp_reclaim_pages"] == found["rmp_mark_pages_firmware"] - 1 == 2


def test_accepting_memory_at_2m() -> None:
    """§1.3, §1.4: one entry and 512 look-ups a region; one region a vCPU and ten more are broken up."""
    workload = resized(SHAPES_2M, exits=0, changes=0, commands=0, strays=0)
    ops = ops_of(workload)
    large = named(ops, "rmp_make_private")
    large = large[large["level"] == 2]
    regions = 64 // 2 - 1
    assert len(large) == regions and not (large["addr"] % 512).any() and not (large["gpa"] % (2 * MIB)).any()
    rest = 512 - 31
    found = counts(ops)
    assert found["psmash"] == 12
    back = named(ops, "rmp_make_shared")
    assert Counter(back["level"].tolist()) == {2: regions - 12, 1: 12 * 512 + rest + 1024 + 31 + 2}
    accepted = 512 * regions + rest + 1055
    assert found["snp_lookup_rmpentry"] == accepted + 12 + (regions - 12) + 12 * 512 + rest + 1055


SHAPES_2M = resized(SMALL, guests=1, together=1, memory=64 * MIB, touched=1.0, backing="2M", pressure=0.0)


def test_what_happens_while_a_guest_runs() -> None:
    """§1.4 to §1.6: exits, changes, commands and strays, as many as asked for."""
    idle = resized(SMALL, guests=1, together=1, exits=0, changes=0, commands=0, strays=0)
    before = counts(ops_of(idle))
    exits = counts(ops_of(resized(idle, exits=5000))) - before
    turns = 3  # of at most 2,048 exits
    assert exits["VMRUN"] == exits["VMEXIT"] == 5000 + 2 * (turns - 1)  # both vCPUs enter in each turn
    shared = exits["kvm_read_guest"] + exits["kvm_write_guest"]
    assert shared + exits["host_read"] == 3 * 5000 and 2 * 5000 + 1100 < shared < 2 * 5000 + 1400
    assert exits["host_write"] == 5000
    changes = counts(ops_of(resized(idle, changes=3))) - before
    assert changes["rmp_make_private"] == changes["rmp_make_shared"] == 3 * 512
    assert changes["PVALIDATE"] == 2 * 3 * 512
    commands = counts(ops_of(resized(idle, commands=300))) - before
    assert commands["rmp_mark_pages_firmware"] == commands["snp_reclaim_pages"]
    assert 540 < commands["rmp_mark_pages_firmware"] < 660
    assert commands["host_write"] == 3 * commands["host_read"] == 900
    strays = counts(ops_of(resized(idle, strays=7))) - before
    assert strays == {"kvm_write_guest": 7}


def test_changes_of_large_regions() -> None:
    """§1.4: every second one page by page, which breaks the region up first; it is large again afterwards."""
    workload = resized(SHAPES_2M, exits=0, commands=0, strays=0, changes=0)
    found = counts(ops_of(resized(workload, changes=4)))
    before = counts(ops_of(workload))
    assert found["psmash"] - before["psmash"] == 2
    assert found["rmp_make_shared"] - before["rmp_make_shared"] == 2 * 512 + 2
    assert found["rmp_make_private"] - before["rmp_make_private"] == 4


def test_guests_together() -> None:
    """§3: as many guests at once as asked for, no more, and their lives are interleaved."""
    workload = resized(SMALL, guests=5, together=3, exits=4000)
    ops = named(ops_of(workload), "SNP_ACTIVATE", "SNP_DECOMMISSION", "VMRUN", "PVALIDATE")
    live = most = 0
    for code in ops["op"].tolist():
        live += (code == OpCode.SNP_ACTIVATE) - (code == OpCode.SNP_DECOMMISSION)
        most = max(most, live)
    assert (most, live) == (3, 0)
    started = [int(np.flatnonzero(ops["op"] == OpCode.SNP_ACTIVATE)[i]) for i in range(5)]
    assert len(np.unique(ops["id"][started])) < 5  # an ASID is used again
    while_starting = ops[started[0] : started[2]]
    assert "VMRUN" in counts(while_starting) and "PVALIDATE" in counts(ops[started[2] :])


def test_the_first_guests_stay_until_the_host_is_full() -> None:
    """§3: so all memory of the guests that are together is in use at once; and some run while others start."""
    workload = resized(SMALL, guests=5, together=4, changes=0, memory=48 * MIB, touched=1.0, pressure=0.0)
    ops = named(ops_of(workload), "SNP_ACTIVATE", "PVALIDATE", "rmp_make_shared", "VMRUN")
    end = np.flatnonzero(ops["op"] == OpCode.rmp_make_shared)[0]
    assert counts(ops[:end])["PVALIDATE"] == 4 * (48 * MIB // 4096 - 31)
    assert counts(ops[: np.flatnonzero(ops["op"] == OpCode.SNP_ACTIVATE)[3]])["VMRUN"] > 0


def test_pages_of_vcpus_are_not_aligned() -> None:
    """§1.2: of two pages, the aligned one is freed; without two that belong together, single ones do."""
    host = _Host(SMALL, MAP, np.random.default_rng(1))
    for ranges, expected in (([(512, 1024)], 513), ([(514, 1024)], 514), ([(512, 513), (1025, 1026)], 1025)):
        host._allocator = PageAllocator(ranges)
        free = host._allocator.free_pages
        assert host._unaligned_page() == expected
        assert host._allocator.free_pages == free - 1


def test_scattered_memory_is_elsewhere() -> None:
    """§1.3: scattered blocks touch more of the machine's 2 MiB regions apart from each other than others do."""

    def jumps(scatter: bool) -> int:
        ops = named(ops_of(resized(SHAPES_2M, scatter=scatter)), "rmp_make_private")
        blocks = ops["addr"][ops["level"] == 2].astype(np.int64) // 512
        return int((np.diff(blocks) != 1).sum())

    assert jumps(True) > 25 and jumps(False) < 8


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_a_real_host(name: str) -> None:
    """§3: on 256 GiB all of them fit, and take about as many ops as the document says."""
    milan = load_map(str(MAPS / "dell-r6515-epyc7513-256g-snp.json"))
    documented = re.search(
        rf"\| `{name}` \|.*\| ([0-9.]+) million \|", (Path(__file__).parent.parent / "docs/workloads.md").read_text()
    )
    assert documented is not None
    million = float(documented[1])
    found = steps(PRESETS[name], milan, 1)
    if million > 10:  # the bulk of it takes seconds: how far the first steps get says as much
        some = [next(found) for _ in range(200)]
        total = sum(len(step.ops) for step in some) / some[-1].progress / 1e6
        assert million * 0.8 < total < million * 1.25
    else:
        assert abs(sum(len(step.ops) for step in found) / 1e6 - million) < 0.06


# What cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guests": 0}, "guests is 0, outside 1..1048576"),
        ({"together": 510, "guests": 600}, "together is 510, outside 1..509"),
        ({"together": 4}, "4 of 3 guests cannot be together"),
        ({"memory": MIB}, "memory is 1048576, outside 16777216.."),
        ({"vcpus": 0}, "vcpus is 0"),
        ({"backing": "1G"}, "backing is '1G', not 4K or 2M"),
        ({"touched": 1.5}, "touched is 1.5, outside 0..1"),
        ({"touched": float("nan")}, "touched is nan"),
        ({"exits": -1}, "exits is -1"),
        ({"host": 0}, "host is 0"),
        ({"pressure": -0.1}, "pressure is -0.1"),
        ({"colour": 1}, "a workload has no colour"),
    ],
)
def test_numbers_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError) as error:
        resized(SMALL, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_machine_that_cannot_have_it() -> None:
    """Told at once, not after the first ops."""
    with pytest.raises(WorkloadError, match="map test has no RMP"):
        steps(SMALL, build_map([(0, 64 * MIB)]), 1)
    with pytest.raises(WorkloadError, match=r"2 guests at once need 0\.37\d+ GiB, .*; map test has 0\.24\d+ GiB"):
        steps(resized(SMALL, memory=256 * MIB), MAP, 1)
    with pytest.raises(WorkloadError, match="host and 2 guests"):
        steps(resized(SMALL, host=1 << 40), MAP, 1)


def test_memory_to_the_last_page() -> None:
    """What is promised to fit does fit: the largest guest that is not refused runs to its end."""
    low, high = 32, 256
    while high - low > 2:
        middle = (low + high) // 4 * 2
        try:
            steps(resized(SMALL, memory=middle * MIB, touched=1.0, pressure=0.3), MAP, 1)
            low = middle
        except WorkloadError:
            high = middle
    ops = ops_of(resized(SMALL, memory=low * MIB, touched=1.0, pressure=0.3))
    assert low > 60 and counts(ops)["SNP_DECOMMISSION"] == 3


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def map_path(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(
        '{"format": "rmpcore-machine-map", "version": 1, "name": "small", "rmp": {"base": "0x10000000", "end": '
        '"0x101fffff"}, "e820": [["0x0", "0x10000000", "usable"], ["0x10000000", "0x200000", "reserved"]]}'
    )
    return path


TINY = ("--memory", "16M", "--touched", "0.2", "--exits", "10", "--commands", "2", "--changes", "1", "--host", "1M")


def call(*args: object) -> Result:
    return CliRunner().invoke(cli, ["workload", *map(str, args)])


def test_command_writes_a_trace(map_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.trace"
    assert call("--map", map_path, "--seed", 3, "-o", path, *TINY).exit_code == 0
    expected = resized(PRESETS["one-guest"], memory=16 * MIB, touched=0.2, exits=10, commands=2, changes=1, host=MIB)
    ops = all_ops(steps(expected, load_map(str(map_path)), 3))
    assert np.array_equal(read_trace(path).ops, ops)
    printed = call("--map", map_path, "--seed", 3, *TINY)
    assert printed.stdout == path.read_text()


def test_command_counts(map_path: Path) -> None:
    result = call("churn", "--map", map_path, "--count", "--guests", 2, "--strays", 1, "--vcpus", 1, *TINY)
    assert result.exit_code == 0
    lines = {name: int(number.replace(",", "")) for number, name in re.findall(r"(\S+)  (.+)", result.stdout)}
    assert lines["SNP_ACTIVATE"] == 2 and lines["SNP_LAUNCH_UPDATE"] == 2 * 1056
    assert lines.pop("ops in all") == sum(lines.values())


def test_command_options_without_a_preset(map_path: Path) -> None:
    """Guests that are all together stay so; a preset with fewer at once keeps them."""
    result = call("--map", map_path, "--guests", 600, *TINY)
    assert result.exit_code != 0 and "together is 600" in str(result.output) + str(result.exception)
    assert call("churn", "--map", map_path, "--guests", 1, "--count", *TINY).exit_code == 0


def test_command_places_an_rmp(tmp_path: Path) -> None:
    path = tmp_path / "plain.json"
    path.write_text(
        '{"format": "rmpcore-machine-map", "version": 1, "name": "plain", "rmp": null, "e820": [["0x0", "0x10000000", '
        '"usable"]]}'
    )
    result = call("--map", path, "--count", *TINY)
    assert result.exit_code == 0
    assert "has no RMP, so one is placed" in result.stderr and "placed" not in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--memory", "64X"), "64X is not a size"),
        (("--memory", "4G"), "need 4."),
        (("--together", "2"), "2 of 1 guests cannot be together"),
        (("--count", "-o", "x"), "either --count or --output"),
        (("--pressure", "2"), "--pressure"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_command_refuses_in_one_line(map_path: Path, tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    result = call("--map", map_path, *args)
    assert result.exit_code == 2 and result.stdout == ""
    assert message in result.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.tmp"))
