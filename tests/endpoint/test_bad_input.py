"""What is wrong with a request is said in OpenAI's form, with the path of the field."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any

import httpx2
import pytest

from tests.endpoint.conftest import WAIT_S, Begin, EndpointThread, client
from tests.endpoint.requests import CHAT, ask, data_url, example, image, text, user

HALF = "\ud83d"  # of a surrogate pair
URL = "messages[0].content[0].image_url.url"


def refused(response: httpx2.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    return error


PICTURES = {
    "no picture": (data_url(b"this is text"), "invalid_image"),
    "cut off": (data_url(b"\xff\xd8\xff\xe0"), "invalid_image"),
    "empty": ("data:image/png;base64,", "invalid_image"),
    "not base64": ("data:image/png;base64,§§§§", "invalid_image"),
    "no comma": ("data:image/png;base64", "invalid_image"),
    "not encoded": ("data:image/png,abc", "invalid_image"),
    "a file": ("file:///etc/passwd", "invalid_value"),
    "a path": ("/etc/passwd", "invalid_value"),
    "an address": ("https://example.org/cat.jpg", "url_not_allowed"),
    "credentials": ("http://example.org@127.0.0.1/x", "url_not_allowed"),
    "no address": ("http://[", "invalid_value"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_what_is_no_picture_is_named_by_its_path(http: httpx2.Client, kind: str) -> None:
    url, code = PICTURES[kind]
    error = refused(http.post(CHAT, json=ask(url=url)))
    assert (error["code"], error["param"]) == (code, URL), error


def test_a_picture_that_would_fill_the_memory_is_refused(http: httpx2.Client) -> None:
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60_000).to_bytes(4) * 2 + b"\x08\x02\x00\x00\x00"
    error = refused(http.post(CHAT, json=ask(url=data_url(header, "png"))))
    assert error["code"] == "invalid_image"


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ({"messages": [user({"type": "video_url"})]}, "messages[0].content[0].type"),
    ({"messages": [user({"type": "text", "text": None})]}, "messages[0].content[0].text"),
    ({"messages": [user(text("a"), {"type": "image_url", "image_url": 7})]}, "messages[0].content[1].image_url"),
    ({"messages": [user({"type": "image_url", "image_url": {"url": 7}})]}, "messages[0].content[0].image_url.url"),
    ({"messages": [user({"type": "image_url", "image_url": None})]}, "messages[0].content[0].image_url"),
    ({"messages": [{"role": "system", "content": [image(example())]}]}, "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "assistant", "content": "yes"}]}, "messages"),
    ({"messages": [user(text("  "))]}, "messages"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": "all"}, "top_k"),
    ({"seed": [1]}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 99}, "n"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": []}, "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 5}, "logprobs"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"timeout": 0}, "timeout"),
    ({"pacore": []}, "pacore"),
    ({"pacore": "huge"}, "pacore"),
    ({"vote": 0}, "vote"),
    ({"vote": 3, "pacore": 3}, "pacore"),
    ({"thinking_budget": -5}, "thinking_budget"),
    ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
    ({"model": 5}, "model"),
    ({"temperature": 10**400}, "temperature"),
    ({"messages": [{"role": "user", "content": HALF}]}, "messages[0].content"),
    ({"messages": [user(text("a")), {"role": "assistant", "content": HALF}, user(text("b"))]}, "messages[1].content"),
    ({"messages": [user(text(HALF))]}, "messages[0].content[0].text"),
    ({"messages": [user(image(f"http://{HALF}/"))]}, "messages[0].content[0].image_url.url"),
    ({"stop": [HALF]}, "stop"),
    ({"pacore": HALF}, "pacore"),
    ({"messages": [user({**image(example()), "uuid": "x" * 257})]}, "messages[0].content[0].uuid"),
]


@pytest.mark.parametrize("given", FIELDS, ids=lambda given: json.dumps(given[0])[:60])
def test_a_field_of_a_wrong_value_is_named(http: httpx2.Client, given: tuple[dict[str, Any], str]) -> None:
    fields, path = given
    error = refused(http.post(CHAT, content=json.dumps({**ask(), **fields})))
    assert error["param"] == path, error
    assert "--" not in error["message"]


def test_unknown_fields_are_ignored(http: httpx2.Client) -> None:
    response = http.post(CHAT, json=ask(mirostat=2, cache_prompt=True, samplers=["top_k"], user=None, metadata={}))
    assert response.status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe{}", b"5", b"null"])
def test_a_body_that_is_no_object_is_refused(http: httpx2.Client, body: bytes) -> None:
    assert refused(http.post(CHAT, content=body))["code"] in ("invalid_json", "invalid_type")


def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(http: httpx2.Client) -> None:
    error = refused(http.post(CHAT, content=b'{"messages": [' + b"[]," * 600_000 + b"[]]}"))
    assert error["code"] == "invalid_json" and "at most 1000000" in error["message"]


def test_a_compressed_body_is_refused_before_it_is_read(http: httpx2.Client) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    error = refused(http.post(CHAT, content=bomb, headers={"Content-Encoding": "gzip"}), 415)
    assert error["code"] == "content_encoding_not_taken"


def raw(endpoint: EndpointThread, head: str = "") -> socket.socket:
    """Open a connection and send a request's head."""
    host, _, port = endpoint.address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=WAIT_S)
    connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {endpoint.address}\r\n{head}\r\n".encode())
    return connection


def status(connection: socket.socket) -> int:
    """Return the status of the response."""
    return int(connection.recv(65536).split(b" ")[1])


def test_a_body_without_end_is_refused_at_its_limit(begin: Begin) -> None:
    endpoint = begin(body_mib=1)
    with raw(endpoint, "Transfer-Encoding: chunked\r\n") as connection:
        chunk = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
        try:
            for _ in range(1000):
                connection.sendall(chunk)
        except OSError:  # it stopped reading
            pass
        else:
            pytest.fail("65 MB were taken")
    with client(endpoint) as http:
        error = refused(http.post(CHAT, content=bytes(2 * 1024 * 1024)), 413)
        assert error["code"] == "body_too_large" and "1048576" in error["message"]


def test_a_body_that_stops_arriving_is_given_up(begin: Begin) -> None:
    endpoint = begin(body_timeout_s=0.2)
    with raw(endpoint, "Content-Length: 1000\r\n") as connection:
        connection.sendall(b'{"messages"')
        assert status(connection) == 408
    with client(endpoint) as http:
        assert http.get("/health").status_code in (200, 503)


def test_too_many_pictures_and_too_long_a_conversation_are_told_apart(http: httpx2.Client) -> None:
    many = refused(http.post(CHAT, json={"messages": [user(*[image(example())] * 9, text("which?"))]}))
    assert (many["code"], many["param"]) == ("too_many_images", "messages")
    broken = [image(data_url(bytes([number]))) for number in range(9)]  # they would be refused if they were opened
    assert refused(http.post(CHAT, json={"messages": [user(*broken, text("which?"))]}))["code"] == "too_many_images"
    for words in (20_000, 9_000):  # more bytes than the server takes, more tokens than the model
        long = refused(http.post(CHAT, json=ask("is " * words)))
        assert (long["code"], long["param"]) == ("context_length_exceeded", "messages")
