"""The command line: ``rmpcore run``, ``pages``, ``conform``, ``selftest``, ``decode``, ``place``, and the commands of
cli_workload and cli_compare.

Exit status 0: all is well.  1: the backends disagree, or a recording or a self-test fails.  2: bad input, told in one
line on stderr.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, BinaryIO

import click
import numpy as np

from rmpcore.cli_common import (
    BadInputError,
    Bar,
    Output,
    bad_input,
    disagreement_to_json,
    one_line,
    place_on,
    print_conformance,
    print_disagreement,
    size_text,
    switch_values,
)
from rmpcore.cli_compare import compare_policies
from rmpcore.cli_fuzz import fuzz
from rmpcore.cli_kernel import kernel
from rmpcore.cli_vectors import gen, ver
from rmpcore.cli_workload import workload
from rmpcore.conform import conform as conform_file
from rmpcore.decode import (
    Field,
    decode_nested_fault,
    decode_page_fault,
    decode_pte,
    decode_rmp_entry,
    describe_nested_fault,
    describe_page_fault,
    describe_pte,
    describe_rmp_entry,
    describe_state,
    state_name,
)
from rmpcore.explain import explain, explanation_text, explanation_to_json
from rmpcore.inputs import load_map, map_file
from rmpcore.klog import kernel_log
from rmpcore.machine import BACKENDS, POLICIES, MachineLike
from rmpcore.maps import MachineMap
from rmpcore.memory_image import write_image
from rmpcore.ops import LEVEL_NAMES, RESULT_DTYPE, Refusal, Result, format_result
from rmpcore.page_state import page_state
from rmpcore.pages import Pages, diff_text, diff_to_json, pages_text, pages_to_json
from rmpcore.placement import ASSUMPTION, coverage
from rmpcore.plot import plot, plot_format
from rmpcore.proc import meminfo, vmstat
from rmpcore.recording import RECORDED_STATES, RecordingError
from rmpcore.replay import Lockstep, lockstep, outcomes, refused, replay
from rmpcore.selftest import SelfTest, agreement
from rmpcore.selftest import selftest as test_machine
from rmpcore.start import HARDWARE, KERNEL, POLICY, Rules, Start, dump_to_json, read_start
from rmpcore.state import State
from rmpcore.trace import Trace, read_trace, write_results

_LEVELS = {name: number for number, name in LEVEL_NAMES.items()}
_KERNEL_HELP = f"Kernel whose rules hold.  [default: what a recording or state dump says, else {KERNEL}]"
_HARDWARE_HELP = f"Profile: milan, genoa or turin.  [default: what a state dump says, else {HARDWARE}]"
_backend_option = click.option("--backend", type=click.Choice(BACKENDS), default="native", show_default=True)
_kernel_option = click.option("--kernel", metavar="VERSION", help=_KERNEL_HELP)
_hardware_option = click.option("--hardware", metavar="NAME", help=_HARDWARE_HELP)
_policy_option = click.option(
    "--policy",
    type=click.Choice(POLICIES),
    help=f"What the host does about its direct map.  [default: what a state dump says, else {POLICY}]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rmpcore")
def cli() -> None:
    """AMD SEV-SNP's Reverse Map Table and the Linux direct map, on memory maps of real machines."""


# --- run -----------------------------------------------------------------------------------------------------------


def _sizes(state: State) -> dict[str, int]:
    return {size: state.counters[f"direct_map_{size.lower()}"] for size in ("4K", "2M", "1G")}


def _rmp_summary(machine_map: MachineMap) -> dict[str, Any] | None:
    frames = sum(size for _, size in coverage(machine_map)) >> 12
    if machine_map.rmp is not None:
        base, end = machine_map.rmp
        return {"base": base, "end": end, "frames": frames}
    rmp = machine_map.segmented
    if rmp is None:
        return None
    segments = [{"index": index, "base": base, "size": size} for index, base, size in rmp.segments()]
    return {"base": rmp.base, "cfg": rmp.cfg, "segments": segments, "frames": frames}


