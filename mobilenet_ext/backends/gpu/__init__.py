"""How a chain runs on a GPU: packing, candidate plans, the check that picks one, and the operators' CUDA registration.

The order is cuda (the C++ kernels, where built), triton, aten.  No kernel is trusted that this machine has not seen
agree with PyTorch: see :mod:`mobilenet_ext.backends.gpu.runtime` and ``docs/gpu.md``.
"""
