"""The prompt of a synthesis: the original question, and the messages of the samples as its references.

    turns ─ last user turn + messages ─ TEMPLATE ─→ turns, the last one replaced; earlier ones and pictures stay

Promises the template of the published code to the letter (`Exp.format_controller_prompt` of stepfun-ai/PaCoRe, MIT,
arXiv 2601.05593): the released models were trained on it. Leaves the order of messages to `messages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jinja2 import Template

from tofc.model.prompt import Turn

# jinja2's defaults hold, as in the published code: the last line break is dropped, those of the loop's lines stay.
TEMPLATE = """\
You are given a problem and a list of reference responses. Your job is to analyze these references and provide your \
own response.

Original Problem:
{{ original_prompt }}

Reference Responses:
{% for response in ref_responses %}
Reference {{ loop.index }}:
{{ response }}
{% endfor %}

Now, based on the original problem and reference responses above, please provide your own comprehensive solution.
"""
_TEMPLATE = Template(TEMPLATE)


def synthesis_text(question: str, messages: Sequence[str]) -> str:
    """Return the text of the user turn that asks for a synthesis. Nothing in `question` or `messages` is a template."""
    return str(_TEMPLATE.render(original_prompt=question, ref_responses=list(messages)))


def synthesis_turns(turns: Sequence[Turn], messages: Sequence[str]) -> list[Turn]:
    """Return the turns of the synthesis: `turns` with the last one's text replaced; unmodified without messages.

    Pictures of the last turn come first, because its text becomes a part of another one.
    """
    if not messages:
        return list(turns)
    last = turns[-1]
    synthesis = replace(last, text=synthesis_text(last.text, messages), pictures=(0,) * len(last.pictures))
    return [*turns[:-1], synthesis]
