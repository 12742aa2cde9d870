"""The presets of experiments/, each read once for all tests."""

import functools

from tost.presets import Preset, preset_files

NAMES = sorted(preset_files())


@functools.cache
def loaded(name: str) -> Preset:
    return Preset.load(preset_files()[name])
