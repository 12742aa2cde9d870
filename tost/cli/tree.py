"""The tree of parsers: `tost COMMAND`, and below a command the actions that it has."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from tost.cli.options import Parser

# a command: a module with a parser(), run(options) and a line of HELP, maybe with add_actions(parser); torch is imported
# inside run, so that --help and typos answer at once
Commands = Mapping[str, ModuleType]


def tree(commands: Commands) -> Parser:
    """The parser of a whole command line; what it returns has the command's name as `subcommand`."""
    root = Parser(prog="tost", description="Train sparse networks better (ToST) and faster (sparse-weight kernels).")
    root.commands = {name: command.parser() for name, command in commands.items()}
    below = root.add_subcommands(required=True, dest="subcommand")
    for name, command in commands.items():
        below.add_subcommand(name, root.commands[name], help=command.HELP)
        if hasattr(command, "add_actions"):
            command.add_actions(root.commands[name])  # not before it has its own place in the tree
    return root
