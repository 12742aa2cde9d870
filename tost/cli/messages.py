"""jsonargparse's messages, in one line that names the option that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from tost.choices import check_choice

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "tuple[str": 'a list like ["layer1*", "fc"]',
    "tuple[int": "a list like [1, 10]",
    "tuple[float": "a list like [0.5, 0.75]",
    "dict": "a mapping like {name: value}",
}


def one_line(message: str, prog: str, options: Mapping[str, str], commands: Sequence[str], elsewhere: Collection[str]) -> str:
    """jsonargparse's message as `field: expected ..., got ...`, with the option that was probably meant.

    Args:
        prog: the command at hand.
        options: those of this command, as they are typed -> the type of their value, as text.
        commands: those that could have been meant.
        elsewhere: names of options that other commands have; one that this command lacks is no slip of the fingers.
    """
    text = " ".join(message.split())
    key = re.match(r'Parser key "([^"]+)": ?(.*)', text)
    if key:
        name, rest = key.groups()
        kinds = re.findall(r"(?<=<class ')\w+|\b(?:tuple\[\w+|dict\b)", rest.split("Errors:")[0].split("Given value type")[0])
        if kinds == ["tuple"]:  # of what, only the option knows
            kinds = re.findall(r"tuple\[\w+", options.get(f"--{name}", ""))
        value = re.search(r"(?:Got value|Given value): (.*)$", rest)
        if kinds and value:
            expected = " or ".join(dict.fromkeys(_TYPES.get(kind, kind) for kind in kinds))
            return f"{name}: expected {expected}, got {value[1]!r}"
        return f"{name}: {rest}"
    alone = re.fullmatch(r"argument (--[\w.]+): expected one argument", text)
    if alone and options.get(alone[1]) == "bool":
        return f"argument {alone[1]}: expected {_TYPES['bool']} behind it"
    stray = re.search(r"(?:unrecognized arguments: (?:.*? )??--|does not accept option '|Option ')([\w.]+)", text)
    if stray:
        return text + (f"; {prog} has no --{stray[1]}" if stray[1] in elsewhere else _meant(stray[1], options))
    if re.match(r'expected "[\w.]+" to be one of', text):
        return f"expected a command: {', '.join(commands)} ({prog} --help)"
    choice = re.search(r"invalid choice: '([^']*)'", text)
    if choice:
        try:
            check_choice("command", choice[1], commands)
        except ValueError as error:
            return str(error)
    return text


def _meant(typed: str, options: Mapping[str, str]) -> str:
    names = {option.rpartition(".")[2].lstrip("-"): option for option in options}
    close = difflib.get_close_matches(typed, names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""
