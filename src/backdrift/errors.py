"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """Bad input, said in one sentence: what was wrong and what to do.

    The command line prints the sentence and exits with status 2; in Python it is an ordinary `ValueError`.
    """
