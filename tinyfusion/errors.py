"""The one exception that means "the user gave something that can't work"."""


class InputError(ValueError):
    """Wrong input: the message names the key or file, the value found and what would be valid.

    The command line prints it as one line; every other exception keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """What an error of a library says, cut to its first sentence or line, for our own message."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.partition(". ")[0]
