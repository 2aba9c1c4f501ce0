"""Pictures of patterns, kernels and reports. Needs Matplotlib."""

from kernel_tying.errors import needing

with needing("Matplotlib", "plot", "Pictures"):
    from kernel_tying.plotting.kernels import plot_kernels
    from kernel_tying.plotting.patterns import plot_pattern
    from kernel_tying.plotting.symmetry import plot_symmetry

__all__ = ["plot_kernels", "plot_pattern", "plot_symmetry"]
