"""What the RMP's check of a host's write costs a simulator that asks the library, beside the same check written by hand
into the simulator's loop.

may_write is the inline question, host_write and check are calls that give the whole outcome.

All loops are in C (bench/overhead.c), compiled as a simulator would be and linked with either library.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI
from conftest import against

ROOT = Path(__file__).resolve().parents[1]
WRITES = 1 << 19
ROUNDS = 51
SOURCES = sorted(str(path) for path in (ROOT / "csrc").glob("**/*.c"))
CC = ["cc", "-std=c11", "-O2", "-fPIC", f"-I{ROOT / 'include'}"]
CDEF = """
struct overhead *overhead_new(void);
void overhead_free(struct overhead *o);
uint64_t overhead_may_write(const struct overhead *o, int hot, int level);
uint64_t overhead_host_write(const struct overhead *o, int hot, int level);
uint64_t overhead_check(const struct overhead *o, int hot, int level);
uint64_t overhead_by_hand(const struct overhead *o, int hot, int level);
"""


@pytest.fixture(scope="module", params=["static", "shared"])
def simulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """bench/overhead.c with a library, loaded, and its table of 256 MiB."""
    directory = tmp_path_factory.mktemp("overhead")
    if request.param == "static":
        library = directory / "librmpcore.a"
        subprocess.run([*CC, "-fvisibility=hidden", "-c", *SOURCES], check=True, cwd=directory)
        subprocess.run(["ar", "rcs", library, *directory.glob("*.o")], check=True)
    else:
        library = directory / "librmpcore.so"
        subprocess.run([*CC, "-fvisibility=hidden", "-DRMPC_SHARED", "-shared", *SOURCES, "-o", library], check=True)
    program = directory / "overhead.so"
    source = ROOT / "bench/overhead.c"
    subprocess.run([*CC, "-shared", source, library, f"-Wl,-rpath,{directory}", "-o", program], check=True)
    ffi = FFI()
    ffi.cdef(CDEF)
    loaded = ffi.dlopen(str(program))
    overhead = loaded.overhead_new()
    assert overhead != ffi.NULL
    yield loaded, overhead
    loaded.overhead_free(overhead)


@pytest.mark.parametrize("level", [1, 2], ids=["4K", "2M"])
@pytest.mark.parametrize("hot", [0, 1], ids=["random", "hot"])
@pytest.mark.parametrize("call", ["may_write", "host_write", "check"])
def test_overhead(benchmark: Any, simulator: Any, call: str, hot: int, level: int) -> None:
    """Random: frames of a table that no cache holds; hot: of a first-level cache's size.  Limit: the check by hand,
    which has to refuse as many writes."""
    loaded, overhead = simulator
    function = getattr(loaded, f"overhead_{call}")
    refused = loaded.overhead_by_hand(overhead, hot, level)
    assert refused or hot  # there is something to agree on

    def called() -> None:
        assert function(overhead, hot, level) == refused

    benchmark.group = "check in a simulator"
    against(
        benchmark,
        called,
        lambda: loaded.overhead_by_hand(overhead, hot, level),
        beside="the check by hand",
        items=WRITES,
        rounds=ROUNDS,
    )
