"""Files that are whole or absent, and YAML that reads 2e-4 as a number."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    A reader, or a run after a crash, sees the old content or the new, never a part.
    """
    content = data.encode() if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from the group
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, values: Any) -> None:
    """`values` as indented JSON, atomically. NaN and infinity are errors: no other program reads them."""
    write_atomic(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2e-4 and 1e3 as strings; everybody who writes a learning rate means numbers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or not a mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"config: no such file: {file}")
    try:
        values = yaml.load(file.read_text(), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"config: expected {file} to map names to values, got {type(values).__name__}")
    return dict(values)