def _rmp_words(rmp: dict[str, Any] | None) -> str:
    if rmp is None:
        return "no RMP"
    covered = size_text(rmp["frames"] << 12)
    if "segments" not in rmp:
        return f"RMP {rmp['base']:#x}-{rmp['end']:#x} for {covered}"
    segment = size_text(1 << (rmp["cfg"] >> 8 & 0x3F))
    return f"RMP {rmp['base']:#x} with {len(rmp['segments'])} segments of {segment} for {covered}"


def _map_summary(machine_map: MachineMap) -> dict[str, Any]:
    memory = sum(size for _, size in machine_map.memory)
    return {
        "name": machine_map.name,
        "memory": memory,
        "max_pfn": machine_map.max_pfn,
        "rmp": _rmp_summary(machine_map),
    }


def _state_summary(before: State, after: State) -> dict[str, Any]:
    grown = {name: after.counters[name] - before.counters[name] for name in after.counters}
    return {
        "direct_map": {"before": _sizes(before), "after": _sizes(after)},
        "splits": {"1G": grown["level3_splits"], "2M": grown["level2_splits"]},
        "table_pages": {"before": before.counters["table_pages"], "after": after.counters["table_pages"]},
        "flushes": {"full": grown["flush_all"], "pages": grown["flush_pages"]},
        "instructions": {name: grown[name] for name in ("rmpupdate", "psmash", "rmpread")},
        "rmpupdate_retries": grown["rmpupdate_retries"],
        "leaked_pages": grown["leaked_pages"],
        "rmp_entries": len(after.rmp),
    }


def _print_run(summary: dict[str, Any]) -> None:
    machine = summary["machine"]
    rows = [("machine", f"{machine['name']}: {size_text(machine['memory'])} of memory, {_rmp_words(machine['rmp'])}")]
    rules = f"kernel {summary['kernel']}, hardware {summary['hardware']}, policy {summary['policy']}"
    rows.append(("rules", f"{rules}, {summary['backend']} machine"))
    rate = f", {summary['ops_per_second']:,.0f} a second" if summary["ops_per_second"] else ""
    rows.append(("ops", f"{summary['ops']:,} in {summary['seconds']:.3f} s{rate}"))
    for name, results in summary["outcomes"].items():
        rows.append(("", f"{name}: " + ", ".join(f"{count:,} x {text}" for text, count in results.items())))
    before, after = summary["direct_map"]["before"], summary["direct_map"]["after"]
    pages = [f"{size} {before[size]:,} -> {after[size]:,}" for size in before]
    tables = summary["table_pages"]
    rows.append(("direct map", f"{', '.join(pages)}; table pages {tables['before']:,} -> {tables['after']:,}"))
    rows.append(("splits", f"{summary['splits']['1G']:,} of 1G, {summary['splits']['2M']:,} of 2M"))
    rows.append(("flushes", f"{summary['flushes']['full']:,} of all TLBs, {summary['flushes']['pages']:,} of one page"))
    executed = ", ".join(f"{count:,} {name.upper()}" for name, count in summary["instructions"].items())
    rows.append(("executed", f"{executed}; {summary['rmpupdate_retries']:,} retries"))
    rows.append(("RMP", f"{summary['rmp_entries']:,} entries not zero, {summary['leaked_pages']:,} pages leaked"))
    image = summary["image"]
    if image is not None:
        rows.append(("image", f"{image['file']}, root of the page tables (CR3) {image['root']:#x}"))
    check = summary["check"]
    if check is not None:
        text = "native and oracle agree after every op"
        if check["every"] > 1:
            text = "native and oracle agree: results and events of every op, "
            text += f"states at least every {check['every']:,} ops"
        rows.append(("check", f"{text} ({check['states']:,} states compared)"))
    for name, text in rows:
        click.echo(f"{name:<12}{text}")


_REFUSALS = {
    "BAD_ARGUMENT": "an argument is out of range",
    "BAD_OP": "not an op that this kernel has",
    "QUEUE_FULL": "too many injected codes are waiting",
}


