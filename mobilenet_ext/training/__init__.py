"""Training: fused forward and backward of blocks, with BatchNorm frozen or on the statistics of the batch.

``block`` has the mathematics, ``passes`` what it is made of (native kernels in float32, plain operators elsewhere),
``op`` the operators that autograd and ``torch.compile`` see, ``run`` the fused modules' way in.
"""
