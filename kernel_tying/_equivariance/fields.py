"""Types of values: how a group acts on the channels, and the patterns of weights between values of given types."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kernel_tying.errors import TyingError
from kernel_tying.patterns.equivariant import FieldType, channel_moves, commuting, equivariant
from kernel_tying.patterns.groups import Group
from kernel_tying.patterns.pattern import TyingPattern


@dataclass(frozen=True)
class Action:
    """The action of a group on the channels of a field.

    Attributes:
        group: the group.
        given: the type as `equivariant` takes it.
        moves: what each generator makes of the numbers 1, 2, ... of the channels, with signs, `(generators, members)`.
    """

    group: Group = field(repr=False)
    given: FieldType
    moves: np.ndarray = field(repr=False)

    @property
    def members(self) -> int:
        """Number of channels of a field."""
        return int(self.moves.shape[1])

    @property
    def is_signed(self) -> bool:
        """Whether some element changes the sign of a channel."""
        return bool((self.moves < 0).any())

    @property
    def is_fixed(self) -> bool:
        """Whether no element moves a channel."""
        return bool((self.moves == np.arange(1, self.members + 1)).all())

    @property
    def unsigned(self) -> Action:
        """The action without its signs."""
        if not self.is_signed:
            return self
        matrices = np.abs(self.moves)[:, :, None] == np.arange(1, self.members + 1)
        return Action(self.group, list(matrices.astype(int)), np.abs(self.moves))

    def on_channels(self, count: int) -> np.ndarray:
        """Returns what each generator makes of the numbers of `count` channels, fields side by side."""
        first = np.repeat(np.arange(0, count, self.members), self.members)
        tiled = np.tile(self.moves, count // self.members)
        return np.sign(tiled) * (np.abs(tiled) + first)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Action) and np.array_equal(self.moves, other.moves)

    def __str__(self) -> str:
        return repr(self.given) if isinstance(self.given, str) else f"{self.members} channels with given matrices"


def action(group: Group, given: FieldType, name: str) -> Action:
    """Returns the action that a type means. `name` is the argument that gave the type, for messages."""
    return Action(group, given, channel_moves(group, given, name))


def kernel_pattern(size: tuple[int, ...], in_type: Action, out_type: Action) -> TyingPattern | None:
    """Returns the pattern of kernels of shape `(*size, in, out)`, or None if nothing is tied."""
    group = in_type.group
    is_still = not size or bool((group.moves(size) == np.arange(1, np.prod(size) + 1)).all())
    if is_still and in_type.is_fixed and out_type.is_fixed:
        return None
    return equivariant(size, group, in_type.given, out_type.given)


def vector_pattern(of_type: Action, rank: int = 1) -> TyingPattern | None:
    """Returns the pattern of vectors of channels that the group fixes, or None if nothing is tied.

    The shape has `rank` axes, of size 1 but for the last.

    Raises:
        TyingError: only the zero vector is fixed.
    """
    if of_type.is_fixed:
        return None
    pattern = equivariant((), of_type.group, "trivial", of_type.given)
    shape = (1,) * (rank - 1) + (of_type.members,)
    return TyingPattern(pattern.labels.reshape(shape), pattern.signs.reshape(shape))


def flat_pattern(sizes: tuple[int, ...], channels: int, in_type: Action, out_type: Action) -> TyingPattern:
    """Returns the pattern of a Dense kernel on flattened values: shape `(prod(sizes) * channels, out)`."""
    pattern = commuting(sizes, in_type.group, in_type.on_channels(channels), out_type.moves)
    shape = (-1, out_type.members)
    return TyingPattern(pattern.labels.reshape(shape), pattern.signs.reshape(shape))


class Kind:
    """The type of one or more values that are of equal type. It may be unknown until the whole model is read.

    Attributes:
        origin: where the values come from, for messages.
        known: the type, None as long as it is unknown.
        default: the type unless another is found.
    """

    def __init__(self, origin: str, default: Action, is_known: bool = False):
        self.origin = origin
        self.default = default
        self.known = default if is_known else None
        self._joined: Kind | None = None

    @property
    def root(self) -> Kind:
        """The kind that stands for all kinds joined with this one."""
        return self._joined.root if self._joined else self

    @property
    def type(self) -> Action:
        """The type as far as it is known."""
        return self.root.known or self.root.default

    def join(self, other: Kind, where: str) -> None:
        """Makes both kinds one. `where` names the layer that requires it, for messages.

        Raises:
            TyingError: they are known and differ.
        """
        first, second = self.root, other.root
        if first is second:
            return
        if first.known and second.known and first.known != second.known:
            raise TyingError(
                f"{where} needs values of one type. Received {first.known} from {first.origin} and {second.known} from "
                f"{second.origin}. Put a convolution or Dense layer between, which changes the type."
            )
        if second.known or (second.default.members > first.default.members and not first.known):
            first, second = second, first
        second._joined = first


@dataclass(frozen=True)
class Feature:
    """A value in a model, as the plan sees it.

    Attributes:
        sizes: sizes of the spatial axes, None where unknown; `()` for a vector.
        channels: number of channels.
        kind: its type.
        is_flat: whether the axes are flattened.
    """

    sizes: tuple[int | None, ...]
    channels: int
    kind: Kind
    is_flat: bool = False

    @property
    def rank(self) -> int:
        """The number of axes, with those of the batch and the channels."""
        return 2 if self.is_flat else 2 + len(self.sizes)

    @property
    def is_point(self) -> bool:
        """Whether the group moves nothing but channels."""
        return all(size == 1 for size in self.sizes)
