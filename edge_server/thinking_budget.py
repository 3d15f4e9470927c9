"""The tokens of one answer, whose thinking may have a budget apart.

    prompt ─ engine ─ thinking … ─┬─ </think> by itself ─ answer, at most max_tokens
                                  └─ budget used up: </think> is added, and the engine continues from there

Promises that a short limit for the answer leaves room for thinking, and that a model which would think for ever gives
an answer. A model that does not think costs nothing more. Leaves telling thinking from the answer to `reasoning`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace

from edge_server.engine.base import Engine, Finish, Generation, Prompt
from edge_server.engine.sampling import SamplingParams
from edge_server.reasoning import ReasoningParser, ThinkTokens

Extend = Callable[[Prompt, Sequence[int]], Awaitable[Prompt]]  # a prompt, continued by token ids


class AnswerTokens:
    """Generates one answer. `finish` is set once all tokens were read; `first` is the generation that read the prompt.

    `submitted` is called with every generation that is the answer's last: only those may free a place of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: SamplingParams,
        parser: ReasoningParser,
        *,
        budget: int | None,
        think_tokens: ThinkTokens | None,
        extend: Extend,
        submitted: Callable[[Generation], None],
    ) -> None:
        """`parser` must get each token before the next one is read. `budget`: tokens of thinking; None: not apart."""
        self.finish: Finish | None = None
        self.first: Generation | None = None
        self._engine = engine
        self._sampling = sampling
        self._parser = parser
        self._budget = budget
        self._think_tokens = think_tokens
        self._extend = extend
        self._submitted = submitted

    async def of(self, prompt: Prompt) -> AsyncGenerator[int]:
        """Yield the tokens. Raises what the engine raises."""
        most = self._sampling.max_tokens
        if self._budget is None or self._think_tokens is None:
            last = self._last(prompt)
            del prompt  # its rows take memory
            async for token in last:
                yield token
            return
        room = self._engine.max_positions - len(prompt.embeds) - most - 1  # 1: for </think>
        budget = max(min(self._budget, room), 0)
        ids: list[int] = []
        if budget or not self._parser.inside:
            generation = self._engine.submit(prompt, replace(self._sampling, max_tokens=budget + most + 1))
            self.first = generation
            try:
                async for token in generation:
                    ids.append(token)
                    yield token
                    if self._parser.inside and self._parser.thinking_tokens >= budget:
                        break
                    if not self._parser.inside and self._parser.answer_tokens >= most:
                        self.finish = Finish.LENGTH
                        return
                else:
                    self.finish = generation.finish
                    return
            finally:
                await generation.aclose()
        ids.append(self._think_tokens.end)
        yield ids[-1]
        if len(prompt.embeds) + len(ids) >= self._engine.max_positions:
            self.finish = Finish.LENGTH
            return
        last = self._last(await self._extend(prompt, ids))
        del prompt
        async for token in last:
            yield token

    async def _last(self, prompt: Prompt) -> AsyncGenerator[int]:
        generation = self._engine.submit(prompt, self._sampling)
        self.first = self.first or generation
        del prompt
        self._submitted(generation)
        try:
            async for token in generation:
                yield token
        finally:
            await generation.aclose()
        self.finish = generation.finish
