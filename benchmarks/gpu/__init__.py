"""The GPU suite: one command that builds, tests, measures and reports. See docs/notes/gpu-suite.md.

    python -m benchmarks.gpu --out DIR            on a GPU, in 9 minutes
    python -m benchmarks.gpu --out DIR --dry-run  the same code on the CPU, tiny: its times mean nothing

Everything that needs CUDA itself goes through `device.py`; a section is a module with `run(suite)`.
"""
