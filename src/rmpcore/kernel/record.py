"""A recording: boot a kernel, make calls, keep what it wrote and returned, and hold it against the model."""

from __future__ import annotations

import json
from collections.abc import Callable

from rmpcore.kernel.calls import Source
from rmpcore.kernel.guest import Layout
from rmpcore.kernel.image import Image
from rmpcore.kernel.session import Recorded, Session


def record(
    image: Image, layout: Layout, source: Source, module: bytes | None = None, progress: Callable[[int], object] = id
) -> dict[str, object]:
    """Record a kernel that makes the calls of a source; without any, its direct map at boot alone.

    ``module``: a kernel module that does the SNP instructions in the guest, instead of the model out here.
    ``progress`` is called with the number of calls made.  Raises KernelError."""
    with Session(image, layout, module) as session:
        if not source.count:
            return session.recording
        source.prepare(session)
        if source.needs_snp(session):
            session.use_snp()
        session.begin()
        made: list[Recorded] = []
        for wanted in source.calls(session):
            made.append(session.make(wanted.op, wanted.injected))
            progress(len(made))
        return session.finish(made)


def recording_text(value: object, margin: str = "") -> str:
    """A recording as the text of its file: a row, a run or a call on each line."""
    inner = f"{margin} "
    if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()):
        items = [f"{inner}{json.dumps(name)}: {recording_text(item, inner)}" for name, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{margin}}}" + ("\n" if not margin else "")
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(inner + json.dumps(item) for item in value) + "]"
    return json.dumps(value)
