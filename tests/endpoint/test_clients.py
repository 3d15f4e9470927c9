"""Clients that people have: OpenAI's own, as it is, and what others send, as they send it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest

from tests.endpoint.conftest import WAIT_S, EndpointThread
from tests.endpoint.requests import (
    CHAT,
    NUMBER,
    ROCKET,
    SIGN,
    as_png,
    ask,
    chunks,
    example,
    frigate_chat,
    frigate_llamacpp,
    frigate_openai,
    live_vlm_webui,
    llm_vision,
    llm_vision_check,
    lmms_eval,
    picture,
    streamed,
    vlmevalkit_hello,
    vlmevalkit_lmdeploy,
    vlmevalkit_openai,
)


def sdk(endpoint: EndpointThread, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key="unused", timeout=WAIT_S, **options)


def answer(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] in ("stop", "length")
    return str(choice["message"]["content"])


def test_the_openai_client_gets_answers(endpoint: EndpointThread) -> None:
    with sdk(endpoint) as client:
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == model.id == "nano"
        done = client.chat.completions.create(**ask(url=as_png(2)))
        assert done.choices[0].message.content == NUMBER and done.choices[0].finish_reason == "stop"
        assert done.usage is not None and done.usage.completion_tokens > 0
        cost: dict[str, Any] = done.usage.model_extra["tofc"]  # type: ignore[index]
        assert cost.keys() >= {
            "picture_bytes", "bytes_up", "bytes_down", "cached", "views", "features", "first_token_ms",
        }  # fmt: skip
        assert (cost["views"], cost["features"], cost["cached"]) == (1, 36, 0) and cost["first_token_ms"] > 0
        with client.chat.completions.create(**ask(ROCKET), stream=True, stream_options={"include_usage": True}) as got:
            pieces = list(got)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == "yes"
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == "stop"
    assert pieces[-1].usage is not None and not pieces[-1].choices


async def test_the_asynchronous_openai_client_gets_answers(endpoint: EndpointThread) -> None:
    async with openai.AsyncOpenAI(base_url=endpoint.url, api_key="unused", timeout=WAIT_S) as client:
        asked = (client.chat.completions.create(**ask(question)) for question in (SIGN, ROCKET))
        found = await asyncio.gather(*asked)
        assert [one.choices[0].message.content for one in found] == [NUMBER, "yes"]
        text = ""
        async for piece in await client.chat.completions.create(**ask(), stream=True):
            text += (piece.choices[0].delta.content or "") if piece.choices else ""
        assert text == NUMBER


def test_the_openai_client_gets_typed_errors(endpoint: EndpointThread) -> None:
    with sdk(endpoint, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**ask(), logprobs=True)
        assert (refused.value.param, refused.value.code) == ("logprobs", "unsupported_parameter")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")


CLIENTS = {
    "live-vlm-webui": (live_vlm_webui(SIGN, example()), NUMBER),
    "frigate, openai": (frigate_openai(SIGN, [example()]), NUMBER),
    "frigate, openai, captions": (frigate_openai(ROCKET, [example()], ["Frame 1"]), "yes"),
    "llm vision": (llm_vision(SIGN, [example()]), NUMBER),
    "lmms-eval": (lmms_eval(SIGN, as_png(1)), NUMBER),
    "vlmevalkit, openai": (vlmevalkit_openai(ROCKET, example()), None),  # at temperature 1
    "vlmevalkit, lmdeploy": (vlmevalkit_lmdeploy(SIGN, example()), NUMBER),
    "vlmevalkit, hello": (vlmevalkit_hello(), None),
    "llm vision, set-up": (llm_vision_check(), None),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_what_a_client_sends_is_answered(http: httpx2.Client, client: str) -> None:
    body, expected = CLIENTS[client]
    found = answer(http.post(CHAT, json=body))
    if expected is not None:
        assert found == expected


def test_frigates_streams_are_answered(http: httpx2.Client) -> None:
    found = chunks(http.post(CHAT, json=frigate_llamacpp(SIGN, example())).text)
    assert streamed(found) == NUMBER
    timings = [chunk["timings"] for chunk in found if "timings" in chunk]
    assert timings and timings[-1].keys() >= {"prompt_n", "predicted_n", "predicted_ms", "predicted_per_second"}
    found = chunks(http.post(CHAT, json=frigate_chat("Hi")).text)
    assert found[-1]["usage"]["tofc"]["ignored"] == ["tools"] and found[-1]["usage"]["tofc"]["features"] == 0


def test_what_clients_probe_is_there(http: httpx2.Client) -> None:
    (model,) = http.get("/v1/models").json()["data"]
    assert model["max_model_len"] == model["meta"]["n_ctx"] == 8192
    assert model["architecture"]["input_modalities"] == ["text", "image"] and model["aliases"] == []
    props = http.get("/props").json()
    assert props["modalities"]["vision"] and props["default_generation_settings"]["n_ctx"] == 8192
    assert "<|im_start|>" in props["chat_template"] and not props["chat_template_caps"]["supports_tools"]
    assert http.get("/health").json() == {"status": "ok"}
    assert "tofc_device_picture_bytes_total" in http.get("/metrics").text


def test_a_wrong_path_says_the_right_one(http: httpx2.Client) -> None:
    for path in ("/v1", "/", "/v1/chat/completion"):
        response = http.post(path, json={})
        assert response.status_code == 404 and "/v1/chat/completions" in response.json()["error"]["message"]
    assert http.get(CHAT).status_code == 405


def test_one_token_is_one_token(http: httpx2.Client) -> None:
    response = http.post(CHAT, json=ask(max_tokens=1)).json()
    assert response["usage"]["completion_tokens"] == 1
    assert response["choices"][0]["finish_reason"] == "length"


def test_five_pictures_in_any_order_of_parts(http: httpx2.Client) -> None:
    from tests.endpoint.requests import image, text, user

    urls = [picture(number) for number in range(5)]
    body = {"messages": [user(image(urls[0]), text("one"), *map(image, urls[1:]), text(ROCKET))], "max_tokens": 8}
    usage = http.post(CHAT, json=body).json()["usage"]["tofc"]
    assert (usage["pictures"], usage["features"]) == (5, 5 * 36)


def test_a_picture_may_be_shown_in_a_later_turn(http: httpx2.Client) -> None:
    from tests.endpoint.requests import image, text, user

    turns = [user(text("hello")), {"role": "assistant", "content": "hello"}, user(image(example()), text(SIGN))]
    response = http.post(CHAT, json={"messages": turns, "max_tokens": 8})
    assert response.status_code == 200 and response.json()["usage"]["tofc"]["features"] == 36


def test_several_choices_have_seeds_of_their_own(http: httpx2.Client) -> None:
    body = ask(n=3, temperature=5.0, seed=1, max_tokens=4)
    first, again = (http.post(CHAT, json=body).json() for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2] and len(set(texts)) > 1
    assert [choice["message"]["content"] for choice in again["choices"]] == texts
    found = chunks(http.post(CHAT, json={**body, "stream": True}).text)
    assert [streamed(found, choice) for choice in range(3)] == texts


def test_an_answer_ends_before_a_stop_text(http: httpx2.Client) -> None:
    assert answer(http.post(CHAT, json=ask(stop=["2"]))) == "4"
    assert streamed(chunks(http.post(CHAT, json=ask(stop="2", stream=True)).text)) == "4"


def test_an_answer_is_found_from_samples(http: httpx2.Client) -> None:
    response = http.post(CHAT, json=ask(vote=3, seed=1)).json()
    votes = response["choices"][0]["tofc"]["votes"]
    assert (
        sum(vote["count"] for vote in votes) <= 3 and votes[0]["text"] == response["choices"][0]["message"]["content"]
    )
    assert response["usage"]["tofc"]["samples"] == 3
    response = http.post(CHAT, json=ask(pacore="low", seed=1, rollouts=True)).json()
    assert len(response["choices"][0]["tofc"]["rollouts"]) == 4
