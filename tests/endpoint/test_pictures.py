"""A picture is sent once: neither its bytes nor the tower's time are spent on it again."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx2
import numpy as np
import openai
from PIL import Image

from tests.endpoint.conftest import WAIT_S, Begin, client
from tests.endpoint.requests import (
    CHAT,
    NUMBER,
    ROCKET,
    SIGN,
    as_png,
    ask,
    data_url,
    example,
    image,
    picture,
    text,
    user,
)


def cost(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["usage"]["tofc"]
    return found


def test_twenty_turns_send_one_picture_once(begin: Begin) -> None:
    endpoint = begin()
    turns = [user(image(as_png(3)), text(SIGN))]
    costs = []
    with client(endpoint) as http:
        for turn in range(20):
            response = http.post(CHAT, json={"messages": turns, "max_tokens": 4})
            costs.append(cost(response))
            said = response.json()["choices"][0]["message"]["content"] or "yes"
            turns += [{"role": "assistant", "content": said}, user(text(f"{ROCKET} {turn}"))]
        metrics = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line[0] != "#")
    assert costs[0]["picture_bytes"] > 0 and [one["picture_bytes"] for one in costs[1:]] == [0] * 19
    assert [one["cached"] for one in costs] == [0, *[1] * 19]
    assert [one["tower_ms"] for one in costs[1:]] == [0] * 19 and len(endpoint.towers) == 1
    if costs[0]["bytes_up"] is not None:  # turns that the server has are not sent again either
        assert costs[-1]["bytes_up"] < costs[0]["bytes_up"]
    assert float(metrics["tofc_device_picture_bytes_total"]) == costs[0]["picture_bytes"]
    assert float(metrics["tofc_device_cached_total"]) == 19


def test_a_picture_may_be_named_instead_of_sent(http: httpx2.Client) -> None:
    named = {**image(picture(5)), "uuid": "kitchen-1"}
    first = http.post(CHAT, json={"messages": [user(named, text(ROCKET))]})
    null = {"type": "image_url", "image_url": None, "uuid": "kitchen-1"}
    again = http.post(CHAT, json={"messages": [user(null, text(ROCKET))]})
    assert cost(again)["picture_bytes"] == 0 and cost(again)["cached"] == 1
    assert again.json()["choices"][0]["message"] == first.json()["choices"][0]["message"]
    unknown = http.post(CHAT, json={"messages": [user({**null, "uuid": "kitchen-2"}, text(ROCKET))]})
    assert unknown.status_code == 400
    error = unknown.json()["error"]
    assert (error["code"], error["param"]) == ("picture_unknown", "messages[0].content[0].image_url")


def test_a_name_stands_for_the_picture_that_came_with_it_last(http: httpx2.Client) -> None:
    for url in (picture(0), example()):
        http.post(CHAT, json={"messages": [user({**image(url), "uuid": "camera"}, text(SIGN))]})
    null = {"type": "image_url", "image_url": None, "uuid": "camera"}
    response = http.post(CHAT, json={"messages": [user(null, text(SIGN))]})
    assert response.json()["choices"][0]["message"]["content"] == NUMBER


def test_a_png_of_20_mb_is_taken(http: httpx2.Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2600, 2600, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    assert len(buffer.getvalue()) > 20_000_000
    url = data_url(buffer.getvalue(), "png")
    first, again = (cost(http.post(CHAT, json=ask(url=url, max_tokens=4))) for _ in range(2))
    assert first["views"] > 1 and first["picture_bytes"] > 0
    assert (again["picture_bytes"], again["tower_ms"]) == (0, 0)


async def test_32_requests_at_one_time_are_answered(begin: Begin) -> None:
    endpoint, url = begin(), as_png(4)
    async with openai.AsyncOpenAI(base_url=endpoint.url, api_key="unused", timeout=WAIT_S, max_retries=0) as made:
        asked = [ask(SIGN if number % 2 else ROCKET, url, stream=False) for number in range(32)]
        found = await asyncio.gather(*(made.chat.completions.create(**body) for body in asked))
    assert [one.choices[0].message.content for one in found] == ["yes", NUMBER] * 16
    assert len(endpoint.towers) == 1  # opened and encoded once, though all came together


def test_what_is_kept_is_bounded(begin: Begin) -> None:
    endpoint = begin(keep_mib=0)
    with client(endpoint) as http:
        named = {**image(as_png(5)), "uuid": "a"}
        assert cost(http.post(CHAT, json={"messages": [user(named, text(SIGN))]}))["cached"] == 0
        null = {"type": "image_url", "image_url": None, "uuid": "a"}
        assert http.post(CHAT, json={"messages": [user(null, text(SIGN))]}).status_code == 400
        again = cost(http.post(CHAT, json=ask(url=as_png(5))))
        assert (again["cached"], again["picture_bytes"]) == (0, 0)  # the server has it all the same


def test_the_same_pixels_in_another_file_are_not_sent_again(http: httpx2.Client) -> None:
    with Image.open(io.BytesIO(base64.b64decode(picture(6).partition(",")[2]))) as opened:
        pixels = opened.convert("RGB")
    urls = []
    for level in (1, 9):
        buffer = io.BytesIO()
        pixels.save(buffer, "PNG", compress_level=level)
        urls.append(data_url(buffer.getvalue(), "png"))
    first, again = (cost(http.post(CHAT, json=ask(url=url))) for url in urls)
    assert first["picture_bytes"] > 0 and again["picture_bytes"] == 0 and again["cached"] == 0
