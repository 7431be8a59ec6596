"""The one error class for what the user can mend."""


class UserError(ValueError):
    """Something the user can mend: a bad setting, missing or damaged data.

    The message names what is wrong (file, key, value) and what would work. Command lines print it
    as it is, without a traceback, and exit with code 2. Our own bugs are `assert`s and keep theirs.
    """
