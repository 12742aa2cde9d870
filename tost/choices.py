"""One way to say that a name is not among the known ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_choice(argument: str, value: object, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`, else raise a ValueError that names the argument and close matches."""
    options = sorted(known)
    if isinstance(value, str) and value in options:
        return value
    close = difflib.get_close_matches(str(value).lower(), options, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"{argument}: unknown name {value!r}; {hint}expected one of {', '.join(options)}")
