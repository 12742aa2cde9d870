"""The parts of `tost analyze`, an `Action` each."""
