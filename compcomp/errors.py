"""The one error class for wrong use."""


class InputError(ValueError):
    """Something given to compcomp cannot be used.

    The message is one line that says what was given, what is allowed, and where it was given.
    """

    def __init__(self, given: str, allowed: str, where: str) -> None:
        self.given, self.allowed, self.where = given, allowed, where
        super().__init__(" ".join(f"{where}: {given}; allowed: {allowed}".split()))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        return type(self), (self.given, self.allowed, self.where)
