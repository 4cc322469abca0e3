"""The errors that a caller may want to tell from others."""


class DataError(ValueError):
    """Input that cannot be used; the message names the file, what is wrong with it and the remedy."""


class Diverged(ValueError):
    """A training whose loss is not finite, or ends above its start; the message names the training and the remedy."""
