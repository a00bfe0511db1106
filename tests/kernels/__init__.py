"""Tests of the Triton kernels: interpreted on any machine, native where there is a GPU, compiled for absent ones."""
