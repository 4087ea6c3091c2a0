"""From drafts to test vectors: what the oracle makes of each, and native has to agree.

The expected values are the oracle's, which is written from the documents.  A case on which the two implementations
differ is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain

import numpy as np

from rmpcore.machine import BACKENDS, Machine, MachineLike
from rmpcore.maps import MachineMap
from rmpcore.ops import BY_CODE, Op, format_result
from rmpcore.oracle.profile import hardware_profile
from rmpcore.state import RMP_DTYPE, State, diff_states, entries
from rmpcore.vectors import access, insn, pages, whole
from rmpcore.vectors.draft import C_BIT, FRAMES, RULES, Draft
from rmpcore.vectors.form import KINDS, Case, Items, Vectors, changed_items, items_of, number_text
from rmpcore.vectors.form import Machine as VectorMachine
from rmpcore.vectors.pages import PAGES_MAP
from rmpcore.vectors.whole import GIGA, PC

HARDWARE = ("genoa", "milan", "turin")
_BARE = MachineMap(
    name="bare",
    e820=((0, 4 << 20, 1),),
    memory=((0, 4 << 20),),
    reserved=((0, 1 << 20),),
    max_pfn=1 << 10,
    c_bit=C_BIT,
    rmp=(1 << 32, (1 << 32) + 0x4000 + 16 * FRAMES - 1),
    rmp_probed=False,
)
"""As little memory as a machine needs, and an RMP somewhere else."""


_LEVEL1: tuple[Callable[[], Iterator[Draft]], ...] = (
    insn.rmpupdate,
    insn.psmash,
    insn.rmpread,
    insn.pvalidate,
    insn.rmpadjust,
    insn.rmpquery,
    access.page_state,
    access.host_access,
    access.guest_access,
    pages.page_tables,
)
"""Each gives the cases of some rules."""
_LEVEL2: tuple[Callable[[], Iterator[Draft]], ...] = (
    whole.direct_map,
    whole.host,
    whole.firmware,
)


class DisagreeError(Exception):
    """Native and oracle differ about a case."""


@dataclass(frozen=True)
class Part:
    """A machine to make cases on."""

    map: MachineMap
    kernel: str
    hardware: str
    kinds: tuple[str, ...]
    """What the cases say of its state."""


def level1_parts(hardware: str) -> dict[str, Part]:
    """The machines of level 1; ``hardware``: the part that most cases are about."""
    parts = {name: Part(_BARE, "6.12", name, ("rmp", "in_use")) for name in HARDWARE}
    parts["no-rmp"] = Part(replace(_BARE, rmp=None), "6.12", hardware, ("rmp", "in_use"))
    for kernel in ("6.1", "6.2", "6.12", "6.18"):
        parts[f"pages-{kernel}"] = Part(PAGES_MAP, kernel, hardware, ("leaf",))
    return parts


def level2_parts(hardware: str) -> dict[str, Part]:
    """The machines of level 2."""
    kinds = tuple(KINDS)
    parts = {f"pc-{kernel}": Part(PC, kernel, hardware, kinds) for kernel in ("6.1", "6.12", "6.18")}
    parts |= {f"giga-{kernel}": Part(GIGA, kernel, hardware, kinds) for kernel in ("6.12", "6.18")}
    parts["no-rmp-6.12"] = Part(replace(PC, rmp=None), "6.12", hardware, kinds)
    parts["turin-6.18"] = Part(PC, "6.18", "turin", kinds)
    return parts


def _numbers(**numbers: int) -> dict[str, str]:
    return {name: number_text(value) for name, value in numbers.items()}


def machine_lines(name: str, part: Part, switches: Mapping[str, int]) -> VectorMachine:
    """A machine as a file of cases describes it."""
    map_ = part.map
    about = {"kernel": part.kernel, "hardware": part.hardware, "large_pages": map_.large_pages}
    about |= _numbers(
        levels=map_.levels,
        page_offset=map_.page_offset,
        max_pfn=map_.max_pfn,
        c_bit=map_.c_bit,
        supported_mask=map_.supported_mask,
        default_mask=map_.default_mask,
    )
    about["cachemodes"] = ",".join(map(number_text, map_.cachemodes))
    lines: list[tuple[str, Mapping[str, str]]] = [("map", about)]
    if map_.rmp is not None:
        base, end = map_.rmp
        numbers = _numbers(base=base, end=end, frames=(end + 1 - base - 0x4000) // 16, probed=int(map_.rmp_probed))
        lines.append(("rmp_table", numbers))
        lines.append(("switches", _numbers(**asdict(hardware_profile(part.hardware, switches)))))
    lines += [("e820", _numbers(start=start, size=size, type=kind)) for start, size, kind in map_.e820]
    lines += [("memory", _numbers(base=base, size=size)) for base, size in map_.memory]
    lines += [("reserved", _numbers(base=base, size=size)) for base, size in map_.reserved]
    if map_.image is not None:
        lines.append(("image", _numbers(**asdict(map_.image))))
    return VectorMachine(name, tuple(lines))


def with_items(state: State, items: Items) -> State:
    """A state with some of its entries, leaves and rows replaced."""
    rmp = {row[0]: row[1:] for row in state.rmp.tolist()}
    leaves = {row[:3]: row[3] for row in state.leaves.tolist()}
    in_use = list(state.in_use)
    for (word, *keys), values in items.items():
        if values is None:
            raise ValueError(f"a draft cannot take a {word} away")
        if word == "rmp":
            rmp[keys[0]] = values
        elif word == "leaf":
            leaves[tuple(keys)] = values[0]
        elif word == "in_use":
            in_use.append((keys[0], *values))
        else:
            raise ValueError(f"a draft cannot have a {word}")
    return replace(
        state,
        rmp=np.array([(pfn, *values) for pfn, values in sorted(rmp.items()) if any(values)], dtype=RMP_DTYPE),
        leaves=entries([(*key, raw) for key, raw in leaves.items() if raw]),
        in_use=tuple(in_use),
    )


class Generator:
    """Makes cases of drafts; keeps the state at the start of each machine."""

    def __init__(self, parts: Mapping[str, Part], switches: Mapping[str, int]) -> None:
        self._parts = parts
        self._switches = dict(switches)
        self._starts: dict[tuple[str, tuple[Op, ...]], State] = {}

    def machine(self, name: str, backend: str, state: State | None = None) -> MachineLike:
        """A machine at its start, or in a state."""
        part = self._parts[name]
        return Machine(
            part.map,
            kernel=part.kernel,
            hardware=part.hardware,
            backend=backend,
            switches=self._switches,
            state=state,
        )

    def _start(self, name: str, setup: tuple[Op, ...]) -> State:
        key = name, setup
        if key not in self._starts:
            machine = self.machine(name, "oracle")
            for op in setup:
                machine.apply(op)
            self._starts[key] = machine.state()
        return self._starts[key]

    def case(self, draft: Draft, name: str) -> Case:
        """A draft on the machine of that name, with what comes out.  Raises :class:`DisagreeError`."""
        kinds = self._parts[name].kinds
        state = self._start(name, draft.setup)
        if draft.items:
            state = with_items(state, draft.items)
        machines = {backend: self.machine(name, backend, state) for backend in BACKENDS}
        results = {backend: machine.apply(draft.op) for backend, machine in machines.items()}
        after = {backend: machine.state() for backend, machine in machines.items()}
        texts = {backend: format_result(draft.op, result) for backend, result in results.items()}
        if results["native"] != results["oracle"]:
            raise DisagreeError(f"{draft.name}: native {texts['native']}, oracle {texts['oracle']}")
        for line in diff_states(after["native"], after["oracle"]):
            raise DisagreeError(f"{draft.name}: {line}")
        before = items_of(state, kinds)
        return Case(
            name=draft.name,
            machine=name,
            rule=draft.rule,
            about=draft.about,
            setup=() if draft.items else draft.setup,
            before=before,
            op=draft.op,
            result=results["oracle"],
            changes=changed_items(before, items_of(after["oracle"], kinds)),
        )


def _wanted(
    drafts: Iterable[Draft], parts: Mapping[str, Part], hardware: str | None, ops: Sequence[str]
) -> Iterator[tuple[Draft, str]]:
    """Drafts with the names of their machines; those on other parts fall away where one part is asked for."""
    for draft in drafts:
        name = (hardware or HARDWARE[0]) if draft.machine == "main" else draft.machine
        if ops and BY_CODE[draft.op.op].name not in ops:  # type: ignore[index]
            continue
        if hardware in (None, parts[name].hardware):
            yield draft, name


def generate(
    level: int,
    *,
    hardware: str | None = None,
    switches: Mapping[str, int] | None = None,
    ops: Sequence[str] = (),
    report: Callable[[int, int], object] = lambda done, total: None,
) -> Vectors:
    """The cases of a level, for one part or (None) for all that differ; of some ops only, if any are named.

    Raises :class:`DisagreeError`; MachineError for a part or a switch that does not exist."""
    switches = switches or {}
    if level == 1:
        families, parts, rules = _LEVEL1, level1_parts(hardware or HARDWARE[0]), RULES
    else:
        families, parts, rules = _LEVEL2, level2_parts(hardware or HARDWARE[0]), whole.RULES
    generator = Generator(parts, switches)
    chosen = list(_wanted(chain.from_iterable(family() for family in families), parts, hardware, ops))
    cases = []
    for draft, name in chosen:
        cases.append(generator.case(draft, name))
        report(len(cases), len(chosen))
    used = {name for _, name in chosen}
    machines = {name: machine_lines(name, part, switches) for name, part in parts.items() if name in used}
    cited = {case.rule for case in cases}
    return Vectors(level, {rule: text for rule, text in rules.items() if rule in cited}, machines, tuple(cases))
