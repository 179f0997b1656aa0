"""The one exception that means "the user gave something that can't work"."""


class InputError(ValueError):
    """Wrong input: the message names the key or file, the value found and what would be valid.

    The command line prints it as one line; every other exception keeps its traceback.
    """
