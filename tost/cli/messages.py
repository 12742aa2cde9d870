"""jsonargparse's messages, in one line that names the option that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from tost.choices import check_choice

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "tuple[str": 'a list like ["layer1*", "fc"]',
    "tuple": "a list like [0.5, 0.75]",
    "tuple[float": "a list like [0.5, 0.75]",
    "dict": 'a mapping like {"baseline": "vanilla", "mine": "tost"}',
}


def one_line(message: str, options: Sequence[str], commands: Sequence[str]) -> str:
    """jsonargparse's message as `field: expected ..., got ...`, with the option that was probably meant."""
    text = " ".join(message.split())
    key = re.match(r'Parser key "([^"]+)": ?(.*)', text)
    if key:
        name, rest = key.groups()
        kinds = re.findall(r"(?<=<class ')\w+|\b(?:tuple\[\w+|dict\b)", rest.split("Errors:")[0].split("Given value type")[0])
        value = re.search(r"(?:Got value|Given value): (.*)$", rest)
        if kinds and value:
            expected = " or ".join(dict.fromkeys(_TYPES.get(kind, kind) for kind in kinds))
            return f"{name}: expected {expected}, got {value[1]!r}"
        return f"{name}: {rest}"
    stray = re.search(r"(?:unrecognized arguments: |does not accept option |Option )'?([\w.-]+)", text)
    if stray:
        typed = f"--{stray[1].lstrip('-')}"
        close = difflib.get_close_matches(typed, [option for option in options if option != typed], n=1)
        text += f"; did you mean {close[0]}?" if close else ""
    if 'expected "subcommand"' in text:
        return f"expected a command: {', '.join(commands)} (tost --help)"
    choice = re.search(r"invalid choice: '([^']*)'", text)
    if choice:
        try:
            check_choice("command", choice[1], commands)
        except ValueError as error:
            return str(error)
    return text
