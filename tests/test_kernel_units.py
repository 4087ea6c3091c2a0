"""What a recording of a kernel is made of, each part alone: images, the first files of a guest, symbols, page tables,
what a call and an instruction look like in a recording.  Nothing here needs QEMU, gdb, a kernel or the network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import machines as m
import numpy as np
import numpy.typing as npt
import pytest

from rmpcore.conform import conform
from rmpcore.fuzzing.dmap_ops import direct_map_ops, frames_of
from rmpcore.inputs import load_map, parse_json, recording_map
from rmpcore.kernel import image as images
from rmpcore.kernel import programs
from rmpcore.kernel import symbols as kernel_symbols
from rmpcore.kernel.errors import KernelError
from rmpcore.kernel.image import Archive, Image, find_image, read_image
from rmpcore.kernel.initramfs import busybox, initramfs
from rmpcore.kernel.programs import PACKAGES, output_of, program
from rmpcore.kernel.record import recording_text
from rmpcore.kernel.session import Recorded, _signed, call_arguments
from rmpcore.kernel.snp import Executed, ModuleHost
from rmpcore.kernel.symbols import Symbols, symbols_of
from rmpcore.kernel.tables import read_mappings
from rmpcore.machine import Machine
from rmpcore.maps import MachineMap
from rmpcore.ops import OPS, make_op, parse_op
from rmpcore.recorded_calls import CALLS
from rmpcore.recording import RecordingError, recorded_state
from rmpcore.state import State, state_to_json

GOLDEN = Path(__file__).parent / "data/golden"
RECORDINGS = sorted(path.stem for path in GOLDEN.glob("*.json"))
RELEASE = "6.12.95+deb12-amd64"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of images in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache/rmpcore/images"
    folder.mkdir(parents=True)
    return folder


def refused(function: Callable[..., object], *args: Any) -> str:
    """The one line with which something is refused."""
    with pytest.raises(KernelError) as caught:
        function(*args)
    text = str(caught.value)
    assert text.isprintable() and text, text
    return text


def script(folder: Path, name: str, text: str) -> Path:
    """A program for PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is searched for programs before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


# --- images --------------------------------------------------------------------------------------------------------

# The kernel's boot protocol: "HdrS" at 0x202, at 0x20e where the version's text stands, less 0x200.
TEXT_AT = 0x300


def bzimage(
    release: str = RELEASE, text_at: int = TEXT_AT, magic: bytes = b"HdrS", tail: bytes = b" (b@h) #1\0"
) -> bytes:
    data = bytearray(0x400)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = magic
    data[0x20E:0x210] = (text_at - 0x200).to_bytes(2, "little")
    version = release.encode() + tail
    if text_at < len(data):
        data[text_at : text_at + len(version)] = version
    return bytes(data)


@pytest.mark.parametrize("release", [RELEASE, "6.1.0-56-amd64", "7.3.4+deb13-amd64", "6.18", "6.19.0-rc3-custom_1"])
def test_release_and_digest_of_an_image(tmp_path: Path, release: str) -> None:
    (tmp_path / "k").write_bytes(bzimage(release))
    found = read_image(tmp_path / "k")
    assert found == Image((tmp_path / "k").resolve(), release, hashlib.sha256(bzimage(release)).hexdigest())


def test_a_release_is_never_a_path(tmp_path: Path) -> None:
    """Files are named by it."""
    (tmp_path / "k").write_bytes(bzimage("6.12/../../x"))
    assert read_image(tmp_path / "k").release == "6.12"


NO_IMAGES = {
    "empty": b"",
    "no signature": bzimage(magic=b"HdrT"),
    "text beyond the file": bzimage(text_at=0xFFF0),
    "no text": bzimage(release="", tail=b"\0"),
    "another text": bzimage(release="Linux 6.12"),
    "a number alone": bzimage(release="6", tail=b"\0"),
    "an ELF file": b"\x7fELF" + bytes(0x400),
}


@pytest.mark.parametrize("what", NO_IMAGES)
def test_what_is_no_image_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "k").write_bytes(NO_IMAGES[what])
    assert refused(read_image, tmp_path / "k") == f"{tmp_path}/k: is not a kernel image for x86 (vmlinuz, bzImage)"


@pytest.mark.parametrize("length", [1, 0x1FE, 0x202, 0x203, 0x205, 0x206, 0x20E, 0x20F, 0x210, TEXT_AT, TEXT_AT + 2])
def test_an_image_that_ends_too_early_is_refused(tmp_path: Path, length: int) -> None:
    """Up to the first digit behind the dot of the version."""
    (tmp_path / "k").write_bytes(bzimage()[:length])
    assert "is not a kernel image" in refused(read_image, tmp_path / "k")
    (tmp_path / "k").write_bytes(bzimage()[: TEXT_AT + 3])
    assert read_image(tmp_path / "k").release == "6.1"


def test_an_image_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refused(read_image, tmp_path) == f"{tmp_path}: Is a directory"
    assert refused(read_image, tmp_path / "none") == f"{tmp_path}/none: No such file or directory"


def keep(folder: Path, *releases: str) -> None:
    for release in releases:
        (folder / f"vmlinuz-{release}").write_bytes(bzimage(release))


