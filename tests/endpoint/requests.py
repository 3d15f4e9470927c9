"""What clients send, field by field as they send it (their own files, late 2026), and pictures to send."""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from typing import Any

from PIL import Image

from tests.e2e.conftest import MODEL, PICTURES

CHAT = "/v1/chat/completions"
SIGN = "what number is on the sign?"
NUMBER = "42"  # of the example
ROCKET = "is there a rocket?"


def data_url(data: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@cache
def example() -> str:
    return data_url((MODEL / "example.jpg").read_bytes())


@cache
def picture(number: int) -> str:
    return data_url((PICTURES / f"picture-{number:02d}.jpg").read_bytes())


@cache
def as_png(number: int) -> str:
    """Return the example as PNG, with one pixel of another colour for each number: servers do not know it yet."""
    with Image.open(MODEL / "example.jpg") as opened:
        pixels = opened.convert("RGB")
    pixels.putpixel((0, 0), (number, 0, 0))
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return data_url(buffer.getvalue(), "png")


def image(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def ask(question: str = SIGN, url: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return a plain request about one picture."""
    return {"model": "nano", "messages": [user(image(url or example()), text(question))], **fields}


def live_vlm_webui(question: str, url: str) -> dict[str, Any]:
    return {
        "model": "nano",
        "messages": [user(text(question), image(url))],
        "max_tokens": 512,
        "temperature": 0.7,
    }


def frigate_openai(question: str, urls: list[str], captions: list[str] | None = None) -> dict[str, Any]:
    """A review: text first, then each picture with its caption, and a schema for the answer."""
    parts = [text(question)]
    for number, url in enumerate(urls):
        parts += [text(captions[number])] if captions else []
        parts.append(image(url, detail="low"))
    schema = {"name": "review", "strict": True, "schema": {"type": "object", "properties": {}}}
    return {
        "model": "nano",
        "messages": [user(*parts)],
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def frigate_chat(question: str) -> dict[str, Any]:
    """Its chat: streamed, with tools."""
    tool = {"type": "function", "function": {"name": "search_objects", "parameters": {"type": "object"}}}
    return {
        "model": "nano",
        "messages": [{"role": "system", "content": "You watch cameras."}, {"role": "user", "content": question}],
        "tools": [tool],
        "tool_choice": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def frigate_llamacpp(question: str, url: str) -> dict[str, Any]:
    return {
        "model": "nano",
        "messages": [user(text(question), image(url))],
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def llm_vision_check() -> dict[str, Any]:
    """Home Assistant's LLM Vision, when it is set up."""
    return {"model": "nano", "messages": [user(text("Hi"))], "max_completion_tokens": 1}


def llm_vision(question: str, urls: list[str]) -> dict[str, Any]:
    parts = []
    for number, url in enumerate(urls, 1):
        parts += [text(f"Image {number}:"), image(url, detail="low")]
    return {
        "model": "nano",
        "messages": [{"role": "system", "content": [text("Be brief.")]}, user(*parts, text(question))],
        "max_completion_tokens": 100,
        "temperature": 0.2,
    }


def vlmevalkit_hello() -> dict[str, Any]:
    return {
        "model": "nano",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0,
        "max_tokens": 2048,
    }


def vlmevalkit_openai(question: str, url: str) -> dict[str, Any]:
    """With the preset of Step3-VL-10B: an upper bound of tokens that few servers allow."""
    return {
        "model": "Step3-VL-10B",
        "messages": [{"role": "system", "content": "Answer."}, user(image(url, detail="low"), text(question))],
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 20,
        "max_tokens": 40960,
        "seed": 7,
    }


def vlmevalkit_lmdeploy(question: str, url: str) -> dict[str, Any]:
    return {
        "model": "nano",
        "messages": [user(text(question), image(url))],
        "max_tokens": 1024,
        "n": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 20,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.5,
    }


def lmms_eval(question: str, url: str) -> dict[str, Any]:
    return {
        "model": "nano",
        "messages": [user(image(url), text(question))],
        "max_tokens": 16,
        "temperature": 0,
        "chat_template_kwargs": None,
        "media_io_kwargs": {"video": {"num_frames": 8}},
    }


def chunks(body: str) -> list[dict[str, Any]]:
    """Return the objects of a stream, which must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in body.split("\n") if line]
    assert lines.pop() == "[DONE]", body[-200:]
    return [json.loads(line) for line in lines]


def streamed(found: list[dict[str, Any]], choice: int = 0) -> str:
    """Return the text of a choice in a stream."""
    deltas = [one["delta"] for chunk in found for one in chunk["choices"] if one["index"] == choice]
    return "".join(delta.get("content") or "" for delta in deltas)
