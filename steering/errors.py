"""The one exception that the command line shows without a traceback."""


class SteeringError(Exception):
    """Something the user can put right: says what was wrong, in which key or file, and what was
    expected."""


class ConfigError(SteeringError):
    """A config file, an override or a command line is wrong; the command line exits with 2."""