@pytest.mark.parametrize(
    ("what", "release"),
    [
        ("6.1", "6.1.0-56-amd64"),
        ("6.1.0-9-amd64", "6.1.0-9-amd64"),
        ("6.12", "6.12.117+deb12-amd64"),
        ("6.12.95", "6.12.95+deb13-amd64"),
        ("6.12.95+deb12", "6.12.95+deb12-amd64"),
        ("6.12.95+deb12-amd64", "6.12.95+deb12-amd64"),
        ("7.3", "7.3.4+deb13-amd64"),
        ("7", "7.3.4+deb13-amd64"),
        ("6", "6.12.117+deb12-amd64"),
    ],
)
def test_the_newest_kept_kernel_of_a_version(
    cache: Path, monkeypatch: pytest.MonkeyPatch, what: str, release: str
) -> None:
    """By numbers, not by letters: 56 is after 9, 117 after 95, and 6.12 is none of 6.1."""
    monkeypatch.setattr(images, "Archive", None)  # not needed
    keep(cache, "6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.95+deb12-amd64", "6.12.95+deb13-amd64", "6.12.9+deb12-amd64")
    keep(cache, "6.12.117+deb12-amd64", "7.3.4+deb13-amd64")
    found = find_image(what)
    assert (found.release, found.path) == (release, (cache / f"vmlinuz-{release}").resolve())


def test_a_file_is_a_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a slash, or if it is there; even where it is named like a version."""
    keep(cache, "6.12.95+deb12-amd64")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "6.12").write_bytes(bzimage("6.5.1"))
    assert find_image("6.12").release == find_image("./6.12").release == find_image(str(tmp_path / "6.12")).release
    assert find_image("6.12").release == "6.5.1"
    assert refused(find_image, "./6.13") == "6.13: No such file or directory"


@pytest.mark.parametrize("what", ["", "latest", "v6.12", "6.12 ", "6.12;x", "6.12\n", "-6.12", "x" * 500])
def test_what_is_neither_file_nor_version_is_refused(cache: Path, what: str) -> None:
    with pytest.raises(KernelError) as caught:
        find_image(what)
    assert "is neither a file nor a version as 6.12" in str(caught.value)
    assert len(str(caught.value)) < 120


OFFERED = (
    "linux-image-6.1.0-50-amd64",
    "linux-image-6.1.0-9-amd64",
    "linux-image-6.12.95+deb12-amd64",
    "linux-image-6.12.95+deb12-amd64-unsigned",
    "linux-image-6.12.95+deb12-amd64-dbg",
    "linux-image-6.12.117+deb12-cloud-amd64",
    "linux-image-6.12.117+deb12-rt-amd64",
    "linux-image-7.3.4+deb13-amd64",
    "linux-binary-7.3.4+deb13-amd64",
    "linux-image-7.3.1+deb13-amd64",
    "linux-headers-7.3.9+deb13-amd64",
    "linux-image-7.3.9+deb13-arm64",
    "linux-image-amd64",
)
"""Names of packages as Debian has them; the signed linux-image-7.x is empty, and linux-binary-* has the image."""


class Offer:
    """Stands for the archive; its packages are one in name only."""

    fetched: list[str]
    names: tuple[str, ...]

    def __init__(self) -> None:
        pass

    def packages(self, pattern: str) -> list[str]:
        return list(type(self).names)

    def fetch(self, package: str, folder: Path) -> Path:
        self.fetched.append(package)
        (folder / "package.deb").write_bytes(b"")
        return folder / "package.deb"


@pytest.fixture
def offer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> type[Offer]:
    found = type("Found", (Offer,), {"fetched": [], "names": OFFERED})
    monkeypatch.setattr(images, "Archive", found)
    monkeypatch.setattr(
        images,
        "_unpack_image",
        lambda package, target: target.write_bytes(bzimage(target.name.removeprefix("vmlinuz-"))),
    )
    return found


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("what", "package"),
    [
        ("6.1", "linux-image-6.1.0-50-amd64"),
        ("6.12", "linux-image-6.12.95+deb12-amd64"),
        ("6.12.95+deb12-amd64", "linux-image-6.12.95+deb12-amd64"),
        ("7", "linux-binary-7.3.4+deb13-amd64"),
        ("7.3", "linux-binary-7.3.4+deb13-amd64"),
        ("7.3.1", "linux-image-7.3.1+deb13-amd64"),
    ],
)
def test_the_package_of_a_version(offer: type[Offer], cache: Path, what: str, package: str, turned: bool) -> None:
    """Neither cloud nor realtime kernels, nor unsigned or debug packages, nor other architectures; in any order."""
    offer.names = tuple(reversed(OFFERED)) if turned else OFFERED
    release = package.removeprefix("linux-image-").removeprefix("linux-binary-")
    assert find_image(what).release == release
    assert offer.fetched == [package]
    assert [path.name for path in cache.iterdir()] == [f"vmlinuz-{release}"]
    assert find_image(what).release == release
    assert len(offer.fetched) == 1  # now it is kept


@pytest.mark.parametrize("what", ["6.18", "8", "6.12.117", "6.12.9", "7.3.9", "6.12.95+deb"])
def test_a_version_that_debian_does_not_have(offer: type[Offer], cache: Path, what: str) -> None:
    suites = "bookworm, bookworm-backports, trixie, trixie-backports"
    assert refused(find_image, what) == f"Debian has no kernel {what} in {suites}: name another, or a file"
    assert offer.fetched == list(cache.iterdir()) == []


def test_a_download_that_breaks_leaves_nothing(
    offer: type[Offer], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Offer, package: str, folder: Path) -> Path:
        (folder / "package.deb.part").write_bytes(b"half of it")
        raise KernelError("it broke")

    monkeypatch.setattr(Offer, "fetch", broken)
    assert refused(find_image, "6.12") == "it broke"
    assert list(cache.iterdir()) == []


def package_tar(members: dict[str, bytes | None]) -> bytes:
    """What is in a package; None: a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as files:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.type, member.size = (tarfile.DIRTYPE, 0) if data is None else (tarfile.REGTYPE, len(data))
            files.addfile(member, io.BytesIO(data or b""))
    return out.getvalue()


def unpack(tmp_path: Path, path: Path, data: bytes) -> Path:
    """Take an image out of what dpkg-deb says is in a package."""
    (tmp_path / "content").write_bytes(data)
    script(path, "dpkg-deb", f'test "$*" = "--fsys-tarfile {tmp_path}/p.deb" && exec cat {tmp_path}/content')
    (tmp_path / "out").mkdir()
    images._unpack_image(tmp_path / "p.deb", tmp_path / "out/vmlinuz")
    return tmp_path / "out/vmlinuz"


