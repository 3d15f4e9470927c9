"""The text of an error, as one line for a person.

Promises the file's name followed by the system's message, without the error number that `str(OSError)` prints. Leaves
exit codes, and advice on what to do, to the commands.
"""

from __future__ import annotations

LONGEST = 1000  # characters: the most that is shown of a text from another machine


def shortened(text: str, most: int = LONGEST) -> str:
    """Return a text from another machine, cut to at most `most` characters.

    >>> shortened("abc" * 500, 40)
    'abcabcab… (1500 characters)'
    """
    return text if len(text) <= most else f"{text[: most - 32]}… ({len(text)} characters)"


def describe(error: BaseException) -> str:
    """Return the message of an error, without a traceback.

    >>> try:
    ...     open("/nowhere/at/all")
    ... except OSError as error:
    ...     describe(error)
    '/nowhere/at/all: no such file or directory'
    >>> describe(ValueError("0 is too little"))
    '0 is too little'
    """
    if isinstance(error, MemoryError):
        return f"not enough memory ({str(error) or 'on this machine'}); end other programs, or ask about less at once"
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        message = error.strerror[0].lower() + error.strerror[1:]
        return message if error.filename is None else f"{error.filename}: {message}"
    return str(error)
