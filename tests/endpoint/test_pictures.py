"""A picture is sent once: neither its bytes nor the tower's time are spent on it again."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from device_client.encoder import EncoderThread
from device_client.endpoint import pictures
from device_client.endpoint.errors import ApiError
from device_client.endpoint.messages import Media
from device_client.endpoint.pictures import KeptPictures
from device_client.fake import FakeEncoder
from device_client.picture import Encoded, ImageForm, Picture, as_file
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


def kept_pictures(open_picture: Callable[[bytes], Picture]) -> KeptPictures:
    return KeptPictures(open_picture, kept_bytes=2**30, picture_bytes=2**30)


def media(url: str, uuid: str | None = None) -> Media:
    return Media(url=url, uuid=uuid, path="")


async def test_a_picture_that_nobody_waits_for_any_more_is_not_opened() -> None:
    opened: list[bytes] = []
    go = threading.Event()
    encoder = EncoderThread(FakeEncoder())

    def open_picture(data: bytes) -> Picture:
        opened.append(data)
        assert go.wait(WAIT_S)
        return encoder.open(data)

    kept = kept_pictures(open_picture)
    first = [asyncio.create_task(kept.get(media(as_png(number)))) for number in range(2)]
    async with asyncio.timeout(WAIT_S):
        while len(opened) < 2:  # as many as are opened at one time
            await asyncio.sleep(0)
        second = [asyncio.create_task(kept.get(media(as_png(2)))) for _ in range(2)]
        while [one.waiting for one in kept._opening.values()] != [1, 1, 2]:
            await asyncio.sleep(0)
    second[0].cancel()
    await asyncio.wait({second[0]})
    assert len(kept._opening) == 3  # another one waits for it
    for task in (second[1], first[1]):
        task.cancel()
        await asyncio.wait({task})
    go.set()
    assert not (await first[0])[1]
    again, _ = await kept.get(media(as_png(1)))
    assert again.n_views and len(opened) == 3 and len(kept) == 2


async def test_names_are_bounded() -> None:
    kept = kept_pictures(EncoderThread(FakeEncoder()).open)
    await kept.get(media(example(), "first"))
    for number in range(pictures.NAMES):
        await kept.get(media(example(), str(number)))
    assert (await kept.get(Media(url=None, uuid="0", path="")))[1]
    with pytest.raises(ApiError, match="no picture with the uuid 'first' is kept"):
        await kept.get(Media(url=None, uuid="first", path=""))


async def test_the_file_that_a_picture_may_be_sent_as_counts_among_what_is_kept() -> None:
    encoder = FakeEncoder()
    kept = kept_pictures(EncoderThread(encoder).open)
    found, _ = await kept.get(media(example()))
    pixels = kept.nbytes
    found.file = as_file(found, encoder.rule, ImageForm())
    found.file.packets.append(Encoded(index=0, packet=bytes(1000)))
    assert kept.nbytes == pixels + 1000
    found.image = None  # the file still has it
    assert kept.nbytes == pixels + 1000
    found.file.image = None
    assert kept.nbytes == 1000


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
