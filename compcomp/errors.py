"""The error class for wrong use, and the one for what exact numbers cannot hold."""


class InputError(ValueError):
    """Something given to compcomp cannot be used.

    The message is one line that says what was given, what is allowed, and where it was given.
    """

    def __init__(self, given: str, allowed: str, where: str) -> None:
        self.given, self.allowed, self.where = given, allowed, where
        super().__init__(" ".join(f"{where}: {given}; allowed: {allowed}".split()))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        return type(self), (self.given, self.allowed, self.where)


class NotExactError(ArithmeticError):
    """A value leaves the rational numbers or is not unique, so it cannot be replayed exactly."""
