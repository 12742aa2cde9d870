"""What the compilers make of the GPU kernels, read from the machine code: no GPU is needed.

    make gpu-check                                       the table, and exit code 1 where a kernel breaks its budget
    make gpu-check ARGS="--only masked_conv2d --json f"  some kernels; every number as JSON too
    make gpu-check ARGS=--accept                         take what came out as the budget from now on

`sass.py` reads a cubin, whoever made it; `machines.py` holds what an SM has to give; `triton_kernels.py` makes the cubins of
the Triton kernels; `budget.py` compares with `budget.json`. A budget is what the kernel needed when somebody last looked: not a
limit of the hardware, but a change of it is to be meant.
"""
