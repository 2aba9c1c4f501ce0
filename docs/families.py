"""The families of patterns for the gallery: what they tie, when to use them, calls and references."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernel_tying import TyingPattern, patterns


class Family(NamedTuple):
    """A section of the gallery.

    Attributes:
        ties: what the kernels have in common.
        use: when to use the family.
        calls: expressions that make its patterns, one for each picture.
        reference: a source in Markdown, or empty.
    """

    ties: str
    use: str
    calls: tuple[str, ...]
    reference: str = ""


def arxiv(title: str, number: str) -> str:
    return f"[{title}](https://arxiv.org/abs/{number})"


DUDAR = arxiv("Dudar and Semenov, Use of symmetric kernels for convolutional neural networks", "1805.09421")
THEMES: dict[str, dict[str, Family]] = {
    "Symmetry": {
        "mirror": Family(
            "The kernel equals its mirror image along one or more axes; antisymmetric: its negative.",
            "Left and right mean the same, as in photographs. Antisymmetric kernels detect edges.",
            ("mirror((5, 5))", "mirror((5, 5), axis=(0, 1))", "mirror((5, 5), antisymmetric=True)"),
            DUDAR,
        ),
        "point": Family(
            "The kernel equals its half turn, the reversal along all axes.",
            "Linear-phase filters of signals: they shift all frequencies by the same time. Images that may be upside down.",
            ("point((5, 5))", "point((5, 5), antisymmetric=True)"),
            arxiv("Dzhezyan and Cecotti, SymNet: Symmetrical Filters in Convolutional Neural Networks", "1906.04252"),
        ),
        "rotation": Family(
            "The kernel equals its quarter turn, or with `order=2` its half turn.",
            "Images without an upright direction, whose mirror images differ: galaxies, printed text.",
            ("rotation((5, 5))", "rotation((4, 4), antisymmetric=True)"),
            DUDAR,
        ),
        "dihedral": Family(
            "The kernel equals its quarter turn and its mirror image.",
            "Images without any preferred direction: microscopy, satellite images, textures.",
            ("dihedral((5, 5))", "dihedral((5, 5), antisymmetric=True)"),
            DUDAR,
        ),
        "transpose": Family(
            "A symmetric square kernel, `k[i, j] == k[j, i]`.",
            "Dense layers and recurrent kernels that act as symmetric matrices; both axes of an image mean the same.",
            ("transpose((5, 5))", "transpose((5, 5), antisymmetric=True)"),
            arxiv("Hu, Zagoruyko and Komodakis, Exploring Weight Symmetry in Deep Neural Networks", "1812.11027"),
        ),
        "from_symmetry": Family(
            "The kernel is invariant under functions of your own that move its entries and may change their signs.",
            "No other family has the symmetry of your data.",
            ("from_symmetry((5, 5), [lambda kernel: -np.fliplr(kernel), np.flipud])",),
            arxiv("Ravanbakhsh, Schneider and Poczos, Equivariance Through Parameter-Sharing", "1702.08389"),
        ),
    },
    "Distance": {
        "radial": Family(
            "Positions at the same Euclidean distance from the centre are tied.",
            "Isotropic filters, such as blurs and the Laplacian of Gaussian.",
            ("radial((5, 5))", "radial((7, 7))"),
            "Marr and Hildreth, Theory of edge detection, Proc. R. Soc. Lond. B 207 (1980)",
        ),
        "rings": Family(
            "Positions of the same square ring are tied.",
            "The fewest weights for a profile from the centre to the border.",
            ("rings((5, 5))", "rings((6, 6))"),
            "`RadialConstraint` of tf.keras: see [](migration.md)",
        ),
    },
    "Repetition": {
        "blocks": Family(
            "Rectangular blocks of the kernel are constant.",
            "A large receptive field for few weights. Equal blocks become box sums and a dilated convolution.",
            ("blocks((2, 1, 2), (2, 1, 2))", "blocks((2, 2, 2), (2, 2, 2))"),
        ),
        "tile": Family(
            "A small kernel is repeated along each axis.",
            "Periodic structure. With one row that is repeated, the layer averages along columns.",
            ("tile((3, 3), (2, 2))", "tile((1, 5), (5, 1))"),
        ),
        "constant": Family(
            "All positions are tied.",
            "A box filter: average pooling with a learned scale.",
            ("constant((5, 5))",),
            "Viola and Jones, Rapid object detection using a boosted cascade of simple features, CVPR 2001",
        ),
    },
    "Masks": {
        "mask": Family(
            "Positions are zero where an array is 0, and free elsewhere. `&` combines a mask with any tying.",
            "A receptive field of any shape: causal, hexagonal, with holes.",
            ("mask([[1, 1, 1], [1, 1, 0], [0, 0, 0]])", "mask(np.indices((5, 5)).sum(axis=0) % 2 == 0) & point((5, 5))"),
            arxiv("van den Oord et al., Pixel Recurrent Neural Networks", "1601.06759"),
        ),
        "cross": Family(
            "Positions are zero except on the lines through the centre.",
            "Wide kernels whose weights grow with the side, not with the area.",
            ("cross((5, 5))", "cross((5, 5)) & dihedral((5, 5))"),
            arxiv("Ding et al., ACNet: Strengthening the Kernel Skeletons", "1908.03930"),
        ),
        "free": Family(
            "Nothing is tied.",
            "Filters that stay untied, in `per_filter`.",
            ("free((3, 3))",),
        ),
    },
    "Matrices": {
        "toeplitz": Family(
            "The diagonals of the matrix are constant.",
            "Dense layers on sequences: the layer is a convolution along its input.",
            ("toeplitz((5, 5))", "toeplitz((4, 6))"),
            arxiv("Sindhwani, Sainath and Kumar, Structured Transforms for Small-Footprint Deep Learning", "1510.01722"),
        ),
        "circulant": Family(
            "Each row is the row above, shifted cyclically.",
            "Small Dense layers. A pattern smaller than the kernel ties it block by block, as `circulant((8, 8))`.",
            ("circulant((5, 5))",),
            arxiv(
                "Cheng et al., An Exploration of Parameter Redundancy in Deep Networks with Circulant Projections", "1502.03436"
            ),
        ),
    },
    "Channels": {
        "per_filter": Family(
            "Each filter has a pattern of its own.",
            "Symmetric, antisymmetric and free filters in the same layer.",
            ("per_filter([mirror((3, 3)), mirror((3, 3), antisymmetric=True), free((3, 3))])",),
        ),
        "channel_blocks": Family(
            "Equal blocks of channels share their weights. The blocks do not mix.",
            "Grouped convolution with the weights of a single group.",
            ("channel_blocks((3, 3), in_channels=4, filters=8, blocks=2)",),
            arxiv("Wang and Yu, Tied Block Convolution", "2009.12021"),
        ),
        "equivariant": Family(
            "Positions and channels are tied so that the layer is equivariant: its output rotates when its input rotates.",
            "Networks whose output rotates with the input, or is invariant: `equivariant_plan` chooses all patterns.",
            ('equivariant((3, 3), "p4")', 'equivariant((3, 3), "p4", "regular", "regular")'),
            arxiv("Cohen and Welling, Group Equivariant Convolutional Networks", "1602.07576"),
        ),
    },
}
FAMILIES = {name: family for families in THEMES.values() for name, family in families.items()}


def make(call: str) -> TyingPattern:
    """Returns the pattern that an expression in the names of `kernel_tying.patterns` makes."""
    return eval(call, {**vars(patterns), "np": np})
