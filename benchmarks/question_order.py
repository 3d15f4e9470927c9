"""How many questions are answered right when the question comes before its picture, and when the endpoint moves it.

    python -m benchmarks.question_order

Asks all questions of `tests/e2e/pictures` with nano, greedily, through `device-client serve` and an edge server, all
on this machine. Promises the forms that clients send. Leaves other models to whoever has them: nano has learned
from questions behind pictures only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.e2e.conftest import PICTURES, ServerThread
from tests.endpoint.conftest import EndpointThread, client
from tests.endpoint.requests import CHAT, data_url, image, text

Parts = Callable[[str, str], list[dict[str, Any]]]

FORMS: dict[str, tuple[str, Parts]] = {
    "picture, question": ("as-sent", lambda url, asked: [image(url), text(asked)]),
    "question, picture": ("as-sent", lambda url, asked: [text(asked), image(url)]),
    "question, picture; moved": ("question-last", lambda url, asked: [text(asked), image(url)]),
    "caption, picture, question": ("as-sent", lambda url, asked: [text("Image 1:"), image(url), text(asked)]),
}


def right_answers(address: str, order: str, parts: Parts, questions: list[dict[str, str]]) -> int:
    """Return how many of the questions are answered right."""
    endpoint = EndpointThread(address, order=order)
    try:
        with client(endpoint) as http:
            right = 0
            for one in questions:
                url = data_url((PICTURES / one["image"]).read_bytes())
                body = {"messages": [{"role": "user", "content": parts(url, one["question"])}], "temperature": 0}
                found = http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
                right += found == one["answer"]
            return right
    finally:
        endpoint.stop()


def main() -> None:
    """Print a line for each form."""
    questions = json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))
    server = ServerThread()
    try:
        for name, (order, parts) in FORMS.items():
            right = right_answers(server.address, order, parts, questions)
            print(f"{name}: {right} of {len(questions)}", flush=True)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
