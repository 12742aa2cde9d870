"""How fast tost_kernels is, question by question: `python benchmarks/run.py --help`."""
