"""`device-client bench` and `--mode auto`: the shipped model, a real server with TLS, and the relay between them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from device_client import bench
from device_client.bench import AUTO, EQUAL, FEATURES, PLAIN
from edge_server.credentials import Credentials, write
from edge_server.settings import IMAGE_BYTES, IMAGE_PIXELS, SessionLimits
from tests.client.test_cli import command
from tests.e2e.conftest import MODEL, ServerThread

QUESTION = "what number is on the sign?"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Credentials for a name that is not the relay's address."""
    return write(tmp_path_factory.mktemp("credentials"), ["localhost"])


@pytest.fixture(scope="module")
def taking(secrets: Credentials) -> Iterator[ServerThread]:
    """A server with TLS that takes images."""
    made = ServerThread(
        limits=SessionLimits(image_bytes=IMAGE_BYTES, image_pixels=IMAGE_PIXELS),
        tls_cert=secrets.certificate,
        tls_key=secrets.key,
        token_file=secrets.token,
    )
    yield made
    made.stop()


def credentials(server: ServerThread, secrets: Credentials) -> list[object]:
    port = server.address.rpartition(":")[2]
    return ["--server", f"localhost:{port}", "--tls-ca", secrets.ca, "--token-file", secrets.client_token]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round before those that count."""
    monkeypatch.setattr(bench, "WARM_UP", 1)


def test_every_way_is_measured_over_every_link(taking: ServerThread, secrets: Credentials) -> None:
    words = ["bench", "--link", "100KB/s,10ms", "--link", "8KB/s,10ms", "--rounds", "1", "--json"]
    done = command(*words, *credentials(taking, secrets))
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    quick, slow = (json.loads(line) for line in done.stdout.splitlines())
    assert [quick["link"], slow["link"], quick["views"]] == ["100KB/s,10ms", "8KB/s,10ms", 1]
    for found in (quick, slow):
        ways = found["ways"]
        assert list(ways) == [FEATURES, EQUAL, PLAIN, AUTO]
        assert all(way["answers"] == {"42": 1} for way in ways.values())
        assert all(0 < way["first_token_ms"] <= way["total_ms"] for way in ways.values())
        assert ways[FEATURES]["bytes_picture"] < 40 < ways[EQUAL]["bytes_picture"] < ways[PLAIN]["bytes_picture"]
        if ways[PLAIN]["bytes_up"] is not None:
            assert all(way["bytes_up"] > way["bytes_picture"] for way in ways.values())
    for name in (EQUAL, PLAIN):
        way = slow["ways"][name]
        assert way["first_token_ms"] > 1000 * way["bytes_picture"] / 8000, "the link carries no more"
    assert sum(slow["ways"][AUTO]["chosen"].values()) == 1 and slow["ways"][AUTO]["why"]
    assert slow["auto_over_better"] > 0 and slow["energy"]


def test_a_person_gets_a_table(taking: ServerThread, secrets: Credentials) -> None:
    done = command("bench", "--rounds", "1", *credentials(taking, secrets))
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    title, header, *rows = done.stdout.splitlines()
    assert title == "the real link"
    assert header.split("  ")[-1].strip() == "joules" and "first token" in header
    assert [row.split("  ")[0] for row in rows[:4]] == [FEATURES, EQUAL, PLAIN, AUTO]
    assert rows[4].startswith("auto: ") and rows[5].startswith("joules: ")


def test_a_server_without_images_is_measured_with_features_alone(server: ServerThread) -> None:
    done = command("bench", "--server", server.address, "--rounds", "1", "--json")
    assert done.exit_code == 0, done.output
    assert (
        done.stderr == "the server takes no image files, so only features are measured; start it with --take-images\n"
    )
    (found,) = map(json.loads, done.stdout.splitlines())
    assert list(found["ways"]) == [FEATURES, AUTO] and found["link"] is None
    assert found["ways"][AUTO]["why"] == "the server takes no image files (edge-server serve --take-images)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--link", "5g"], "'5g' in '5g' is no rate"),
        (["--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (["--server", "a:1", "--server", "b:1"], "bench measures one server, got 2; give --server once"),
        (["missing.png"], "missing.png does not exist"),
        (["-q", " "], "the question is empty"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], said: str) -> None:
    done = command("bench", *words)
    assert done.exit_code == 2 and done.stdout == "" and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_server_that_is_not_there_is_named_as_it_was_given() -> None:
    done = command("bench", "--server", "127.0.0.1:1", "--link", "25KB/s")
    assert done.exit_code == 3 and "127.0.0.1:1" in done.stderr


def test_auto_asks_from_the_command_line_and_says_why(taking: ServerThread, secrets: Credentials) -> None:
    words = ["ask", MODEL / "example.jpg", QUESTION, "--mode", "auto", "--json"]
    done = command(*words, *credentials(taking, secrets))
    found = json.loads(done.stdout)
    assert (found["answer"], found["mode"], found["auto"]["why"]) == ("42", "features", "nothing is measured yet")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--feature-codec", "context"], "--feature-codec context does not go with --mode auto"),
        (["--quality", "0"], "quality must be 1 (smallest) to 100 (best), got 0"),
    ],
)
def test_what_does_not_go_with_auto_is_refused(words: list[str], said: str) -> None:
    done = command("ask", MODEL / "example.jpg", QUESTION, "--mode", "auto", *words, "--server", "127.0.0.1:1")
    assert done.exit_code == 2 and said in done.stderr
