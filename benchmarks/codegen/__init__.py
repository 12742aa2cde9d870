"""What the compilers make of the GPU kernels, read from the machine code: no GPU is needed.

    make gpu-check                                       Triton: the table, and exit code 1 where a kernel breaks its budget
    make cuda-check                                      the same for CUDA C++, whose library `make install` built with nvcc
    make gpu-check ARGS="--only masked_conv2d --json f"  some kernels; every number as JSON too
    make gpu-check ARGS=--accept                         take what came out as the budget from now on

`sass.py` reads a cubin, whoever made it; `machines.py` holds what an SM has to give; `triton_kernels.py` makes the cubins of
the Triton kernels, `cuda_kernels.py` finds those of the CUDA library, and `cuda_uses.py` says how these are launched and what
must be in their code; `budget.py` compares with `triton_budget.json` and `cuda_budget.json`. A budget is what the kernel needed
when somebody last looked: not a limit of the hardware, but a change of it is to be meant.
"""
