"""`python -m tost` is the command `tost`."""

from tost.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