def _refuse(trace: Trace, index: int, ret: int) -> None:
    reason = _REFUSALS[Refusal(ret).name]
    raise BadInputError(f"{trace.place(index)}: {trace.op(index)}: {reason}")


def _begin(map_path: str | None, state_path: str | None, start: str | None) -> Start:
    """Where a run starts: one of the two paths at least is given."""
    if state_path is None:
        return read_start(map_path or "", start, resume=False, rmp=start is not None)
    begin = read_start(state_path)
    if begin.what != "dump":
        raise BadInputError(f"{state_path}: is not a state dump (run --dump writes one)")
    if map_path is not None:
        begin.require_map(load_map(map_path))
    return begin


@cli.command()
@click.argument("trace_path", metavar="TRACE")
@click.option("--map", "map_path", metavar="MAP", help="Map: JSON, kernel log, /proc/iomem, recording, state dump.")
@click.option(
    "--state",
    "state_path",
    metavar="FILE",
    help="Go on from a state dump.  Its map and rules hold; what is given beside it has to be the same.",
)
@click.option(
    "--start",
    type=click.Choice(RECORDED_STATES),
    help="With a recording as MAP: go on from a state in it, with an empty RMP at 2^40.",
)
@_kernel_option
@_hardware_option
@click.option("--switch", "switches", metavar="NAME=VALUE", multiple=True, help="Override one point of the profile.")
@_policy_option
@_backend_option
@click.option("--check", is_flag=True, help="Run both backends and compare results, events and states.")
@click.option(
    "--check-every",
    type=click.IntRange(1),
    metavar="N",
    help="With --check: compare states every N ops; by default the more seldom the larger they are.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--results", "results_path", metavar="FILE", help="Write every op with its result.")
@click.option("--dump", "dump_path", metavar="FILE", help="Write the final state as JSON.")
@click.option(
    "--image",
    "image_path",
    metavar="FILE",
    help="Write the native machine's memory at the end: raw if FILE ends in .raw, otherwise as an ELF core.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print every op, its result and what it made the kernel do or log.")
def run(
    trace_path: str,
    map_path: str | None,
    state_path: str | None,
    start: str | None,
    kernel: str | None,
    hardware: str | None,
    switches: tuple[str, ...],
    policy: str | None,
    backend: str,
    check: bool,
    check_every: int | None,
    as_json: bool,
    results_path: str | None,
    dump_path: str | None,
    image_path: str | None,
    verbose: bool,
) -> None:
    """Replay TRACE, one op a line, on the machine that MAP describes or that was saved with --dump."""
    if map_path is None and state_path is None:
        raise BadInputError("give --map or --state")
    if start is not None and state_path is not None:
        raise BadInputError("either --start or --state, not both")
    if check_every is not None and not check:
        raise BadInputError("--check-every needs --check")
    if verbose and (check or as_json):
        raise BadInputError("--verbose goes neither with --check nor with --json")
    if image_path is not None and backend != "native":
        raise BadInputError(f"--image needs the native machine: the {backend} has no bytes")
    with ExitStack() as stack:
        stack.enter_context(bad_input())
        begin = _begin(map_path, state_path, start)
        machine_map = begin.map
        size = os.path.getsize(trace_path) if os.path.isfile(trace_path) else None
        with Bar(size, "reading") as bar:
            trace = read_trace(trace_path, bar)
        rules = begin.settle(Rules(kernel, hardware, switch_values(switches), policy))

        def make(name: str) -> MachineLike:
            return begin.machine(rules, name)

        results_file = stack.enter_context(Output(results_path)) if results_path is not None else None
        dump_file = stack.enter_context(Output(dump_path)) if dump_path is not None else None
        image_file = stack.enter_context(Output(image_path)) if image_path is not None else None
        checked: Lockstep | None = None
        with Bar(len(trace), os.path.basename(trace_path)) as bar:
            if check:
                started = time.perf_counter()
                checked = lockstep(make, trace.ops, check_every, bar)
                machine = checked.machines[BACKENDS.index(backend)]
                before, results = checked.before, checked.results
            else:
                machine = make(backend)
                before = machine.state()
                started = time.perf_counter()
                results = _replay(machine, trace, bar, verbose)
            seconds = time.perf_counter() - started
        if checked is None or checked.disagreement is None:
            index = refused(results)
            if index is not None:
                _refuse(trace, index, int(results[index]["ret"]))
        after = machine.state()
        summary = {
            "machine": _map_summary(machine_map),
            "kernel": machine.kernel,
            "hardware": rules.hardware,
            "switches": rules.switches,
            "policy": rules.policy,
            "backend": backend,
            "ops": len(results),
            "seconds": seconds,
            "ops_per_second": len(results) / seconds if seconds > 0 else None,
            "outcomes": outcomes(trace.ops, results),
            **_state_summary(before, after),
            "image": {"file": image_path, "root": after.root} if image_path is not None else None,
            "check": None,
        }
        if checked is not None:
            found = disagreement_to_json(checked.disagreement, trace) if checked.disagreement is not None else None
            summary["check"] = {"every": checked.widest, "states": checked.states, "disagreement": found}
            if found is not None:
                click.echo(json.dumps(summary, indent=1)) if as_json else print_disagreement(found)
                raise click.exceptions.Exit(1)
        if results_file is not None:
            with Bar(len(results), "writing") as bar:
                results_file.fill(lambda file: write_results(file, trace.ops, results, bar))
        if dump_file is not None:
            dump_file.fill(lambda file: file.write(json.dumps(dump_to_json(machine, rules, after)) + "\n"))
        if image_file is not None:
            image_file.fill(lambda file: write_image(machine, file.buffer, raw=image_file.path.endswith(".raw")))
    click.echo(json.dumps(summary, indent=1)) if as_json else _print_run(summary)


