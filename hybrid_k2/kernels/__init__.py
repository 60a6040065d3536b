"""Triton kernels of the GPU side, one idea a file; README.md lists their functions.

Empty on purpose: triton is an optional package, and only a file that needs it imports it. Knows
quantised formats; knows no modules, rules or sequences.
"""
