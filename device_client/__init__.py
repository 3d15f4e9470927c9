"""The device's half: pictures become packets, packets go up one stream, answers come back.

Data flow: ``picture`` (open, identify) → ``encoder`` (views, tower, codec, in one thread) → ``delivery``
(a picture over a link) → ``link`` (one connection) → ``session`` (questions, resume) → ``report``.
Never imports the decoder, nor anything of the server.
"""