def _replay(machine: MachineLike, trace: Trace, bar: Bar, verbose: bool) -> Any:
    """Do a trace's ops; stops after the results in which one is refused."""
    machine.record_events(verbose)
    parts = [np.zeros(0, dtype=RESULT_DTYPE)]
    done = 0
    for results in replay(machine, trace.ops, bar, chunk=1 if verbose else 0):
        parts.append(results)
        if verbose:
            op = trace.op(done)
            click.echo(f"{trace.place(done)}: {op}  {format_result(op, Result(*results[0].item()))}")
            for line in kernel_log(machine.take_events(), plain=True):
                click.echo(f"    {line}")
        done += len(results)
        if refused(results) is not None:
            break
    return np.concatenate(parts)


# --- pages ---------------------------------------------------------------------------------------------------------


def _pages(path: str, which: str | None, rules: Rules, backend: str) -> tuple[Pages, str, str]:
    """What is shown of a source, the kernel that holds for it, and what it is in words."""
    start = read_start(path, which)
    machine = start.machine(start.settle(rules), backend)
    words = "as booted" if start.state is None else "a saved state" if which is None else f"recorded state {which}"
    return Pages(machine.map, machine.state()), machine.kernel, f"{machine.map.name}, {words}"


@cli.command()
@click.argument("source")
@click.option("--state", "which", type=click.Choice(RECORDED_STATES), help="Show this state of a recording.")
@click.option("--diff", "other", metavar="OTHER", help="Show only what is different in OTHER, beside it.")
@click.option("--diff-state", type=click.Choice(RECORDED_STATES), help="The state, if OTHER is a recording.")
@click.option("--plot", "picture", metavar="FILE", help="Draw physical memory into FILE.svg or FILE.png instead.")
@click.option("--counters", is_flag=True, help="Print the lines of /proc/meminfo and /proc/vmstat instead.")
@_kernel_option
@_hardware_option
@_backend_option
@_json_option
def pages(
    source: str,
    which: str | None,
    other: str | None,
    diff_state: str | None,
    picture: str | None,
    counters: bool,
    kernel: str | None,
    hardware: str | None,
    backend: str,
    as_json: bool,
) -> None:
    """Print the direct map of SOURCE in ranges, as the kernel's page-table dump does.

    SOURCE is a map, which is booted; a recording, booted from its map or read with --state; or a state dump.
    """
    if sum((other is not None, picture is not None, counters)) > 1:
        raise BadInputError("one of --diff, --plot and --counters")
    if diff_state is not None and other is None:
        raise BadInputError("--diff-state needs --diff")
    if as_json and (picture is not None or counters):
        raise BadInputError("--json goes neither with --plot nor with --counters")
    rules = Rules(kernel, hardware)
    with ExitStack() as stack:
        stack.enter_context(bad_input())
        if picture is not None:
            plot_format(picture)
        shown, version, title = _pages(source, which, rules, backend)
        if picture is not None:
            output = stack.enter_context(Output(picture))
            output.fill_bytes(plot(shown, picture, title))
        elif counters:
            click.echo(meminfo(shown.state, shown.map) + vmstat(shown.state, version), nl=False)
        elif other is not None:
            theirs, _, _ = _pages(other, diff_state, rules, backend)
            if as_json:
                click.echo(json.dumps(diff_to_json(shown, theirs), indent=1))
            else:
                _print_lines(diff_text(shown, theirs), empty="no difference")
        elif as_json:
            head = {"map": shown.map.name, "kernel": version, "page_offset": hex(shown.map.page_offset)}
            click.echo(json.dumps({**head, **pages_to_json(shown)}, indent=1))
        else:
            _print_lines(pages_text(shown))


