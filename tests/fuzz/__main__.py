"""Fuzz the readers of files: `make fuzz`. Exit code 1 if anything but a typed error or the same content came of a damaged file.

python -m tests.fuzz                                    every target, in full
python -m tests.fuzz --only masks --seed 123 --count 1  one mutation again
"""

from __future__ import annotations

import argparse
import shlex

from tests.fuzz.harness import Summary, fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the readers of files.")
    parser.add_argument("--only", choices=sorted(TARGETS), nargs="+", default=list(TARGETS), help="these kinds of files")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; each mutation has the next one")
    parser.add_argument("--count", type=int, help="mutations of each kind (default: each kind's own number)")
    options = parser.parse_args()
    total = Summary()
    for name in options.only:
        summary = fuzz([name], options.seed, TARGETS[name].count if options.count is None else options.count)[name]
        total.add(summary)
        print(f"{name}: {summary}", flush=True)
        for seed, how, what in summary.wrong[:20]:
            print(
                f"  WRONG {what}\n        {how}; again: python -m tests.fuzz --only {shlex.quote(name)} --seed {seed} --count 1",
                flush=True,
            )
    print(f"fuzz: {total}")
    return 1 if total.counts["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
