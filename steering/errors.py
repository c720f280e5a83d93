"""The one exception that the command line shows without a traceback."""


class SteeringError(Exception):
    """Something the user can put right: says what was wrong, in which key or file, and what was
    expected."""


class NotFiniteError(SteeringError):
    """What a model says of held-out data is not finite."""


class DivergedError(SteeringError):
    """A training whose loss, gradient or evaluation was not finite. A study that tries settings counts such a
    try as lost and goes on.

    Attributes:
        steps: after how many steps it showed.
    """

    def __init__(self, message: str, steps: int) -> None:
        super().__init__(message)
        self.steps = steps


class ConfigError(SteeringError):
    """A config file, an override or a command line is wrong; the command line exits with 2."""
