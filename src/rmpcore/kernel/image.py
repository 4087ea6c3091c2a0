"""Kernel images: from a file, or by version out of Debian's archive into a cache folder.

apt does the fetching, with configuration and lists of its own in the cache folder, so that nothing of the machine's
own apt changes and nobody has to be root.  Only the image is kept of a package.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.programs import output_of, program
from rmpcore.whole_file import WholeFile

SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports")
"""Where kernels come from: together they have 6.1, 6.12 and what is newer."""
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LISTS_LIVE = 24 * 3600.0
_FETCH_SECONDS = 900.0

# The boot protocol's header (Documentation/arch/x86/boot.rst): a signature at 0x202, and at 0x20e where the text of
# the version stands, less 0x200.
_SIGNATURE_AT, _SIGNATURE, _TEXT_AT = 0x202, b"HdrS", 0x20E
_RELEASE = re.compile(rb"\d+\.\d+[!-.0-~]*")
_PACKAGE = re.compile(r"linux-(image|binary)-(\d+\.\d+\.\d+[a-z0-9+.~-]*-amd64)")
_IMAGE_FILE = re.compile(r"(\./)?(boot/vmlinuz-[^/]+|usr/lib/modules/[^/]+/vmlinuz)")


@dataclass(frozen=True)
class Image:
    """A kernel in the form that a boot loader takes (bzImage)."""

    path: Path
    release: str
    """As "6.12.95+deb12-amd64"."""
    digest: str
    """SHA-256 of the file."""


def cache_folder() -> Path:
    """Where images and symbols are kept: rmpcore/ in XDG_CACHE_HOME, or else in ~/.cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rmpcore"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise KernelError(f"{folder}: {e.strerror}") from None
    return folder


def read_image(path: str | os.PathLike[str]) -> Image:
    """A kernel image that is there as a file."""
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as e:
        raise KernelError(f"{source}: {e.strerror}") from None
    text = int.from_bytes(data[_TEXT_AT : _TEXT_AT + 2], "little") + 0x200
    found = _RELEASE.match(data[text : text + 200])
    if data[_SIGNATURE_AT : _SIGNATURE_AT + 4] != _SIGNATURE or found is None:
        raise KernelError(f"{source}: is not a kernel image for x86 (vmlinuz, bzImage)")
    return Image(source.resolve(), found[0].decode(), hashlib.sha256(data).hexdigest())


def release_key(release: str) -> tuple[int, ...]:
    """What releases are sorted by: the numbers in them."""
    return tuple(map(int, re.findall(r"\d+", release)))


def _is_of(release: str, version: str) -> bool:
    """Whether a release is one of a version: 6.12.95+deb12-amd64 is of 6.12, of 6.12.95 and of itself."""
    return release == version or (release.startswith(version) and not release[len(version)].isalnum())


def _mirror() -> str:
    """The mirror of Debian that this machine's own apt uses."""
    question = ("indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian")
    mirrors = output_of([program("apt-get"), *question], 60).split()
    if not mirrors:
        raise KernelError(
            "this machine's apt knows no mirror of Debian, or apt-get update was never run: name a kernel image by file"
        )
    return min(mirrors)


class Archive:
    """Debian's archive, by apt, with a configuration and lists of its own."""

    def __init__(self) -> None:
        folder = cache_folder() / "apt"
        for part in ("lists/partial", "archives/partial"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        if not Path(_KEYRING).exists():
            raise KernelError(f"{_KEYRING} is not there: install the package debian-archive-keyring")
        sources = folder / "sources.list"
        with WholeFile(sources) as whole:
            mirror = _mirror()
            for suite in SUITES:
                whole.file.write(f"deb [arch=amd64 signed-by={_KEYRING}] {mirror} {suite} main\n".encode())
        settings = {
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "30",
            "Dir::Cache": str(folder),
            "Dir::Etc::preferencesparts": "-",
            "Dir::Etc::sourcelist": str(sources),
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": str(folder / "lists"),
            "Dir::State::status": os.devnull,
        }
        self._options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        stamp = folder / "updated"
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > _LISTS_LIVE:
            output_of([program("apt-get"), *self._options, "-q", "update"], _FETCH_SECONDS)
            stamp.touch()

    def packages(self, pattern: str) -> list[str]:
        """Names of packages that match a regular expression."""
        rows = output_of([program("apt-cache"), *self._options, "search", "--names-only", pattern], 120)
        return [row.partition(" ")[0] for row in rows.splitlines()]

    def fetch(self, package: str, folder: Path) -> Path:
        """Fetch a package into a folder; gives the file."""
        before = set(folder.iterdir())
        command = [program("apt-get"), *self._options, "-q", "download", package]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise KernelError(f"{package} was not fetched within {_FETCH_SECONDS:.0f} s") from None
        new = [path for path in folder.iterdir() if path not in before and path.suffix == ".deb"]
        if done.returncode or not new:
            lines = done.stderr.splitlines() or ["apt-get gave no reason"]
            raise KernelError(f"{package} cannot be fetched: {lines[-1]}")
        return new[0]


def _unpack_image(package: Path, target: Path) -> None:
    """Take the image out of a package."""
    command = [program("dpkg-deb"), "--fsys-tarfile", str(package)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        with tarfile.open(fileobj=reader.stdout, mode="r|") as files:
            for member in files:
                if _IMAGE_FILE.fullmatch(member.name) and (content := files.extractfile(member)) is not None:
                    with WholeFile(target) as whole:
                        whole.file.write(content.read())
                    return
    except tarfile.TarError as e:
        raise KernelError(f"{package.name}: {e}") from None
    finally:
        reader.kill()
        reader.communicate()
    raise KernelError(f"{package.name}: has no kernel image")


def _fetch(version: str, folder: Path) -> Path:
    """Fetch the newest kernel of a version into a folder of images."""
    archive = Archive()
    found: dict[str, str] = {}
    for name in archive.packages(r"^linux-(image|binary)-[0-9].*-amd64$"):
        match = _PACKAGE.fullmatch(name)
        if match is None or re.search(r"-(cloud|rt)-amd64$", name) or not _is_of(match[2], version):
            continue
        # From 7.x on the image is in linux-binary-*, and linux-image-* is empty.
        if match[2] not in found or match[1] == "binary":
            found[match[2]] = name
    if not found:
        raise KernelError(f"Debian has no kernel {version} in {', '.join(SUITES)}: name another, or a file")
    release = max(found, key=release_key)
    target = folder / f"vmlinuz-{release}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _unpack_image(archive.fetch(found[release], Path(scratch)), target)
    return target


def find_image(what: str) -> Image:
    """The kernel image that ``what`` names: a file, or a version as 7, 6.12 or 6.12.95+deb12-amd64.

    Of several kernels of a version it is the newest in the cache folder; if there is none, the newest in Debian's
    archive is fetched into it."""
    if os.path.sep in what or os.path.exists(what):
        return read_image(what)
    if re.fullmatch(r"\d+(\.\d+[A-Za-z0-9+.~-]*)?", what) is None:
        raise KernelError(f"{what[:60]}: is neither a file nor a version as 6.12")
    folder = cache_folder() / "images"
    folder.mkdir(exist_ok=True)
    kept = {path.name.removeprefix("vmlinuz-"): path for path in folder.glob("vmlinuz-*")}
    ours = [release for release in kept if _is_of(release, what)]
    return read_image(kept[max(ours, key=release_key)] if ours else _fetch(what, folder))
