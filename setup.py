"""Build: the C core once, as a static library, and the extension linked against it.

The wheel has the headers, the library and a pkg-config file for other people's C programs.  All other configuration is
in pyproject.toml.  RMPCORE_SANITIZE=address,undefined (or thread) builds library and extension with that sanitizer and
without optimisation; RMPCORE_COVERAGE=1 builds them so that the core counts which of its lines and branches are run
(tools/coverage.py).
"""

import os
import re
from pathlib import Path
from typing import cast

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CORE = sorted(str(path) for path in Path("csrc").glob("*.c"))
HOSTED = sorted(str(path) for path in Path("csrc/hosted").glob("*.c"))
HEADERS = sorted(str(path) for path in Path("include/rmpcore").glob("*.h"))

# the header says which version this is
API = Path("include/rmpcore/api.h").read_text()
VERSION = ".".join(re.findall(r"^#define RMPC_VERSION_\w+ (\d+)$", API, re.MULTILINE))

WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic"]
# what gcc 14 and later refuse in the C that Cython writes, older compilers shall refuse too
REFUSED = ["-Werror=implicit-function-declaration", "-Werror=incompatible-pointer-types", "-Werror=int-conversion"]
sanitize = os.environ.get("RMPCORE_SANITIZE", "")
if sanitize:
    SPEED = ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    LINK = [f"-fsanitize={sanitize}"]
elif os.environ.get("RMPCORE_COVERAGE"):
    # each function is counted as it stands, not in each place that it is put into
    SPEED = ["-O0", "--coverage", "-Dalways_inline=unused"]
    LINK = ["--coverage"]
else:
    SPEED = ["-O3", "-fno-math-errno"]
    LINK = []


class BuildWithHeaders(build_py):
    """Ships the public headers inside the package, where rmpcore.get_include() finds them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "rmpcore" / "include" / "rmpcore"
        target.mkdir(parents=True, exist_ok=True)
        for header in HEADERS:
            self.copy_file(header, str(target / Path(header).name))


class BuildAndShip(build_clib):
    """Ships the static library as well, where rmpcore.get_library() finds it, and its pkg-config file."""

    def run(self) -> None:
        super().run()
        extension = cast(build_ext, self.get_finalized_command("build_ext"))
        in_place = bool(extension.inplace)
        package = Path("src" if in_place else extension.build_lib) / "rmpcore"
        (package / "lib" / "pkgconfig").mkdir(parents=True, exist_ok=True)
        self.copy_file(str(Path(self.build_clib) / "librmpcore.a"), str(package / "lib" / "librmpcore.a"))
        if in_place:
            return  # the headers are not beside it
        text = Path("cmake/rmpcore.pc.in").read_text()
        values = {
            "prefix": "../..",
            "libdir": "lib",
            "includedir": "include",
            "PROJECT_DESCRIPTION": self.distribution.get_description(),
            "PROJECT_VERSION": VERSION,
        }
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        (package / "lib" / "pkgconfig" / "rmpcore.pc").write_text(text)


setup(
    version=VERSION,
    libraries=[
        (
            "rmpcore",
            {
                "sources": CORE + HOSTED,
                "obj_deps": {"": [*HEADERS, "csrc/dmap_internal.h", "csrc/rmp_internal.h"]},
                "include_dirs": ["include"],
                "cflags": [*WARNINGS, *SPEED, "-fPIC", "-fvisibility=hidden"],
            },
        )
    ],
    ext_modules=[
        Extension(
            "rmpcore._native",
            ["src/rmpcore/_native.pyx"],
            include_dirs=["include"],
            libraries=["rmpcore"],
            depends=[*HEADERS, *CORE, *HOSTED, "src/rmpcore/_rmpc.pxd"],
            extra_compile_args=[*REFUSED, *SPEED],
            extra_link_args=LINK,
        )
    ],
    cmdclass={"build_py": BuildWithHeaders, "build_clib": BuildAndShip},
)
