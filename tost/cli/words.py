"""The words of a command line, before they are parsed."""

from __future__ import annotations

import json
from pathlib import Path

from tost.config import RECIPES, Config
from tost.files import read_yaml


def with_underscores(word: str) -> str:
    """--batch-size is --batch_size."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def with_recipe_spelled_out(words: list[str]) -> list[str]:
    """`--recipe NAME` (or that of a YAML file) beside single settings: all settings of NAME, and behind them the single ones.

    The parser would forget the name, and take what is not set from the default recipe.
    """
    named = [i for i, word in enumerate(words[:-1]) if word == "--recipe" and words[i + 1] in RECIPES]
    glued = [i for i, word in enumerate(words) if word.partition("=")[0] == "--recipe" and word.partition("=")[2] in RECIPES]
    files = [i for i, word in enumerate(words[:-1]) if word == "--config"]
    if not any(word.startswith("--recipe.") for word in words):
        return words
    names = {i: words[i + 1] for i in named} | {i: words[i].partition("=")[2] for i in glued}
    name = names[max(names)] if names else None
    if name is None and files and Path(words[files[-1] + 1]).is_file():
        in_file = read_yaml(words[files[-1] + 1]).get("recipe")
        name = in_file if in_file in RECIPES else None
    if name is None:
        return words
    gone = {*glued, *named, *(i + 1 for i in named)}
    settings = Config(recipe=name).recipe.as_dict()  # type: ignore[arg-type]
    spelled_out = [f"--recipe.{key}={json.dumps(value).strip(chr(34))}" for key, value in settings.items()]
    start = files[-1] + 2 if files else 1  # behind the file, which would override them
    head = [word for i, word in enumerate(words[:start]) if i not in gone]
    return head + spelled_out + [word for i, word in enumerate(words[start:], start) if i not in gone]
