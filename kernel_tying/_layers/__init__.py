"""How one layer is tied: its kernels, their initializer, constraint and regularizer, and the convolution."""
