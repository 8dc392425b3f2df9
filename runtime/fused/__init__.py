"""The fused engine: our kernels, cuBLASLt products, cuDNN attention and convolutions, everything resident on one GPU."""
