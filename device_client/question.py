"""A question that is not answered yet, and the state of all attempts to ask it.

Promises that whatever outlives an attempt is here, and that a question which the server would refuse is refused before
it is sent. Leaves what follows an error to `next_step`, and asking to `session`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from device_client.chat_options import ChatOptions
from device_client.conversations import Conversation
from device_client.link import Event, Link
from device_client.picture import Picture
from device_client.picture_upload import PictureUpload, UploadStats
from device_client.reasoning import Reasoning
from device_client.retry_policy import RetryPolicy
from device_client.rollouts import SampleStatus
from device_client.sampling import Sampling
from device_client.transcript import Transcript
from tofc.errors import LimitError, MismatchError, UsageError
from tofc.text import encoding_problem
from tofc.tracing import NO_SPAN, Span
from tofc.v1 import tofc_pb2 as pb

if TYPE_CHECKING:
    from device_client.mode_choice import Decision

# A longer time is not sent: the device cancels when it is over, or the server finds the link lost before that.
MAX_DEADLINE_S = 60.0
ROLES = {"user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT, "system": pb.ROLE_SYSTEM}
SEED_BITS = 14  # of a seed chosen here: two bytes on the link; every question gets another one


def check_text(question: str) -> None:
    """Raise UsageError for a question that is empty or not UTF-8."""
    if not question.strip():
        raise UsageError("the question is empty; ask something, for instance: what is in the picture?")
    if found := encoding_problem(question):
        raise UsageError(f"the question is {found}")


@dataclass(kw_only=True)
class Submission:
    """One attempt: a place among the questions in flight on a link."""

    link: Link
    request: int
    events: asyncio.Queue[Event]
    sent: bool = False


@dataclass(kw_only=True)
class PendingQuestion:
    """A question until it is answered or given up."""

    pictures: Sequence[Picture]
    text: str
    history: Conversation = ()  # the turns before it
    sampling: Sampling = field(default_factory=Sampling)
    thinking: bool = False  # whether the user wants to see it
    reasoning: Reasoning = field(default_factory=Reasoning)
    chat: ChatOptions = field(default_factory=ChatOptions)
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    attempts: int = 1
    losses: int = 0  # links lost
    fruitless_losses: int = 0  # the last losses in a row before which no upload had progressed
    refusals: int = 0  # by a server that was busy and said when to ask again
    shortages: int = 0  # those of them that lacked memory, instead of a place in a queue
    waited_s: float = 0.0  # until it was asked again
    submission: Submission | None = None
    previous_request: int = 0  # the request that this question continues; 0: all turns were sent
    sent: Sequence[Picture] = ()  # the pictures as they are sent in this attempt
    decision: Decision | None = None  # how that was chosen; None: it was not
    uploads: dict[int, tuple[Picture, PictureUpload]] = field(default_factory=dict)  # of this attempt, by ref
    seed: int = field(default_factory=lambda: random.getrandbits(SEED_BITS))

    transcript: Transcript = field(default_factory=Transcript)
    samples: SampleStatus = field(default_factory=SampleStatus)  # of this attempt
    first_token_ms: float = 0.0
    upload_stats: list[UploadStats] = field(default_factory=list)  # of all attempts
    span: Span = NO_SPAN

    @property
    def uploading(self) -> bool:
        """Return whether an upload of one of its pictures still runs."""
        return any(not (upload.complete or upload.failed) for _, upload in self.uploads.values())

    @property
    def link_ended(self) -> bool:
        """Return whether the link of this attempt has ended, so that asking again takes another one."""
        return self.submission is not None and self.submission.link.failure is not None

    @property
    def progressed(self) -> bool:
        """Return whether an upload of this attempt still runs, and the server has acknowledged a part of one."""
        return self.uploading and any(upload.acknowledged for _, upload in self.uploads.values())

    @property
    def turns(self) -> list[pb.Turn]:
        """Return the history as the protocol's turns."""
        return [pb.Turn(role=ROLES[role], text=text) for role, text in self.history]

    @property
    def conversation(self) -> Conversation:
        """Return all turns, this one included."""
        return (*self.history, ("user", self.text))

    def most_tokens(self, welcome: pb.Welcome) -> int:
        """Return the most tokens of its answer, thinking included; 0: as many as the server allows."""
        budget = self.chat.budget(welcome)
        if budget is None:
            return self.sampling.max_tokens
        return (self.sampling.max_tokens or welcome.limits.new_tokens) + budget + 1  # 1: </think>

    def check_limits(self, limits: pb.Limits) -> None:
        """Raise LimitError or MismatchError for what the server would refuse of what is sent.

        A limit of 0 is none, except that of an image's pixels: the server then takes no images.
        """
        n_bytes = sum(len(text.encode()) for _, text in self.conversation)
        views = max((picture.n_views for picture in self.sent), default=0)
        pixels, (width, height) = max(((one.form_pixels, one.form_size) for one in self.sent), default=(0, (0, 0)))
        counted = "pixels of one picture" if width * height == pixels else "pixels of one picture, padded to a square"
        if pixels and not limits.image_pixels:
            raise MismatchError(
                "this server takes no images (--mode image); start it with `edge-server serve --take-images`, or leave "
                "--mode image out",
                reason="IMAGES_NOT_TAKEN",
            )
        exceeded = "LIMIT_EXCEEDED"
        for found, allowed, what, remedy, reason in (
            (
                len(self.pictures),
                limits.pictures_per_question,
                "pictures in one question",
                "ask about fewer",
                "TOO_MANY_PICTURES",
            ),
            (views, limits.views_per_picture, "views of one picture", "scale the picture down", exceeded),
            (pixels, limits.image_pixels, counted, "lower --scale", exceeded),
            (n_bytes, limits.question_bytes, "bytes of question", "shorten it", "QUESTION_TOO_LONG"),
            (self.sampling.max_tokens, limits.new_tokens, "new tokens", "lower --max-tokens", exceeded),
        ):
            if allowed and found > allowed:
                raise LimitError(f"{found} {what}, this server allows {allowed}; {remedy}", reason=reason)
        self.reasoning.check_limits(limits)
        self.chat.check_limits(limits)

    def message(self, request: int, refs: Sequence[int], welcome: pb.Welcome, left_s: float | None) -> pb.Ask:
        """Return the message that asks the server; `left_s`: seconds left for the answer (None: no limit)."""
        # the server must know the time that samples may take, so that it can still answer
        deadline_s = left_s if left_s is not None and (self.reasoning.samples or left_s <= MAX_DEADLINE_S) else None
        message = pb.Ask(
            request=request,
            refs=refs,
            question=self.text,
            previous_request=self.previous_request,
            history=() if self.previous_request else self.turns,
            sampling=self.sampling.message(welcome, self.seed, samples=self.reasoning.samples > 0),
            deadline_ms=0 if deadline_s is None else min(max(int(deadline_s * 1e3), 1), 2**32 - 1),
            thinking=self.thinking,
            traceparent=self.span.traceparent,
            reasoning=self.reasoning.message(),
        )
        message.MergeFrom(self.chat.message(welcome))
        return message
