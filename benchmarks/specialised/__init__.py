"""An experiment: convolution code made for one mask, in which kept weights are instructions. Not part of the package.

    python -m benchmarks.specialised --layer 128@16 --sparsity 0.95

`source.py` writes the CUDA code of a mask around the fixed part `conv.h`, `build.py` compiles it by nvcc, or by g++ with the
shim of tests/cuda_host, and calls it. docs/notes/cuda-specialised.md says what it may gain and what speaks against it.
"""
