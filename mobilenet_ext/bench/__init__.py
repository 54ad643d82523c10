"""Benchmarks: this package against PyTorch and other engines, in paired, interleaved rounds, verified before timing.

``mobilenet-ext bench`` is the command; docs/benchmarks has the method.
"""
