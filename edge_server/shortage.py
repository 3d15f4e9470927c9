"""What the server says when its memory is short: of the question that needed it, while the session lives.

Promises a line in the log for each time. Leaves who hears of it to whoever wanted the memory.
"""

import logging

from shared.out_of_memory import out_of_memory
from shared.rpc.errors import LimitError, TofcError

log = logging.getLogger(__name__)


def shortage(error: BaseException, what: str, reason: str = "NO_MEMORY") -> LimitError | None:
    """What to tell of an error, None unless it means that there is no room for `what`; logs it."""
    if isinstance(error, LimitError):
        told = error
    elif out_of_memory(error) and not isinstance(error, TofcError):
        told = LimitError(
            f"the server has not enough memory for {what} at the moment; ask again later, or send less", reason=reason
        )
    else:
        return None
    log.warning("no memory for %s: %s", what, str(error) or type(error).__name__)
    return told