@pytest.mark.parametrize(
    "name", [f"./boot/vmlinuz-{RELEASE}", f"./usr/lib/modules/{RELEASE}/vmlinuz", "boot/vmlinuz-6"]
)
def test_the_image_is_taken_out_of_a_package(tmp_path: Path, path: Path, name: str) -> None:
    members: dict[str, bytes | None] = {"./boot": None, "./boot/config-6": b"no", "./lib/vmlinuz-6": b"nor this"}
    target = unpack(tmp_path, path, package_tar({**members, name: bzimage(), "./boot/vmlinuz-old": b"late"}))
    assert target.read_bytes() == bzimage()
    assert list(target.parent.iterdir()) == [target]


BROKEN_PACKAGES = {
    "no image": (package_tar({"./boot/System.map-6": b"x"}), "p.deb: has no kernel image"),
    "a folder of that name": (package_tar({"./boot/vmlinuz-6": None}), "p.deb: has no kernel image"),
    "nothing": (b"", "p.deb: "),
    "no archive": (b"\x01" * 2048, "p.deb: "),
    "half an image": (package_tar({"./boot/vmlinuz-6": bytes(100_000)})[:50_000], "p.deb: "),
}


@pytest.mark.parametrize("what", BROKEN_PACKAGES)
def test_a_broken_package_gives_no_image(tmp_path: Path, path: Path, what: str) -> None:
    data, text = BROKEN_PACKAGES[what]
    assert refused(unpack, tmp_path, path, data).startswith(text)
    assert list((tmp_path / "out").iterdir()) == []


def ar(members: dict[str, bytes]) -> bytes:
    """The outer form of a Debian package: an ar archive."""
    text = b"!<arch>\n"
    for name, data in members.items():
        text += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return text


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not there")
def test_a_package_as_dpkg_reads_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    control = package_tar({"./control": b"Package: linux-image\nVersion: 1\nArchitecture: amd64\n"})
    members = {"debian-binary": b"2.0\n", "control.tar": control}
    members["data.tar"] = package_tar({"./boot": None, "./boot/vmlinuz-6.12": bzimage()})
    (tmp_path / "p.deb").write_bytes(ar(members))
    images._unpack_image(tmp_path / "p.deb", tmp_path / "vmlinuz")
    assert (tmp_path / "vmlinuz").read_bytes() == bzimage()
    (tmp_path / "p.deb").write_bytes(ar(members)[:1000])
    assert refused(images._unpack_image, tmp_path / "p.deb", tmp_path / "other").startswith("p.deb: ")
    assert not (tmp_path / "other").exists()
    assert capfd.readouterr().err == ""


# --- Debian's archive ----------------------------------------------------------------------------------------------


