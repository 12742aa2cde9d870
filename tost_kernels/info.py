"""`python -m tost_kernels.info [--json]`: for each op and backend, whether it is installed, usable here, and why not;
and where the cache of `tune` is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import torch

from tost_kernels import backend, library
from tost_kernels.tuning import store

_ONLY_WHEN_FORCED = {
    "triton": "interpreted on the CPU, only when forced: slow, for tests",
    "cuda": "emulated on the CPU, only when forced: slow, for tests",
}


def report() -> dict[str, Any]:
    """What is installed and usable in this process, as plain data.

    Keys: "versions", "libraries" (name -> None or the reason it is absent), "ops", a list of {"op", "backend", "installed",
    "usable", "reason", "note"}, and "tune_cache", {"folder" (None where there is no place for one), "entries"}. Usable means on
    some tensor here: each op checks device and dtype at the call. A note says what to know of a usable one, else it is None.
    Entries are those for this machine and these versions.
    """
    ops = []
    for op in backend.OPS:
        for name in backend.BACKENDS:
            reason = backend.why_not(op, name)
            installed = name not in backend.COMPILED or backend.has_kernel(op, name)
            note = _ONLY_WHEN_FORCED[name] if reason is None and backend.only_when_forced(name) else None
            row = {"op": op, "backend": name, "installed": installed, "usable": reason is None, "reason": reason, "note": note}
            ops.append(row)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {
        "versions": {
            "tost-sparse": _version_of("tost-sparse"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cpu_instructions": torch.ops.tost.cpu_isa() if library.reason("cpu") is None else None,
            "cuda": torch.version.cuda,
            "gpu": _gpu(),
            "triton": _version_of("triton"),
        },
        "libraries": {name: library.reason(name) for name in backend.COMPILED},
        "ops": ops,
        "tune_cache": {"folder": store.place(), "entries": sum(map(store.count, devices))},
    }


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def text(data: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    lines = [f"{name:18}{value}" for name, value in data["versions"].items()]
    cache = data["tune_cache"]
    lines.append(f"{'tune cache':18}{cache['folder'] or 'no place for one'}, {cache['entries']} entries for this machine")
    lines += ["", f"{'op':18}{'backend':12}{'usable':8}why not"]
    for row in data["ops"]:
        why = row["reason"] or row["note"] or ""
        lines.append(f"{row['op']:18}{row['backend']:12}{'yes' if row['usable'] else 'no':8}{why}".rstrip())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tost_kernels.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    data = report()
    try:
        print(json.dumps(data, indent=2) if options.json else text(data), flush=True)
    except BrokenPipeError:  # `| head` has read enough; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
