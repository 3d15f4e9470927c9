"""Who may use the endpoint, and from where it may fetch pictures."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from device_client.endpoint.options import EndpointOptions
from edge_server import credentials
from edge_server.credentials import Credentials
from tests.endpoint.conftest import WAIT_S, Begin, EndpointThread, client
from tests.endpoint.requests import CHAT, NUMBER, SIGN, ask, example, image, text, user
from tofc.errors import SecurityError, UsageError

KEY = "kitchen-0123456789abcdef"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    made.touch(mode=0o600)
    made.write_text(f"{KEY} kitchen\n")
    return made


def code(response: httpx2.Response) -> str:
    return str(response.json()["error"]["code"])


def test_a_key_is_asked_for_where_there_is_one(begin: Begin, key_file: Path) -> None:
    with client(begin(api_key_file=key_file)) as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            response = http.get("/v1/models", headers=headers)
            assert response.status_code == 401 and code(response) == "invalid_api_key"
            assert response.headers["connection"] == "close"
        assert http.post(CHAT, json=ask()).status_code == 401 and http.get("/metrics").status_code == 401
        assert http.get("/health").status_code in (200, 503)  # a probe has no key
        assert http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_names_of_pictures_belong_to_a_key(begin: Begin, key_file: Path) -> None:
    other = "garden-0123456789abcdef"
    key_file.write_text(f"{KEY} kitchen\n{other} garden\n")
    null = {"type": "image_url", "image_url": None, "uuid": "camera"}
    with client(begin(api_key_file=key_file)) as http:

        def post(key: str, part: dict[str, Any]) -> httpx2.Response:
            body = {"messages": [user(part, text(SIGN))]}
            return http.post(CHAT, json=body, headers={"Authorization": f"Bearer {key}"})

        assert post(KEY, {**image(example()), "uuid": "camera"}).status_code == 200
        assert code(post(other, null)) == "picture_unknown"
        assert post(KEY, null).json()["choices"][0]["message"]["content"] == NUMBER


def test_pages_of_other_origins_may_not_use_it(http: httpx2.Client, endpoint: EndpointThread) -> None:
    response = http.post(CHAT, json=ask(), headers={"Origin": "https://evil.example"})
    assert response.status_code == 403 and code(response) == "origin_not_allowed"
    broken = http.get("/v1/models", headers={"Origin": "http://["})
    assert broken.status_code == 403 and code(broken) == "origin_not_allowed"
    same = f"http://{endpoint.address}"
    assert http.get("/v1/models", headers={"Origin": same}).status_code == 200


def test_pages_of_an_allowed_origin_may_use_it(begin: Begin) -> None:
    page = "https://camera.example"
    with client(begin(allow_origin=[page])) as http:
        asking = {"Origin": page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
        allowed = http.options(CHAT, headers=asking)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == page
        assert http.get("/v1/models", headers={"Origin": page}).headers["access-control-allow-origin"] == page
        other = http.options(CHAT, headers={**asking, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        assert http.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403


def test_a_name_that_points_at_this_machine_is_not_one_of_its_names(http: httpx2.Client) -> None:
    response = http.get("/v1/models", headers={"Host": "evil.example:8080"})
    assert response.status_code == 403 and code(response) == "host_not_allowed"
    for host in ("localhost:1", "127.0.0.1", "[::1]:8080"):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_it_speaks_tls(begin: Begin, tmp_path: Path, key_file: Path) -> None:
    credentials.write(tmp_path / "c", ["localhost"])
    files = Credentials.below(tmp_path / "c")
    made = begin(host="0.0.0.0", endpoint_cert=files.certificate, endpoint_key=files.key, api_key_file=key_file)
    assert made.url.startswith("https://")
    port = made.url.split(":")[2].removesuffix("/v1")
    import ssl

    trusted = ssl.create_default_context(cafile=str(files.authority))
    with httpx2.Client(verify=trusted, trust_env=False, timeout=WAIT_S) as http:
        url, headers = f"https://localhost:{port}{CHAT}", {"Authorization": f"Bearer {KEY}"}
        response = http.post(url, json=ask(), headers=headers)
    assert response.json()["choices"][0]["message"]["content"] == NUMBER


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"host": "0.0.0.0"}, SecurityError, "needs --endpoint-cert, --endpoint-key and --api-key-file"),
        ({"endpoint_cert": Path("a.pem")}, SecurityError, "belong together"),
        ({"port": 70000}, UsageError, "--port must be 0"),
        ({"order": "random"}, UsageError, "--order must be one of question-last, as-sent"),
        ({"allow_origin": ["example.org"]}, UsageError, "--allow-origin must be like https://example.org"),
        ({"allow_domain": ["https://example.org"]}, UsageError, "--allow-domain must be a name such as example.org"),
        ({"requests": 0}, UsageError, "--requests must be at least 1, got 0"),
        ({"timeout_s": -1.0}, UsageError, "--timeout must be 0"),
        ({"body_timeout_s": 0.0}, UsageError, "--body-timeout must be more than 0"),
        ({"thinking_budget": -1}, UsageError, "--thinking-budget must be at least 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        EndpointOptions(**options)


class Pictures(http.server.BaseHTTPRequestHandler):
    """A web server: the example at /sign.jpg, and an address that leads elsewhere."""

    asked: list[str]

    begun: threading.Semaphore
    go: threading.Event  # for /slow…

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/slow"):
            self.begun.release()
            self.go.wait(WAIT_S)
        data = base64.b64decode(example().partition(",")[2])
        self.send_response(
            {"/sign.jpg": 200, "/slow1": 200, "/slow2": 200, "/moved": 302, "/packed": 200}.get(self.path, 404)
        )
        self.send_header("Location", "/sign.jpg")
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(data if self.path in ("/sign.jpg", "/slow1", "/slow2") else b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass


Web = tuple[str, type[Pictures]]


@pytest.fixture
def web() -> Iterator[Web]:
    """Yield the web server's address, and what it knows: for instance the paths that were asked for."""
    handler = type("Handler", (Pictures,), {"asked": [], "begun": threading.Semaphore(0), "go": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_address[1]}", handler  # type: ignore[misc]
        server.shutdown()
        thread.join()


def test_pictures_come_from_allowed_domains_only(begin: Begin, http: httpx2.Client, web: Web) -> None:
    url, asked = web[0], web[1].asked
    refused = http.post(CHAT, json=ask(url=f"{url}/sign.jpg"))
    assert refused.status_code == 400 and code(refused) == "url_not_allowed" and asked == []
    with client(begin(allow_domain=["localhost"])) as allowed:
        found = allowed.post(CHAT, json=ask(url=f"{url}/sign.jpg"))
        assert found.json()["choices"][0]["message"]["content"] == NUMBER
        for path, status in (("/moved", 302), ("/none", 404)):
            response = allowed.post(CHAT, json=ask(url=f"{url}{path}"))
            assert response.status_code == 400 and f"answered {status}" in response.json()["error"]["message"]
        assert asked == ["/sign.jpg", "/moved", "/none"]
        other = url.replace("localhost", "127.0.0.1")
        assert code(allowed.post(CHAT, json=ask(url=f"{other}/sign.jpg"))) == "url_not_allowed"
        assert code(allowed.post(CHAT, json=ask(url="file://localhost/etc/passwd"))) == "invalid_value"
        assert code(allowed.post(CHAT, json=ask(url="http://localhost:0x1/"))) == "invalid_value"
        for host, path in ((url, "/\0"), ("http://" + "a" * 64 + ".localhost", "/")):
            response = allowed.post(CHAT, json=ask(url=f"{host}{path}"))
            assert code(response) == "invalid_value" and "could not be fetched" in response.json()["error"]["message"]


def test_a_picture_that_would_have_to_be_unpacked_is_refused(begin: Begin, web: Web) -> None:
    url, asked = web[0], web[1].asked
    with client(begin(allow_domain=["localhost"])) as allowed:
        response = allowed.post(CHAT, json=ask(url=f"{url}/packed"))
        assert code(response) == "invalid_value" and "is sent as 'gzip'" in response.json()["error"]["message"]
    assert asked == ["/packed"]


def test_slow_addresses_do_not_hold_up_other_pictures(begin: Begin, web: Web) -> None:
    url, server = web
    with client(begin(allow_domain=["localhost"])) as http:
        found: list[int] = []

        def slow(name: str) -> None:
            found.append(http.post(CHAT, json=ask(url=f"{url}/{name}", max_tokens=1)).status_code)

        waiting = [threading.Thread(target=slow, args=(name,)) for name in ("slow1", "slow2")]
        for one in waiting:
            one.start()
        for _ in waiting:
            assert server.begun.acquire(timeout=WAIT_S)
        assert http.post(CHAT, json=ask(max_tokens=1)).status_code == 200
        server.go.set()
        for one in waiting:
            one.join(WAIT_S)
    assert found == [200, 200]