def _print_lines(lines: Iterator[str], empty: str = "") -> None:
    line = None
    for line in lines:
        click.echo(line)
    if line is None:
        click.echo(empty)


# --- selftest ------------------------------------------------------------------------------------------------------


def _print_selftest(result: SelfTest) -> None:
    spots = ", ".join(f"{count:,} {name}" for name, count in result.spots.items())
    verdict = "PASS" if result.passed else "FAIL"
    click.echo(f"{verdict}  {result.backend}: {sum(result.spots.values()):,} spots ({spots}), {result.pages:,} pages")
    for when, found in result.sums.items():
        sizes = ", ".join(f"{name} {size_text(size)}" for name, size in found.sizes.items())
        click.echo(f"    {when:<7} {sizes}, missing {size_text(found.missing)}")
    click.echo(f"    pages marked inside a large page that a range covered: {result.kept_large:,}")
    for line in result.failures:
        click.echo(f"    {line}")
    if result.failed > len(result.failures):
        click.echo(f"    and {result.failed - len(result.failures):,} more failures")


@cli.command()
@click.option("--map", "map_path", metavar="MAP", required=True, help="Map: JSON, kernel log, /proc/iomem, recording.")
@click.option("--spots", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many random spots.")
@click.option("--seed", type=int, default=1, show_default=True, help="Other spots for another number.")
@click.option("--backend", type=click.Choice(BACKENDS), help="Only this one.  [default: both, compared]")
@_kernel_option
@_hardware_option
def selftest(
    map_path: str, spots: int, seed: int, backend: str | None, kernel: str | None, hardware: str | None
) -> None:
    """Mark random spots of MAP's direct map, check, revert, check, as the kernel's own test does."""
    results = []
    with bad_input():
        start = read_start(map_path, resume=False)
        rules = start.settle(Rules(kernel, hardware))
        for name in (backend,) if backend is not None else BACKENDS:
            results.append(test_machine(start.machine(rules, name), spots, seed))
            _print_selftest(results[-1])
    disagreement = agreement(results)
    if disagreement is not None:
        click.echo(f"FAIL  {disagreement}")
    if disagreement is not None or not all(result.passed for result in results):
        raise click.exceptions.Exit(1)


# --- conform -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@_backend_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def conform(files: tuple[str, ...], backend: str, as_json: bool) -> None:
    """Hold a backend against recordings of real kernels: one line a recording."""
    status = 0
    rows: list[dict[str, Any]] = []
    with bad_input(), Bar(len(files), "recordings") as bar:
        for done, path in enumerate(files):
            bar(done)
            try:
                result = conform_file(path, backend)
            except RecordingError as e:
                click.echo(f"rmpcore: {one_line(str(e))}", err=True)
                rows.append({"file": path, "error": str(e)})
                status = 2
                continue
            if as_json:
                rows.append({**asdict(result), "passed": result.passed})
            else:
                print_conformance(result)
            if not result.passed:
                status = max(status, 1)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    if status:
        raise click.exceptions.Exit(status)


# --- decode --------------------------------------------------------------------------------------------------------

_LONGEST_LINE = 1 << 16
_DECODE_WHAT = "give one of LO [HI], --pte VALUE with --level, --pf CODE, --npf CODE and --log FILE"


def _raw(text: str, what: str) -> int:
    digits = text.lower().removeprefix("0x").replace("_", "")
    if not 1 <= len(digits) <= 16 or not set(digits) <= set("0123456789abcdef"):
        raise BadInputError(f"{what} {text}: is not 64 bits in hexadecimal")
    return int(digits, 16)


def _print_fields(headline: str, fields: list[Field], as_json: bool, lo: int | None = None) -> None:
    """Print a value field by field; ``lo``: it is an RMP entry, whose state counts too."""
    if as_json:
        state = {"state": state_name(page_state(lo))} if lo is not None else {}
        click.echo(
            json.dumps({"summary": headline, **state, "fields": [field._asdict() for field in fields]}, indent=1)
        )
        return
    values = [hex(field.value) if field.value > 9 else str(field.value) for field in fields]
    widths = [max(map(len, column)) for column in zip(*((f.bits, f.name) for f in fields), strict=True)]
    width = max(map(len, values))
    click.echo(headline)
    if lo is not None:
        click.echo(f"  state {describe_state(lo)}")
    for field, value in zip(fields, values, strict=True):
        click.echo(f"  {field.bits:>{widths[0]}}  {field.name:<{widths[1]}}  {value:>{width}}  {field.meaning}")


def _log_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a log.  It can quote any bytes, and lines too long to be one are cut."""
    while line := file.readline(_LONGEST_LINE):
        text = line.decode("utf-8", "replace")
        while not line.endswith(b"\n") and (line := file.readline(_LONGEST_LINE)):
            pass
        yield text


def _explain_log(path: str, as_json: bool) -> None:
    source = path if path != "-" else "standard input"
    try:
        if path != "-":
            with open(path, "rb") as file:
                explanation = explain(_log_lines(file))
        elif sys.stdin is not None:
            explanation = explain(_log_lines(sys.stdin.buffer))
        else:
            raise BadInputError(_DECODE_WHAT)
    except (OSError, ValueError) as e:
        raise BadInputError(f"{source}: {getattr(e, 'strerror', None) or e}") from None
    if not explanation.findings:
        raise BadInputError(f"{source}: none of {explanation.lines:,} lines speaks of the RMP")
    if as_json:
        click.echo(json.dumps(explanation_to_json(explanation), indent=1))
    else:
        _print_lines(iter(explanation_text(explanation)))


@cli.command()
@click.argument("low", metavar="LO", required=False)
@click.argument("high", metavar="[HI]", required=False)
@click.option("--pte", metavar="VALUE", help="Explain a page-table entry instead of an RMP entry.")
@click.option("--level", type=click.Choice(list(_LEVELS)), help="With --pte: what one entry of its table maps.")
@click.option("--c-bit", type=click.IntRange(32, 51), metavar="BIT", help="With --pte: the encryption bit's number.")
@click.option("--pf", metavar="CODE", help="Explain the error code of a page fault.")
@click.option("--npf", metavar="CODE", help="Explain EXITINFO1 of a nested page fault.")
@click.option("--log", "log_path", metavar="FILE", help="Explain a kernel log; - is standard input.")
@_json_option
def decode(
    low: str | None,
    high: str | None,
    pte: str | None,
    level: str | None,
    c_bit: int | None,
    pf: str | None,
    npf: str | None,
    log_path: str | None,
    as_json: bool,
) -> None:
    """Explain a raw RMP entry (low quadword LO, high quadword HI), a page-table entry, a fault's code, or a log.

    Values are hexadecimal, with or without 0x, as kernel logs print them.  With LO as -, or with nothing at all when
    something is piped in, the lines of a kernel log are read from standard input, and those that speak of the RMP are
    explained: what happened, who owns the page, what to look at.
    """
    if low == "-" and high is None and log_path is None:
        low, log_path = None, "-"
    given = [value for value in (low, pte, pf, npf, log_path) if value is not None]
    if len(given) > 1 or (pte is None and (level is not None or c_bit is not None)):
        raise BadInputError(_DECODE_WHAT)
    if pte is not None:
        if level is None:
            raise BadInputError("--pte needs --level")
        raw, number, mask = _raw(pte, "--pte"), _LEVELS[level], 1 << c_bit if c_bit is not None else 0
        _print_fields(describe_pte(raw, number, mask), decode_pte(raw, number, mask), as_json)
    elif pf is not None:
        code = _raw(pf, "--pf")
        _print_fields(describe_page_fault(code), decode_page_fault(code), as_json)
    elif npf is not None:
        code = _raw(npf, "--npf")
        _print_fields(describe_nested_fault(code), decode_nested_fault(code), as_json)
    elif low is not None:
        lo, hi = _raw(low, "LO"), _raw(high, "HI") if high is not None else 0
        _print_fields(describe_rmp_entry(lo, hi), decode_rmp_entry(lo, hi), as_json, lo)
    elif log_path is not None or (sys.stdin is not None and not sys.stdin.isatty()):
        _explain_log(log_path or "-", as_json)
    else:
        raise BadInputError(_DECODE_WHAT)


# --- place ---------------------------------------------------------------------------------------------------------


def _segment_shift(text: str) -> int:
    """The exponent of a size such as 64G or 1T."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([GT])i?B?", text, re.IGNORECASE)
    size = int(found[1]) << (40 if found[2] in "tT" else 30) if found is not None else 0
    if not size or size & (size - 1):
        raise BadInputError(f"--segments {text}: is not a power of two in GiB or TiB, as 64G")
    return size.bit_length() - 1