@pytest.fixture
def apt(cache: Path, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An apt-get whose commands do what a test says; it notes how it was called."""
    monkeypatch.setattr(images, "_KEYRING", str(tmp_path / "keyring"))
    (tmp_path / "keyring").touch()

    def install(commands: str) -> None:
        script(
            path,
            "apt-get",
            f'echo "$*" >> {tmp_path}/asked\nfor word in "$@"; do case $word in\n'
            f"indextargets) printf 'http://b.example/debian/\\nhttp://a.example/debian/\\n'; exit 0;;\n{commands}\n"
            "esac; done\nexit 0",
        )

    install("")
    return install


def asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "asked").read_text(encoding="utf-8").splitlines()


def test_apt_works_in_folders_of_its_own(apt: Callable[[str], None], path: Path, tmp_path: Path) -> None:
    script(path, "apt-cache", "echo 'linux-image-6.12.95+deb12-amd64 - Linux 6.12'\necho 'linux-image-amd64 - newest'")
    folder = tmp_path / "cache/rmpcore/apt"
    archive = Archive()
    assert archive.packages("^linux") == ["linux-image-6.12.95+deb12-amd64", "linux-image-amd64"]
    suites = ("bookworm", "bookworm-backports", "trixie", "trixie-backports")
    assert (folder / "sources.list").read_text(encoding="utf-8").splitlines() == [
        f"deb [arch=amd64 signed-by={tmp_path}/keyring] http://a.example/debian/ {suite} main" for suite in suites
    ]
    update = asked(tmp_path)[-1]
    assert update.endswith(" update")
    for setting in ("Dir::State::status=/dev/null", f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}"):
        assert f"-o {setting} " in update
    Archive()
    assert sum(line.endswith(" update") for line in asked(tmp_path)) == 1  # lists live for a day
    os.utime(folder / "updated", (0, 0))
    Archive()
    assert sum(line.endswith(" update") for line in asked(tmp_path)) == 2


def test_apt_that_fails_says_why(apt: Callable[[str], None], tmp_path: Path, path: Path) -> None:
    apt("update) echo first >&2; echo 'E: no network' >&2; echo >&2; exit 100;;")
    assert refused(Archive) == f"{path}/apt-get: E: no network"
    assert not (tmp_path / "cache/rmpcore/apt/updated").exists()
    apt("update) exit 3;;")
    assert refused(Archive) == f"{path}/apt-get: status 3"


def test_apt_that_hangs_is_given_up(apt: Callable[[str], None], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_FETCH_SECONDS", 0.2)
    apt("update) exec sleep 30;;")
    assert refused(Archive) == f"{path}/apt-get did not end within 0 s"


def test_no_mirror_and_no_keyring(path: Path, apt: Callable[[str], None], tmp_path: Path) -> None:
    script(path, "apt-get", "exit 0")
    assert refused(Archive).startswith("this machine's apt knows no mirror of Debian")
    assert not (tmp_path / "cache/rmpcore/apt/sources.list").exists()
    (tmp_path / "keyring").unlink()
    assert refused(Archive) == f"{tmp_path}/keyring is not there: install the package debian-archive-keyring"


def test_fetching_a_package(apt: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive()
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "old.deb").touch()
    apt("download) echo data > new.deb;;")
    assert archive.fetch("linux-image-6", folder) == folder / "new.deb"
    assert asked(tmp_path)[-1].endswith("-q download linux-image-6")
    (folder / "new.deb").unlink()
    apt("download) touch not-a-package;;")
    assert refused(archive.fetch, "linux-image-6", folder) == "linux-image-6 cannot be fetched: apt-get gave no reason"
    apt("download) echo half > half.deb; echo 'E: hash sum mismatch' >&2; exit 100;;")
    text = "linux-image-6 cannot be fetched: E: hash sum mismatch"
    assert refused(archive.fetch, "linux-image-6", folder) == text
    monkeypatch.setattr(images, "_FETCH_SECONDS", 0.2)
    apt("download) exec sleep 30;;")
    assert refused(archive.fetch, "linux-image-6", folder) == "linux-image-6 was not fetched within 0 s"


# --- programs ------------------------------------------------------------------------------------------------------

DEBIAN = {
    "qemu-system-x86_64": "qemu-system-x86",
    "gdb": "gdb",
    "busybox": "busybox-static",
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
}
"""Debian's packages, by the programs in them."""


def test_all_programs_are_looked_for_here() -> None:
    assert set(PACKAGES) == set(DEBIAN)


@pytest.mark.parametrize("name", DEBIAN)
def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(programs.shutil, "which", lambda name, path=None: None)
    assert refused(program, name) == f"{name} is not there: install the package {DEBIAN[name]}"


def test_where_a_program_is(path: Path) -> None:
    script(path, "gdb", "")
    assert program("gdb") == str(path / "gdb")


def test_output_of_a_program(tmp_path: Path) -> None:
    """Bytes that are no text do not stop it."""
    good = script(tmp_path, "good", "printf 'a\\377\\n'; echo noise >&2")
    assert output_of([str(good)], 10) == "a\ufffd\n"
    bad = script(tmp_path, "bad", "echo output; echo one >&2; echo 'two ' >&2; echo ' ' >&2; exit 1")
    assert refused(output_of, [str(bad)], 10).rstrip() == f"{bad}: two"
    slow = script(tmp_path, "slow", "exec sleep 30")
    assert refused(output_of, [str(slow)], 0.1).startswith(f"{slow} did not end within ")


# --- the first files of a guest ------------------------------------------------------------------------------------


def elf(*types: int, at: int = 0x40, size: int = 0x38, word: int = 2) -> bytes:
    """An ELF file of program headers alone (System V ABI): 1 PT_LOAD, 2 PT_DYNAMIC, 3 PT_INTERP."""
    head = bytearray(at)
    head[:6] = b"\x7fELF" + bytes((word, 1))
    head[0x20:0x28] = at.to_bytes(8, "little")
    head[0x36:0x38] = size.to_bytes(2, "little")
    head[0x38:0x3A] = len(types).to_bytes(2, "little")
    return bytes(head) + b"".join(kind.to_bytes(4, "little") + bytes(size - 4) for kind in types)


STATIC = elf(1, 1, 0x6474E551)


def install_busybox(path: Path, data: bytes) -> None:
    (path / "busybox").write_bytes(data)
    (path / "busybox").chmod(0o755)


@pytest.mark.parametrize("data", [STATIC, elf(1, 2), elf(1, at=0x80, size=0x40), elf()])
def test_a_static_busybox_is_taken(path: Path, data: bytes) -> None:
    """A static position-independent program has PT_DYNAMIC as well, but names no loader."""
    install_busybox(path, data)
    assert busybox() == data


NEEDY = [elf(6, 3, 1, 2), elf(1, 3), elf(3, at=0x80, size=0x40), elf(1, word=1), b"#!/bin/sh\n", b"", b"\x7fELF"]


@pytest.mark.parametrize("data", NEEDY)
def test_a_busybox_that_needs_libraries_is_refused(path: Path, data: bytes) -> None:
    """What is no 64-bit ELF file is refused as well."""
    install_busybox(path, data)
    assert refused(busybox) == f"{path}/busybox needs libraries: install the package busybox-static"


@dataclasses.dataclass
class Entry:
    name: str
    mode: int
    data: bytes
    device: tuple[int, int]
    links: int
    number: int


def cpio(archive: bytes) -> list[Entry]:
    """Read an archive by the kernel's description of it (buffer-format.rst): 13 fields of 8 hexadecimal digits."""
    found, at = [], 0
    while at < len(archive):
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        digits = archive[at + 6 : at + 110]
        assert all(digit in b"0123456789abcdefABCDEF" for digit in digits)
        ino, mode, uid, gid, links, _, size, _, _, major, minor, name_size, check = (
            int(digits[i : i + 8], 16) for i in range(0, 104, 8)
        )
        assert (uid, gid, check) == (0, 0, 0)
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0") and name.count(b"\0") == 1
        start = at + 110 + name_size
        assert not any(archive[start : start + -start % 4])
        start += -start % 4
        end = start + size
        assert end <= len(archive)
        assert not any(archive[end : end + -end % 4])
        at = end + -end % 4
        found.append(Entry(name[:-1].decode(), mode, archive[start:end], (major, minor), links, ino))
    assert at == len(archive)
    return found


def test_the_archive_of_first_files(path: Path) -> None:
    install_busybox(path, STATIC + b"odd")
    found = cpio(initramfs("sync\npoweroff -f\n", {"rmpcore.ko": b"module", "a": b""}))
    assert found[-1] == Entry("TRAILER!!!", 0, b"", (0, 0), 1, found[-1].number)
    files = {entry.name: entry for entry in found[:-1]}
    assert len(files) == len(found) - 1
    assert len({entry.number for entry in found}) == len(found)  # equal numbers would be links to one file
    for name in ("bin", "dev", "proc"):
        assert stat.S_ISDIR(files[name].mode) and files[name].data == b""
    names = list(files)
    for name in names:  # the kernel makes no folder that was not listed before
        assert "/" not in name or names.index(name.rpartition("/")[0]) < names.index(name)
    # Documentation/admin-guide/devices.txt: 5,1 the console, 4,65 the second serial port
    devices = {entry.name: entry.device for entry in found if stat.S_ISCHR(entry.mode)}
    assert devices == {"dev/console": (5, 1), "dev/ttyS1": (4, 65)}
    for name, data in (("bin/busybox", STATIC + b"odd"), ("rmpcore.ko", b"module"), ("a", b"")):
        assert files[name].data == data
    for name in ("bin/busybox", "init"):
        assert stat.S_ISREG(files[name].mode) and files[name].mode & 0o111
    lines = files["init"].data.decode().splitlines()
    assert lines[0] == "#!/bin/busybox sh"
    assert lines[-2:] == ["sync", "poweroff -f"]
    assert "mount -t proc proc /proc" in lines


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not there")
def test_the_archive_as_cpio_reads_it(path: Path) -> None:
    install_busybox(path, STATIC)
    listed = subprocess.run(["cpio", "-t"], input=initramfs("x", {"m": b"12345"}), capture_output=True, check=True)
    assert listed.stdout.split() == b"bin dev proc dev/console dev/ttyS1 bin/busybox init m".split()


# --- symbols -------------------------------------------------------------------------------------------------------


def listing(*rows: str, count: int = 1200, ending: str = "\n") -> str:
    """What /proc/kallsyms shows: some rows, and functions of 16 bytes each."""
    lines = ["ffffffff81000000 T init_mem_mapping", *rows]
    lines += [f"{0xFFFFFFFF81100000 + 16 * i:016x} t f{i}" for i in range(count)]
    return "".join(line + ending for line in lines)


def test_addresses_of_symbols() -> None:
    found = Symbols(listing("ffffffff82000000 D memblock", "ffffffffc0000000 t in_module\t[kvm]"), "6.12")
    assert found["memblock"] == 0xFFFFFFFF82000000
    assert found["f3"] == 0xFFFFFFFF81100030
    assert found.get("vzalloc_noprof", "f1", "f2") == 0xFFFFFFFF81100010
    assert found.get("none") is None
    assert found.get("in_module") is None  # of a module, which may be another one next time
    assert refused(lambda: found["none"]) == "6.12: the kernel has no symbol none"


def test_a_name_for_several_places_keeps_the_first() -> None:
    found = Symbols(listing("ffffffff81000040 t twice", "ffffffff81000010 t twice"), "6.12")
    assert found["twice"] == 0xFFFFFFFF81000040


def test_a_symbol_ends_where_the_next_begins() -> None:
    rows = (
        "ffffffff81000100 T start",
        "ffffffff81000100 t alias",
        "ffffffff81000180 t next",
        "ffffffffffffff00 A last",
    )
    found = Symbols(listing(*rows), "6.12")
    assert found.end("start") == found.end("alias") == 0xFFFFFFFF81000180
    assert found.end("f7") == found["f8"]
    assert found.end("last") == found["last"]  # nothing is behind it
    refused(found.end, "none")


def test_lines_may_end_as_on_a_serial_port() -> None:
    found = Symbols(listing(ending="\r\n"), "6.12")
    assert found["f5"] == 0xFFFFFFFF81100050
    assert found["init_mem_mapping"] == 0xFFFFFFFF81000000


NO_SYMBOLS = {
    "nothing": "",
    "too few": listing(count=900),
    "no addresses": "".join(f"{0:016x} T f{i}\n" for i in range(2000)) + f"{0:016x} T init_mem_mapping\n",
    "without what is needed": listing().replace("init_mem_mapping", "other"),
    "cut": listing()[: len(listing()) // 2],
    "32 bits": listing().replace("ffffffff", ""),
}


@pytest.mark.parametrize("what", NO_SYMBOLS)
def test_a_list_that_is_not_whole_is_refused(what: str) -> None:
    text = "6.12: the kernel's list of symbols is not whole, or holds no addresses"
    assert refused(Symbols, NO_SYMBOLS[what], "6.12") == text


IMAGE = Image(Path("vmlinuz"), RELEASE, "ab" * 32)


def test_a_kernel_is_asked_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is kept by what is in the image, not by its name."""
    answers = iter([listing("ffffffff82000000 D first"), listing("ffffffff83000000 D second")])
    monkeypatch.setattr(kernel_symbols, "_ask", lambda image: next(answers))
    for _ in range(2):
        assert symbols_of(IMAGE)["first"] == 0xFFFFFFFF82000000
    assert symbols_of(dataclasses.replace(IMAGE, digest="cd" * 32))["second"] == 0xFFFFFFFF83000000
    assert next(answers, None) is None
    names = sorted(path.name for path in (cache.parent / "symbols").iterdir())
    assert names == [f"{'ab' * 32}.txt", f"{'cd' * 32}.txt"]


def test_an_answer_that_is_not_whole_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_symbols, "_ask", lambda image: listing(count=5))
    refused(symbols_of, IMAGE)
    assert list((cache.parent / "symbols").iterdir()) == []


@pytest.mark.parametrize("kept", [b"", listing(count=5).encode(), listing().encode()[:3000], b"\xff" * 5000])
def test_a_broken_list_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch, kept: bytes) -> None:
    """The kernel is asked again, and a good answer takes the place of the broken one."""
    folder = cache.parent / "symbols"
    folder.mkdir()
    (folder / f"{IMAGE.digest}.txt").write_bytes(kept)
    answers = iter([listing()])
    monkeypatch.setattr(kernel_symbols, "_ask", lambda image: next(answers))
    assert symbols_of(IMAGE)["f1"] == 0xFFFFFFFF81100010
    assert symbols_of(IMAGE)["f1"] == 0xFFFFFFFF81100010
    assert (folder / f"{IMAGE.digest}.txt").read_text(encoding="utf-8") == listing()


# --- page tables ---------------------------------------------------------------------------------------------------

LISTS = ("tables", "leaves", "high_tables", "high_leaves")
SHIFT = {1: 12, 2: 21, 3: 30, 4: 39, 5: 48}


def memory_of(tables: dict[int, dict[int, int]]) -> Callable[[int], npt.NDArray[np.uint64]]:
    """Memory that holds a few tables; all else must not be read."""
    return lambda at: np.array([tables[at].get(i, 0) for i in range(512)], dtype=np.uint64)


# Slots by the addresses: 0xffff888000000000 is slot 273 of level 4, 0xffffffff80000000 slot 511 and then 510.
LOWER = {
    0x2000: {0: 0x3067, 1: 0x80000000_400001E3, 2: 0x800FFFFF_7FFFF062, 3: 0x8000},
    0x3000: {0: 0x4063, 2: 0x80000000_004001E3, 26: 0x800FFFFF_FCBFF062},
    0x4000: {5: 0x80000000_00005163, 6: 0x80000000_000061E3, 511: 0x80000000_001FF161},
    0x5000: {510: 0x6067, 511: 0x9067},
    0x6000: {8: 0x00000000_010001A1, 9: 0x7067, 511: 0x80000000_4FE001E3},
    0x7000: {1: 0x00000000_01201121},
}
TABLES = [[3, "0x0", "0x3067"], [2, "0x0", "0x4063"]]
LEAVES = {
    (1, 0x5000, 0x80000000_00005163),
    (1, 0x6000, 0x80000000_000061E3),  # bit 7 is PAT here
    (1, 0x1FF000, 0x80000000_001FF161),
    (2, 0x400000, 0x80000000_004001E3),
    (2, 0x3400000, 0x800FFFFF_FCBFF062),  # not present, the frame inverted: the example of direct-map §1
    (3, 0x40000000, 0x80000000_400001E3),
    (3, 0x80000000, 0x800FFFFF_7FFFF062),
    (3, 0xC0000000, 0x8000),  # without P it points to nothing
}
HIGH_LEAVES = {
    (2, 0x1000000, 0x00000000_010001A1),
    (1, 0x1201000, 0x00000000_01201121),
    (2, 0x3FE00000, 0x80000000_4FE001E3),
}


def expanded(runs: Iterable[Any]) -> list[tuple[int, int, int]]:
    """Runs of leaves, entry by entry."""
    return [
        (level, int(offset, 16) + (i << SHIFT[level]), int(raw, 16) + i * step)
        for level, offset, count, raw, step in runs
        for i in range(count)
    ]


def as_set(entries: list[Any]) -> set[Any]:
    found = set(entries)
    assert len(found) == len(entries)
    return found


def test_page_tables_of_four_levels() -> None:
    """Nothing of user space, of other parts of the kernel's half, or of tables elsewhere is read (direct-map §1)."""
    top = {0: 0xA067, 272: 0xA067, 273: 0x2067, 401: 0xA067, 511: 0x5067}
    found = read_mappings(memory_of({0x1000: top, **LOWER}), 0x1000, 4, 0xFFFF_8880_0000_0000)
    assert found["tables"] == [[4, "0x0", "0x2067"], *TABLES]
    assert as_set(expanded(found["leaves"])) == LEAVES
    assert found["high_tables"] == [[2, "0x1200000", "0x7067"]]
    assert as_set(expanded(found["high_leaves"])) == HIGH_LEAVES


def test_page_tables_of_five_levels() -> None:
    """0xff11000000000000 is slot 273 of level 5; its 2^52 bytes end before slot 289."""
    upper = {
        0x1000: {0: 0xA067, 272: 0xA067, 273: 0xB067, 288: 0xC067, 289: 0xA067, 511: 0xD067},
        0xB000: {0: 0x2067},
        0xC000: {},
        0xD000: {510: 0xA067, 511: 0x5067},
    }
    found = read_mappings(memory_of(upper | LOWER), 0x1000, 5, 0xFF11_0000_0000_0000)
    assert found["tables"] == [[5, "0x0", "0xb067"], [4, "0x0", "0x2067"], *TABLES, [5, "0xf000000000000", "0xc067"]]
    assert as_set(expanded(found["leaves"])) == LEAVES
    assert found["high_tables"] == [[2, "0x1200000", "0x7067"]]
    assert as_set(expanded(found["high_leaves"])) == HIGH_LEAVES


def test_equal_steps_are_one_run() -> None:
    """As in the recordings: a run of frames that follow each other, or of one frame."""
    small = {i: 0x80000000_00000163 | i << 12 for i in range(512)}
    large = {i: 0x80000000_000001E3 | i << 21 for i in range(1, 512)}
    tables = {0x1000: {273: 0x2067}, 0x2000: {0: 0x3067}, 0x3000: {0: 0x4067} | large, 0x4000: small}
    found = read_mappings(memory_of(tables), 0x1000, 4, 0xFFFF_8880_0000_0000)
    assert found["leaves"] == [
        [1, "0x0", 512, "0x8000000000000163", 0x1000],
        [2, "0x200000", 511, "0x80000000002001e3", 0x200000],
    ]
    assert found["high_tables"] == found["high_leaves"] == []


def reader(machine: Any) -> Callable[[int], npt.NDArray[np.uint64]]:
    parts = machine.memory()

    def read(at: int) -> npt.NDArray[np.uint64]:
        part = next(part for part in parts if part.base <= at < part.base + len(part.bytes))
        found: npt.NDArray[np.uint64] = part.bytes[at - part.base : at - part.base + 4096].view("<u8").copy()
        return found

    return read


def read_back(machine: Any) -> dict[str, Any]:
    map_ = machine.map
    return read_mappings(reader(machine), machine.root, map_.levels, map_.page_offset)


def assert_same_entries(found: dict[str, Any], state: State) -> None:
    """What was read are the entries of the machine's state, each of them once."""
    stated: dict[str, Any] = state_to_json(state)
    for name in LISTS:
        mine, theirs = found[name], stated[name]
        if name.endswith("leaves"):
            mine, theirs = expanded(mine), expanded(theirs)
        assert as_set([tuple(row) for row in mine]) == as_set([tuple(row) for row in theirs]), name


MAPS: dict[str, MachineMap | str] = {
    "small": m.SMALL,
    "4K": m.TINY_4K,
    "1G": m.HOLE,
    "five levels": m.SMALL_LA57,
    "pti": m.SMALL_PTI,
    "image": m.IMAGE,
    "image elsewhere": m.IMAGE_MOVED,
    "recording": "7.3_pc-8g_dmap",
    "recording of five levels": "6.18_pc-8g-la57_dmap",
    "recording with holes": "6.12_q35-holes-3g_boot",
}


@pytest.mark.parametrize("name", MAPS)
def test_page_tables_of_a_machine(name: str) -> None:
    """The native machine keeps real page tables: they are read as the kernel's are, at boot and after changes."""
    map_ = MAPS[name]
    if isinstance(map_, str):
        map_ = load_map(GOLDEN / f"{map_}.json")
    machine = Machine(map_, kernel="6.12")
    assert_same_entries(read_back(machine), machine.state())
    levels: set[tuple[int, bool]] = set()
    rng = random.Random(name)
    for _ in range(4):
        for op in direct_map_ops(rng, frames_of(map_), 60):
            machine.apply(op)
        state = machine.state()
        assert_same_entries(read_back(machine), state)
        levels |= {(row[1], bool(row[3] & m.P)) for row in state.leaves.tolist()}
    assert {(1, True), (1, False)} <= levels  # the changes did something


@pytest.mark.parametrize("name", [name for name in RECORDINGS if not name.endswith("boot")])
def test_page_tables_come_out_as_they_were_recorded(name: str) -> None:
    """A machine that goes on from a recorded state: leaf by leaf, in the recording's own order and runs."""
    text = (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
    value: dict[str, Any] = json.loads(text)
    node = parse_json(text, name, RecordingError)
    map_ = recording_map(node)
    for when in ("before", "after"):
        machine = Machine(map_, kernel=value["kernel"], state=recorded_state(node[when], map_))
        found = read_back(machine)
        for leaves in ("leaves", "high_leaves"):
            assert found[leaves] == value[when][leaves]
        for tables in ("tables", "high_tables"):
            # where a table lies is the machine's own choice
            rows, recorded = (
                [(level, at, int(raw, 16) & ~m.FRAME_MASK) for level, at, raw in source[tables]]
                for source in (found, value[when])
            )
            assert rows == recorded


# --- calls and instructions as a recording has them ----------------------------------------------------------------

ARGUMENTS = {
    "rmp_make_private pfn=0x69cc6 gpa=0x7000 level=2M asid=186 immutable=1": (0x69CC6, 0x7000, 2, 186, 1),
    "rmp_make_shared pfn=0x200 level=4K": (0x200, 1),
    "psmash pfn=0x200": (0x200,),
    "snp_lookup_rmpentry pfn=7": (7,),
    "set_memory_ro pfn=0x1000 pages=3": (0x1000, 3),
    "_set_memory_wc pfn=1 pages=0": (1, 0),
    "set_direct_map_invalid_noflush pfn=9": (9,),
    "set_direct_map_default_noflush pfn=9": (9,),
    "set_direct_map_valid_noflush pfn=9 pages=5 valid=1": (9, 5, 1),
}
"""Arguments in the order of docs/formats.md; levels are the kernel's numbers."""


@pytest.mark.parametrize("text", ARGUMENTS)
def test_arguments_of_a_call(text: str) -> None:
    assert call_arguments(parse_op(text)) == (text.partition(" ")[0], ARGUMENTS[text])


def test_calls_that_can_be_made() -> None:
    """Those that a recording may hold, and no others."""
    for spec in OPS:
        op = make_op(spec.name, **{arg.name: 1 for arg in spec.args if arg.name not in ("high", "flavour")})
        if spec.name in CALLS:
            name, args = call_arguments(op)
            assert (name, len(args)) == (spec.name, len(CALLS[spec.name]))
        else:
            text = refused(call_arguments, op)
            assert text.startswith(f"{op}: is no call that can be made into a running kernel; those are ")
            assert all(name in text for name in CALLS)


@pytest.mark.parametrize("more", ["high=1", "flavour=array", "flavour=pages"])
def test_calls_on_other_than_a_range_are_refused(more: str) -> None:
    """high: on the mapping of the kernel image; flavour: on listed addresses."""
    op = parse_op(f"set_memory_ro pfn=0x1000 pages=1 {more}")
    assert refused(call_arguments, op) == f"{op}: only calls on a range of pages of the direct map can be made"


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (0, 0),
        (7, 7),
        (0x7FFF_FFFF, (1 << 31) - 1),
        (0x8000_0000, -(1 << 31)),
        (0xFFFF_FFEA, -22),
        (0xFFFF_FFFF_FFFF_FFF2, -14),
        (0xDEAD_BEEF_0000_0000, 0),
    ],
)
def test_a_c_int_in_a_register(register: int, value: int) -> None:
    """The upper half of RAX is nobody's (System V ABI)."""
    assert _signed(register) == value


def golden(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return value


def recorded(call: dict[str, Any]) -> Recorded:
    """A call of a recording, as it was before it was written."""
    executed = tuple(
        Executed(
            one["insn"],
            int(one["rax"], 16),
            bytes.fromhex(one["input"]) if "input" in one else None,
            one["ret"],
        )
        for one in call.get("insns", [])
    )
    ret = tuple(call["ret"]) if isinstance(call["ret"], list) else call["ret"]
    injected = tuple(call.get("injected", ()))
    return Recorded(call["fn"], tuple(call["args"]), ret, tuple(call["page_counts"]), executed, injected)


@pytest.mark.parametrize("name", [name for name in RECORDINGS if not name.endswith("boot")])
def test_calls_are_written_as_in_the_recordings(name: str) -> None:
    """Key by key and in their order: with instructions or without, forced codes, three returns."""
    for call in golden(name)["calls"]:
        assert json.dumps(recorded(call).to_json()) == json.dumps(call)


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_as_text(name: str) -> None:
    """Nothing is lost; each call, run and row has a line, so that a difference of two recordings can be read."""
    value = golden(name)
    text = recording_text(value)
    assert json.loads(text) == value
    assert json.dumps(json.loads(text)) == json.dumps(value)  # in order, too
    assert text.endswith("}\n") and text.count("\n\n") == 0
    found = {line.strip().rstrip(",") for line in text.splitlines()}
    rows = [*value["e820"], *value["memblock"]["memory"], *value.get("calls", [])]
    for state in (value[when] for when in ("boot", "before", "after") if when in value):
        rows += [row for key in LISTS for row in state.get(key, [])]
    # the last row of a list stands before its end
    assert all(text in found or f"{text}]" in found for text in map(json.dumps, rows))
    assert max(map(len, found)) < 1000


@pytest.mark.parametrize("name", ["6.12_pc-4g_snp", "7.3_pc-8g-la57_kimg"])
def test_a_written_recording_is_read_again(tmp_path: Path, name: str) -> None:
    value = golden(name)
    value["calls"] = [recorded(call).to_json() for call in value["calls"]]
    (tmp_path / "r.json").write_text(recording_text(value), encoding="utf-8")
    assert conform(tmp_path / "r.json").passed
    value["calls"][0]["ret"] -= 1
    (tmp_path / "r.json").write_text(recording_text(value), encoding="utf-8")
    assert not conform(tmp_path / "r.json").passed


# --- the log of a module that does the instructions ----------------------------------------------------------------

UPDATE = Executed("RMPUPDATE", 0x69CC6000, bytes.fromhex("00f0026c4800000001000000ba000000"), 0)
SMASH = Executed("PSMASH", 0x40000000, None, 0)
LOG = [
    "# rmpcore: kernel 6.12.95+deb12-amd64, RMP as on milan, 0x140000 frames",
    "rmp_make_private pfn=0x69cc6 gpa=0x7000 level=4K asid=186  # = 0  4k=1 2m=2 1g=3",
    "# RMPUPDATE pa=0x69cc6000 gpa=0x486c02f000 assigned=1 size=4K asid=186  = 0",
    "# PSMASH pa=0x40000000  = 7 FAIL_BADADDR",
    "psmash pfn=0x40000  # = 7",
    "# RMPREAD pa=0x1000  = 0 lo=0x0000000000000000 hi=0x0000000000000000",
]


def test_codes_come_from_the_modules_log() -> None:
    read = Executed("RMPREAD", 0x1000, None, 0)
    found = ModuleHost.complete([[UPDATE], [], [SMASH, read]], LOG)
    assert found == [[UPDATE], [], [dataclasses.replace(SMASH, ret=7), read]]
    assert ModuleHost.complete([], LOG[:2]) == []


@pytest.mark.parametrize(
    ("executed", "log"),
    [
        ([UPDATE, UPDATE], LOG[2:3]),
        ([SMASH], LOG[2:3]),
        ([dataclasses.replace(UPDATE, rax=0x69CC7000)], LOG[2:3]),
        ([dataclasses.replace(SMASH, name="RMPREAD")], LOG[3:4]),
        ([SMASH, UPDATE], LOG[2:4]),
        ([UPDATE], []),
        ([UPDATE], ["# RMPUPDATE pa=0x69cc6000 gpa=0x0 assigned=1 size=4K asid=1"]),
    ],
)
def test_a_log_of_something_else_is_refused(executed: list[Executed], log: list[str]) -> None:
    """Another instruction, another address, another order, too few."""
    assert refused(ModuleHost.complete, [executed], log).startswith("the module logged ")


def test_what_is_repeated_is_one_line_of_the_log() -> None:
    """The module counts what overlaps again and again."""
    log = [
        "# RMPUPDATE pa=0x69cc6000 gpa=0x0 assigned=0 size=4K asid=0  = 4 FAIL_OVERLAP  (2 times more)",
        "# RMPUPDATE pa=0x69cc6000 gpa=0x0 assigned=0 size=4K asid=0  = 0",
    ]
    overlaps = dataclasses.replace(UPDATE, ret=4)
    assert ModuleHost.complete([[UPDATE] * 4], log) == [[overlaps, overlaps, overlaps, UPDATE]]
    assert refused(ModuleHost.complete, [[UPDATE] * 3], log).startswith("the module logged ")


def test_a_log_of_more_is_refused() -> None:
    """What no recorded call executed."""
    assert (
        refused(ModuleHost.complete, [[UPDATE]], LOG)
        == "the module logged PSMASH pa=0x40000000, which no call executed"
    )


def test_nothing_is_forced_on_a_module() -> None:
    host = ModuleHost.__new__(ModuleHost)
    assert refused(host.begin, (4, 0)).startswith("codes cannot be injected")
    host.begin(())
    assert host.executed == []
