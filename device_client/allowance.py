"""How much a server may say to one question, so that one which does not end fills neither memory nor time.

Promises that what arrives is counted as it arrives, read or not. Leaves ending the link to `link`, and a server that
says nothing to the question's time.
"""

from __future__ import annotations

from device_client.errors import ReplyError
from shared.rpc.tofc.v1 import tofc_pb2 as pb

MOST_TEXT = 1_000_000  # bytes of answer and thinking together
MOST_TOKENS = 250_000  # where a server states no limit, or one that so much text does not reach
MOST_ANEW = 100  # times that an answer begins anew: a server says so once
TIMES = 3  # that each picture may be missed: a server says so once


class Allowance:
    """Of one question. ``most_tokens``: that its answer may have; 0: nobody said.

    >>> allowance = Allowance(most_tokens=1, pictures=0)
    >>> for _ in range(5):
    ...     allowance.take(pb.Token(text="yes"))
    Traceback (most recent call last):
    device_client.errors.ReplyError: the server did not end its answer after 1 token, the most it may have; ...
    """

    def __init__(self, *, most_tokens: int, pictures: int) -> None:
        self._most_tokens = min(most_tokens or MOST_TOKENS, MOST_TOKENS)
        # A token may end one text and begin another, and what was held back comes at the end.
        self._messages = 2 * self._most_tokens + 2
        self._text = MOST_TEXT
        self._anew = MOST_ANEW
        self._missed = TIMES * pictures

    def take(self, event: pb.Token | pb.NeedPicture) -> None:
        """It arrived. Raises ReplyError where it is more than is allowed."""
        if isinstance(event, pb.NeedPicture):
            self._missed -= 1
            if self._missed < 0:
                raise _endless("missed the pictures of one question again and again")
            return
        self._messages -= 1
        self._text -= len(event.text.encode())
        self._anew -= event.anew
        if self._messages < 0:
            tokens = f"{self._most_tokens} token{'s' * (self._most_tokens > 1)}"
            raise _endless(f"did not end its answer after {tokens}, the most it may have")
        if self._text < 0:
            raise _endless(f"did not end its answer after {MOST_TEXT} bytes of text")
        if self._anew < 0:
            raise _endless(f"began its answer anew more than {MOST_ANEW} times")


def _endless(what: str) -> ReplyError:
    return ReplyError(f"the server {what}; ask another server, or update the older of device and server")
