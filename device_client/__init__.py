"""The device's half: turns pictures into packets, sends them to the server over one stream, receives answers.

    picture ─→ encoder ─→ picture_upload ─┐                            open, encode (one thread), send
    question ────────────→ session ───────┴─→ link ══ stream ══ server      ask, receive, ask again
                             │                 ↑
                          next_step       connection                   decide after an error; open links

Promises never to import the decoder, nor anything of the server. Leaves the cost of an answer to `report`, and the
commands to `cli`.
"""
