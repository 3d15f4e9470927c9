"""What the endpoint says about itself and its model: the lists that clients read before they ask.

Promises the fields that OpenAI's, vLLM's and llama.cpp's clients look for, and no number that is not known. Leaves the
routes to `app`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tofc.v1 import tofc_pb2 as pb
from tofc.version import software_version

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, kw_only=True)
class Described:
    """The served model. `template`: its chat template, which the edge server applies; empty if it is not here."""

    name: str
    template: str = ""
    started: int = field(default_factory=lambda: int(time.time()))

    def model(self, welcome: pb.Welcome | None) -> dict[str, Any]:
        """Return an entry of the list of models. Without `welcome`, no server has told the length of its context."""
        context = _context(welcome)
        lengths = {"max_model_len": context, "meta": {"n_ctx": context, "n_ctx_train": context}}
        return {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "tofc",
            "root": self.name,
            "aliases": [],
            "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
            **({} if context is None else lengths),
        }

    def models(self, welcome: pb.Welcome | None) -> dict[str, Any]:
        """Return the list."""
        return {"object": "list", "data": [self.model(welcome)]}

    def props(self, welcome: pb.Welcome | None, slots: int) -> dict[str, Any]:
        """Return what llama.cpp's server says at /props."""
        context = _context(welcome)
        return {
            "default_generation_settings": {} if context is None else {"n_ctx": context},
            "total_slots": slots,
            "model_alias": self.name,
            "model_path": self.name,
            "chat_template": self.template,
            "chat_template_caps": {"supports_tools": False, "supports_tool_calls": False},
            "modalities": {"vision": True, "audio": False},
            "build_info": software_version(),
        }


def _context(welcome: pb.Welcome | None) -> int | None:
    return (welcome.limits.context_tokens or None) if welcome is not None else None
