"""The name under which TensorRT's parser looks for TensorRT's own library, which not every wheel has."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def resolvable(library: str) -> Iterator[dict[str, str]]:
    """Environment for a process in which the library can be loaded by this name.

    The parser of TensorRT-RTX 1.7 loads `libtensorrt_rtx.so` at the first plugin node and ends the process if it cannot; its
    wheel has that file as `libtensorrt_rtx.so.1` only. A link of the missing name, in a folder of its own that lasts as long
    as the block, is the same file to the loader. Nothing is done for a wheel that has the name, for a library that is not
    from a wheel, for another system than Linux, or for no library ("").
    """
    found = _versioned(library) if library and sys.platform == "linux" else None
    if found is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="hart-edge-") as folder:
        (Path(folder) / library).symlink_to(found)
        before = os.environ.get("LD_LIBRARY_PATH")
        yield {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, (folder, before)))}


def _versioned(library: str) -> Path | None:
    """The wheel's file with a version behind its name, if the name itself is missing there."""
    package = library.removeprefix("lib").removesuffix(".so") + "_libs"
    spec = importlib.util.find_spec(package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    for folder in folders:
        files = sorted(folder.glob(f"{library}.*"))
        if files and not (folder / library).exists():
            return files[0].resolve()
    return None
