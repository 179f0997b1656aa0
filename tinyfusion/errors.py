"""Exceptions that the command line reports in one line; all others keep their traceback."""


class InputError(ValueError):
    """Wrong input: the message names the key or file, the value found and what would be valid.

    The command line prints it as one line; every other exception keeps its traceback.
    """


class TrainingDivergedError(RuntimeError):
    """The loss or its gradient was not finite for ten steps in a row."""


class RanksFailedError(RuntimeError):
    """A rank failed without reporting why; what it printed says more."""


REPORTED = (InputError, TrainingDivergedError, RanksFailedError)
"""What the command line reports in one line."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, cut to its first sentence or line, for our own message."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.partition(". ")[0]
