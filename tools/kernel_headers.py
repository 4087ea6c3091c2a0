"""A kernel's build directory out of Debian's archive, for modules: ``python tools/kernel_headers.py VERSION [FOLDER]``.

VERSION is as for ``rmpcore kernel --kernel``: 6.12 or 6.12.95+deb12-amd64.  Of several releases it is the newest that
this machine can build modules for: the compiler that Debian built it with is here, and its programs run here.  Nothing
is installed, and nobody has to be root.  What was fetched is kept in FOLDER, by default in rmpcore's cache folder, and
the next time the newest that is kept is taken.

Prints two lines, which are arguments of make as they are::

    make -C examples/linux-module $(python tools/kernel_headers.py 6.12) BUILD=/path/for/products
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.image import Archive, cache_folder, release_key
from rmpcore.kernel.programs import output_of, program

ARGS = "CONFIG_DEBUG_INFO_BTF_MODULES="
"""For the kernel's make: a module without BTF, which needs neither pahole nor the kernel's own."""
_BESIDE = "$(dir $(realpath $(lastword $(MAKEFILE_LIST))))../"
"""In a makefile: the folder that holds the makefile's folder."""
_EMPTY = '#include <linux/module.h>\nMODULE_DESCRIPTION("nothing");\nMODULE_LICENSE("GPL");\n'
_UNPACK_SECONDS, _BUILD_SECONDS = 300.0, 300.0


class CannotBuildError(KernelError):
    """This machine cannot build modules for a release; it may be able to for an older one."""


def _build_directory(root: Path, release: str) -> Path:
    return root / f"usr/src/linux-headers-{release}"


def _matching(version: str, releases: list[str]) -> list[str]:
    """Releases of a version, the newest first."""
    wanted = re.compile(rf"{re.escape(version)}(?![0-9A-Za-z]).*")
    return sorted((one for one in releases if wanted.fullmatch(one)), key=release_key, reverse=True)


def _field(package: Path, name: str) -> str:
    return output_of([program("dpkg-deb"), "--field", str(package), name], _UNPACK_SECONDS)


def _unpack(package: Path, root: Path) -> None:
    output_of([program("dpkg-deb"), "--extract", str(package), str(root)], _UNPACK_SECONDS)


def _try(directory: Path, scratch: Path) -> None:
    """Build an empty module.  Raises CannotBuildError with the first line of what is wrong."""
    (scratch / "empty.c").write_text(_EMPTY)
    (scratch / "Makefile").write_text("obj-m := empty.o\n")
    command = ["make", "-C", str(directory), f"M={scratch}", ARGS, "modules"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CannotBuildError(f"a module was not built within {_BUILD_SECONDS:.0f} s") from None
    if done.returncode or not (scratch / "empty.ko").exists():
        lines = [line for line in done.stderr.splitlines() if not line.startswith(("warning:", "make"))]
        raise CannotBuildError(f"no module can be built: {(lines or done.stderr.splitlines() or ['for no reason'])[0]}")


def _fetch(archive: Archive, release: str, folder: Path) -> Path:
    """Fetch the headers of one release.  Raises KernelError; CannotBuildError where they are of no use here."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        scratch = Path(name)
        root, packages, module = (scratch / part for part in (release, "packages", "module"))
        for one in (root, packages, module):
            one.mkdir()
        headers = archive.fetch(f"linux-headers-{release}", packages)
        needed = re.findall(r"[a-z0-9][a-z0-9+.-]+(?=[ ,(|:]|$)", _field(headers, "Depends").strip())
        for compiler in {found[0] for one in needed if (found := re.search(r"\bgcc-\d+", one))}:
            if shutil.which(compiler) is None:
                raise CannotBuildError(f"needs {compiler}, which is not there")
        _unpack(headers, root)
        for one in needed:
            if re.fullmatch(r"linux-(headers-.+-common|kbuild-.+)", one):
                _unpack(archive.fetch(one, packages), root)
        makefile = _build_directory(root, release) / "Makefile"
        makefile.write_text(makefile.read_text().replace("/usr/src/", _BESIDE))
        _try(makefile.parent, module)
        target = folder / release
        if not target.exists():
            root.rename(target)
    return _build_directory(target, release)


def build_directory(version: str, folder: Path | None = None) -> Path:
    """The build directory (KDIR) for a version, kept in a folder.  Raises KernelError."""
    if re.fullmatch(r"\d+\.\d+[A-Za-z0-9+.~-]*", version) is None:
        raise KernelError(f"{version[:60]}: is not a version as 6.12")
    if shutil.which("make") is None:
        raise KernelError("make is not there: install the package make")
    folder = (folder or cache_folder() / "headers").resolve()
    if re.search(r"[\s:]", str(folder)):
        raise KernelError(f"{folder}: make takes no path with blanks or colons")
    folder.mkdir(parents=True, exist_ok=True)
    for release in _matching(version, os.listdir(folder)):
        return _build_directory(folder / release, release)
    archive = Archive()
    names = archive.packages(r"^linux-headers-[0-9].*-amd64$")
    releases = [name.removeprefix("linux-headers-") for name in names if not re.search(r"-(cloud|rt)-amd64$", name)]
    refused = []
    for release in _matching(version, releases):
        try:
            return _fetch(archive, release, folder)
        except CannotBuildError as e:
            refused.append(f"{release}: {e}")
    raise KernelError("; ".join(refused) or f"Debian has no headers of a kernel {version}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", metavar="VERSION")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path)
    given = parser.parse_args()
    try:
        print(f"KDIR={build_directory(given.version, given.folder)}\nARGS={ARGS}")
    except (KernelError, OSError) as e:
        reason = f"{e.filename}: {e.strerror}" if isinstance(e, OSError) else e
        print(f"kernel_headers: {reason}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
