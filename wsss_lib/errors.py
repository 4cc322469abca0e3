"""The one error for input that cannot be used."""


class DataError(ValueError):
    """Input that cannot be used; the message names the file, what is wrong with it and the remedy."""
