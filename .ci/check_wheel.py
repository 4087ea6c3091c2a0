"""Uses an installed rmpcore as a stranger does, away from its source: .ci/wheels runs this with each Python.

``python check_wheel.py SOURCE``; SOURCE is the unpacked sdist that the wheel was built from.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread

import numpy as np

import rmpcore
from rmpcore.workload import PRESETS, resized, steps

PROGRAM = """
#include <rmpcore/rmpcore.h>
#include <stdio.h>

int main(void) {
    printf("%s", rmpc_version());
    return rmpc_abi_matches() ? 0 : 1;
}
"""


def check_files(source: Path) -> None:
    """The package comes from this environment, is whole, and brought nothing but itself."""
    package = Path(rmpcore.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not in {sys.prefix}"
    wanted = {path.relative_to(source / "src") for path in source.glob("src/rmpcore/**/*.py*") if path.suffix != ".pyx"}
    wanted |= {"rmpcore" / path.relative_to(source) for path in source.glob("include/rmpcore/*.h")}
    wanted |= {Path(f"rmpcore/{name}") for name in ("py.typed", "lib/librmpcore.a", "lib/pkgconfig/rmpcore.pc")}
    wanted.add(Path("rmpcore/_native" + sysconfig.get_config_var("EXT_SUFFIX")))
    files = importlib.metadata.files("rmpcore") or []
    found = {Path(path) for path in files if path.parts[0] == "rmpcore" and "__pycache__" not in path.parts}
    assert found == wanted, sorted(map(str, found ^ wanted))
    others = {path.parts[0] for path in files} - {"rmpcore", ".."}
    assert others == {f"rmpcore-{rmpcore.__version__}.dist-info"}, others


def check_modules() -> None:
    """Every module can be imported; one that needs an extra says which, and one that runs inside gdb needs that."""
    for module in pkgutil.walk_packages(rmpcore.__path__, "rmpcore."):
        try:
            importlib.import_module(module.name)
        except ImportError as e:
            assert "rmpcore[" in str(e) or e.name == "gdb", f"{module.name}: {e}"


def check_c(folder: Path) -> None:
    """A C program finds headers and library in the wheel."""
    (folder / "program.c").write_text(PROGRAM)
    subprocess.run(
        ["cc", f"-I{rmpcore.get_include()}", folder / "program.c", rmpcore.get_library(), "-o", folder / "program"],
        check=True,
    )
    said = subprocess.run([folder / "program"], check=True, capture_output=True, text=True).stdout
    assert said == rmpcore.__version__ == importlib.metadata.version("rmpcore"), said


def drive(machine_map: rmpcore.MachineMap, seed: int, meet: Callable[[], object]) -> tuple[object, ...]:
    """What a machine gave for a workload: results, events, the state in the end."""
    machine = rmpcore.Machine(machine_map, kernel="6.12")
    machine.record_events(True)
    workload = resized(PRESETS["churn"], guests=2, together=2)
    ops = np.concatenate([step.ops for step in steps(workload, machine_map, seed)])
    meet()
    results = machine.run(ops)
    assert machine.validate() is None
    return results.tobytes(), machine.take_events().tobytes(), machine.state().digest()


def check_threads(source: Path) -> None:
    """Two threads with a machine each give what one thread gives."""
    machine_map = rmpcore.load_map(source / "examples/maps/dell-r6515-epyc7513-256g-snp.json")
    alone = [drive(machine_map, seed, lambda: None) for seed in (1, 2)]
    assert alone[0] != alone[1]
    meeting = Barrier(2, timeout=60)
    together: list[tuple[object, ...]] = [(), ()]

    def one(i: int) -> None:
        together[i] = drive(machine_map, i + 1, meeting.wait)

    threads = [Thread(target=one, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone, "two threads give something else than one"


def check_gil() -> None:
    """On a free-threaded Python, nothing that was imported turned the lock on."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert not sys._is_gil_enabled(), "the GIL is on"
        print("the GIL stayed off")


def main() -> None:
    source = Path(sys.argv[1])
    check_files(source)
    check_modules()
    check_gil()
    check_c(Path(__file__).parent)
    check_threads(source)


main()
