"""What went wrong, as one line for a person.

Promises a file's name before the system's word about it, instead of a number that means nothing to most. Leaves exit
codes and what to do next to the commands.
"""

LONGEST = 1000  # characters of what another machine says


def shortened(text: str, most: int = LONGEST) -> str:
    """What somebody else wrote, in at most ``most`` characters.

    >>> shortened("abc" * 500, 40)
    'abcabcab… (1500 characters)'
    """
    return text if len(text) <= most else f"{text[: most - 32]}… ({len(text)} characters)"


def sentence(error: BaseException) -> str:
    """
    >>> try:
    ...     open("/nowhere/at/all")
    ... except OSError as error:
    ...     sentence(error)
    '/nowhere/at/all: no such file or directory'
    >>> sentence(ValueError("0 is too little"))
    '0 is too little'
    """
    if isinstance(error, MemoryError):
        return f"not enough memory ({str(error) or 'of this machine'}); end other programs, or take less at once"
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        told = error.strerror[0].lower() + error.strerror[1:]
        return told if error.filename is None else f"{error.filename}: {told}"
    return str(error)
