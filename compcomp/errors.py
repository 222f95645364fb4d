"""The error class for wrong use, and the one for what exact numbers cannot hold."""

from typing import Any


class InputError(ValueError):
    """Something given to compcomp cannot be used.

    The message is one line that says what was given, what is allowed, and where it was given.
    """

    def __init__(self, given: str, allowed: str, where: str) -> None:
        self.given, self.allowed, self.where = given, allowed, where
        super().__init__(" ".join(f"{where}: {given}; allowed: {allowed}".split()))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        return type(self), (self.given, self.allowed, self.where)


class Interrupted(KeyboardInterrupt):
    """The user has interrupted a search.

    ``plan`` has what was measured until then: its order is the best of these, and its ``optimality`` "interrupted".
    It is None if no order was measured yet.
    """

    def __init__(self, plan: Any = None) -> None:
        self.plan = plan
        super().__init__("a search was interrupted")


class NotExactError(ArithmeticError):
    """A value leaves the rational numbers or is not unique, so it cannot be replayed exactly."""
