"""The command `tost`: train | prune | shrink | lottery | compare | compare-masks | analyze | report | reproduce | data | info.

Results go to stdout; progress, notes and errors to stderr. Exit codes: 0 done, 1 the run itself failed (it diverged, its
process died, two runs are no pair), 2 the command line, a configuration or a file is wrong, 130 interrupted, 141 nobody reads
stdout any more (`| head`), 143 terminated. Errors are one line.
"""

from __future__ import annotations

from tost.cli.main import main

__all__ = ["main"]
