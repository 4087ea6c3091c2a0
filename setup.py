"""Build: the C core once, as a static library, and the extension linked against it.

All other configuration is in pyproject.toml.  RMPCORE_SANITIZE=address,undefined (or thread) builds library
and extension with that sanitizer and without optimisation.
"""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

CORE = sorted(str(path) for path in Path("csrc").glob("*.c"))
HOSTED = sorted(str(path) for path in Path("csrc/hosted").glob("*.c"))
HEADERS = sorted(str(path) for path in Path("include/rmpcore").glob("*.h"))

WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic"]
sanitize = os.environ.get("RMPCORE_SANITIZE", "")
if sanitize:
    SPEED = ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"]
    LINK = [f"-fsanitize={sanitize}"]
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


setup(
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
            extra_compile_args=SPEED,
            extra_link_args=LINK,
        )
    ],
    cmdclass={"build_py": BuildWithHeaders},
)
