"""The parts of `tost_kernels.tune`: what there is to choose from, how it is timed and searched, where results are kept."""