@cli.command()
@click.option("--map", "map_path", metavar="MAP", required=True, help="Map: JSON, kernel log, /proc/iomem.")
@click.option("--segments", metavar="SIZE", help="A segmented RMP, each segment for so much memory: 64G.")
@click.option("-o", "--output", "output_path", metavar="FILE", help="Write the map there, and a summary to stdout.")
def place(map_path: str, segments: str | None, output_path: str | None) -> None:
    """Put an RMP where firmware could on a machine that has none, and write its map as JSON.

    The size follows from the machine's memory.  The position is an assumption: the highest room below 4 GiB, else the
    highest of all.
    """
    shift = _segment_shift(segments) if segments is not None else None
    with bad_input():
        machine_map = load_map(map_path)
        placed = place_on(map_path, machine_map, shift)
        about = {"source": f"rmpcore place on {os.path.basename(map_path)}", "notes": ASSUMPTION}
        text = map_file(placed, about)
        if output_path is None:
            click.echo(text, nl=False)
            return
        with Output(output_path) as output:
            output.fill(lambda file: file.write(text))
    click.echo(f"{output_path}: {_rmp_words(_rmp_summary(placed))}")


cli.add_command(workload)
cli.add_command(compare_policies)
cli.add_command(fuzz)
cli.add_command(kernel)
cli.add_command(gen)
cli.add_command(ver)


def _drop_output() -> None:
    """Python flushes stdout once more on its way out, and would complain about what can still not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The entry point: every refusal is one line, and a closed pipe is no error worth words."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main(prog_name="rmpcore", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as e:
        status = e.exit_code
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        status = 2
    except click.ClickException as e:
        click.echo(f"rmpcore: {one_line(e.format_message())}", err=True)
        status = 2
    except (KeyboardInterrupt, click.Abort):
        status = 130
    except BrokenPipeError:
        _drop_output()
        status = 1
    except OSError as e:
        click.echo(f"rmpcore: {one_line(str(e))}", err=True)
        _drop_output()
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    main()
