"""How much a server may send in reply to one question, so that an endless reply fills neither memory nor time.

Promises that replies are counted as they arrive, whether anyone reads them or not. Leaves ending the link to `link`,
and a server that never replies to the question's deadline.
"""

from __future__ import annotations

from tofc.errors import ReplyError
from tofc.v1 import tofc_pb2 as pb

MAX_TEXT_BYTES = 1_000_000  # of answer and thinking together
MAX_TOKENS = 250_000  # where the server states no limit, or one that this much text does not reach
MAX_RESTARTS = 100  # of one answer; a well-behaved server restarts it at most once
MAX_REQUESTS_PER_PICTURE = 3  # NeedPicture messages; a well-behaved server sends at most one
MAX_ROLLOUT_BYTES = 1_000_000  # of one sample, like an answer
ROLLOUT_BYTES = 256  # that each Rollout counts as at least: what keeping an empty one takes


class ReplyLimit:
    """The limit of one question. `max_tokens` bounds its answer; 0: not stated. `samples`: what it is answered from.
    `rollouts`: they were requested.

    >>> limit = ReplyLimit(max_tokens=1, pictures=0)
    >>> for _ in range(5):
    ...     limit.count(pb.Token(text="yes"))
    Traceback (most recent call last):
    tofc.errors.ReplyError: the server did not end its answer after 1 token, the most it may have; ...
    """

    def __init__(self, *, max_tokens: int, pictures: int, samples: int = 0, rollouts: bool = False) -> None:
        self._max_tokens = min(max_tokens or MAX_TOKENS, MAX_TOKENS)
        # One token may end a text and start another (two messages), and text held back is sent at the end.
        self._messages_left = 2 * self._max_tokens + 2
        self._bytes_left = MAX_TEXT_BYTES
        self._restarts_left = MAX_RESTARTS
        self._requests_left = MAX_REQUESTS_PER_PICTURE * pictures
        self._progress_left = 2 * samples  # one when a round begins, and one for each sample
        self._samples = samples if rollouts else 0
        self._rollout_bytes_left = samples * MAX_ROLLOUT_BYTES

    def count(self, event: pb.Token | pb.Progress | pb.Rollout | pb.NeedPicture) -> None:
        """Count a message that arrived. Raises ReplyError if it exceeds the limit."""
        if isinstance(event, pb.Progress):
            self._progress_left -= 1
            if self._progress_left < 0:
                raise _endless("reported progress without end")
            return
        if isinstance(event, pb.Rollout):
            if not self._samples:
                raise _endless("sent samples that were not requested")
            if max(event.sample, event.round - 1) >= self._samples:  # each round has a sample
                raise _endless(f"sent sample {event.sample} of round {event.round}, of {self._samples} in all")
            self._rollout_bytes_left -= max(len(event.text.encode()), ROLLOUT_BYTES)
            if self._rollout_bytes_left < 0:
                raise _endless("sent more or longer samples than it may")
            return
        if isinstance(event, pb.NeedPicture):
            self._requests_left -= 1
            if self._requests_left < 0:
                raise _endless("requested the pictures of one question again and again")
            return
        self._messages_left -= 1
        self._bytes_left -= len(event.text.encode())
        self._restarts_left -= event.restart
        if self._messages_left < 0:
            tokens = f"{self._max_tokens} token{'s' * (self._max_tokens > 1)}"
            raise _endless(f"did not end its answer after {tokens}, the most it may have")
        if self._bytes_left < 0:
            raise _endless(f"did not end its answer after {MAX_TEXT_BYTES} bytes of text")
        if self._restarts_left < 0:
            raise _endless(f"restarted its answer more than {MAX_RESTARTS} times")


def _endless(what: str) -> ReplyError:
    return ReplyError(f"the server {what}; ask another server, or update the older of device and server")
