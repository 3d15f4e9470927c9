"""`device-client serve`: an endpoint on the device that every client of OpenAI's chat completions can talk to.

    client ═ HTTP ═ app ─ body ─ request ─ pictures ─┐                       ┌─ session ═ packets ═ edge server
                     │    limits   turns    kept     └─ run, one task a choice ┘
                     └─ completion, or stream of events ←─ deltas, report ─┘

Promises that a picture which was sent before costs no time of the vision tower and no bytes on the link, and that an
answer whose client leaves is cancelled on the server. Leaves encoding, sending and repairing lost links to
`device_client.session`.
"""

from __future__ import annotations
