"""The tokens of one answer, whose thinking may have a budget apart.

    prompt ─ engine ─ thinking … ─┬─ </think> by itself ─ answer, at most max_tokens
                                  └─ budget used up: </think> is added, and the engine continues from there

Promises that a short limit for the answer leaves room for thinking, thinking the positions that are reserved for the
answer, and that a model which would think for ever gives an answer. A model that does not think costs nothing more.
Leaves telling thinking from the answer to `reasoning`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace

from edge_server.engine.base import Engine, Finish, Generation, Prompt
from edge_server.engine.sampling import SamplingParams
from edge_server.reasoning import ReasoningParser, ThinkTokens

Extend = Callable[[Prompt, Sequence[int]], Awaitable[Prompt]]  # a prompt, continued by token ids


class AnswerTokens:
    """Generates one answer: `start` it, iterate over its tokens, `aclose` it in any case.

    `finish` is set once all tokens were read; `first` is the generation that read the prompt. `submitted` is called for
    the answer's last generation: only that one may free a place of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: SamplingParams,
        parser: ReasoningParser,
        *,
        budget: int | None,
        reserved: int,
        think_tokens: ThinkTokens | None,
        extend: Extend,
        submitted: Callable[[Generation], None],
    ) -> None:
        """Prepare; `parser` must get each token before the next one is read.

        `budget`: tokens of thinking; None: not apart. `reserved`: the engine's positions that are kept for the answer.
        """
        self.finish: Finish | None = None
        self.first: Generation | None = None
        self._engine = engine
        self._sampling = sampling
        self._parser = parser
        self._budget = budget
        self._reserved = reserved
        self._end = None if think_tokens is None else think_tokens.end
        self._extend = extend
        self._submitted = submitted
        self._generation: Generation | None = None
        self._prompt: Prompt | None = None  # while thinking may have to be closed
        self._ids: list[int] = []  # that were not read yet when it started: </think>

    async def start(self, prompt: Prompt) -> None:
        """Submit the prompt. Raises what the engine raises."""
        most = self._sampling.max_tokens
        if self._budget is None or self._end is None:
            self._submit_last(prompt)
            return
        room = self._engine.max_positions - len(prompt.embeds) - self._reserved - 1  # 1: for </think>
        self._budget = max(min(self._budget, room), 0)
        if self._budget or not self._parser.inside:
            self._prompt = prompt
            sampling = replace(self._sampling, max_tokens=self._budget + most + 1)
            self.first = self._generation = self._engine.submit(prompt, sampling)
        else:
            self._ids = [self._end]
            self._submit_last(await self._extend(prompt, self._ids))

    async def aclose(self) -> None:
        """Stop generating; harmless when it has ended."""
        if self._generation is not None:
            await self._generation.aclose()

    async def __aiter__(self) -> AsyncGenerator[int]:
        for token in self._ids:
            yield token
        if self._prompt is not None:
            async for token in self._first_part():
                yield token
            if self.finish is not None:
                return
            if len(self._prompt.embeds) + len(self._ids) >= self._engine.max_positions:
                self.finish = Finish.LENGTH
                return
            self._submit_last(await self._extend(self._prompt, self._ids))
            self._prompt = None
        assert self._generation is not None, "it was not started"
        async for token in self._generation:
            yield token
        self.finish = self._generation.finish

    async def _first_part(self) -> AsyncGenerator[int]:
        """Yield tokens until the answer ends, or the budget: then `</think>` is the last one, and `finish` not set."""
        assert self._generation is not None and self._budget is not None and self._end is not None
        async for token in self._generation:
            self._ids.append(token)
            yield token
            if self._parser.inside and self._parser.thinking_tokens >= self._budget:
                break
            if not self._parser.inside and self._parser.answer_tokens >= self._sampling.max_tokens:
                self.finish = Finish.LENGTH
                return
        else:
            self.finish = self._generation.finish
            return
        await self._generation.aclose()
        self._ids.append(self._end)
        yield self._end

    def _submit_last(self, prompt: Prompt) -> None:
        self._generation = self._engine.submit(prompt, self._sampling)
        self.first = self.first or self._generation
        self._submitted(self._generation)
