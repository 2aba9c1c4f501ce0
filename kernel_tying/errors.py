"""The one exception class of the package."""


class TyingError(ValueError):
    """A pattern, a kernel and a layer do not go together.

    Every message has three parts: the rule, what was received, and the way out. It is raised when a pattern is made or
    attached, before anything is changed.
    """
