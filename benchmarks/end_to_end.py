"""The cost of a question from end to end: bytes on the socket, ms of each stage, memory of both processes.

    python -m benchmarks.end_to_end                # about a minute; writes benchmarks/results/end_to_end.json
    python -m benchmarks.end_to_end --install      # also measures the size of an installed tofc[device]

Starts the real server and the real device as processes on 127.0.0.1 and asks the test pictures' questions, then again
with TLS and a token, as between machines. Promises that every figure comes from that run.
Leaves accuracy to `tofc-lab evaluate`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.listening import listening
from benchmarks.processes import peak_mb
from device_client.encoder import EncoderThread, TowerEncoder
from device_client.report import compare
from edge_server.credentials import Credentials, write
from tofc import json_text
from tofc.model.shipped import NANO

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "tests" / "e2e" / "pictures"
SCRIPTS = Path(sysconfig.get_path("scripts"))
BASELINES = {
    "torch alone": "import torch, numpy",
    "torch and transformers alone": "import torch, transformers, numpy; from transformers import Qwen3ForCausalLM",
}


def run_measured(command: list[str]) -> float:
    """Run a command and return its peak resident memory in MB."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss * 1.024e-3


def ask(model: Path, questions: Path, out: Path, secrets: Credentials | None = None) -> tuple[float, float]:
    """Serve, ask every question, stop; return the peak MB of server and device."""
    serve = [str(SCRIPTS / "edge-server"), "serve", "--model", str(model), "--port", "0", "--log-level", "warning"]
    secure = []
    if secrets is not None:
        serve += ["--tls-cert", str(secrets.certificate), "--tls-key", str(secrets.key)]
        serve += ["--token-file", str(secrets.token)]
        secure = ["--tls-ca", str(secrets.ca), "--token-file", str(secrets.client_token)]
    with listening(serve) as (address, pid):
        if secrets is not None:  # the certificate has this name, not the IP address
            address = f"localhost:{address.rpartition(':')[2]}"
        batch = ["ask", "--batch", str(questions), "--out", str(out), "--server", address, "--model", str(model)]
        device = run_measured([str(SCRIPTS / "device-client"), *batch, *secure])
        return peak_mb(pid), device


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise answered lines: means of bytes, medians of ms."""
    names = sorted({name for row in rows for name in row["timings"]})
    return {
        "questions": len(rows),
        "bytes_picture": round(statistics.mean(row["bytes_picture"] for row in rows), 1),
        "bytes_up": round(statistics.mean(row["bytes_up"] for row in rows), 1),
        "bytes_down": round(statistics.mean(row["bytes_down"] for row in rows), 1),
        "ms": {
            name: round(statistics.median(row["timings"][name] for row in rows if name in row["timings"]), 2)
            for name in names
        },
    }


def overhead(row: dict[str, Any]) -> int:
    """Return the bytes sent that are neither packets nor the question's text."""
    return int(row["bytes_up"]) - int(row["bytes_picture"]) - len(row["question"].encode())


def bytes_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return bytes on the socket: for setting up a session, for a question about a new and about a known picture."""
    small = [row for row in rows[1:] if row["views"] == 1]
    new = [row for row in small if row["bytes_picture"]]
    down = [row["bytes_down"] for row in new]
    return {
        "session_set_up": {
            "bytes_up": overhead(rows[0]) - round(statistics.mean(map(overhead, new))),
            "bytes_down": rows[0]["bytes_down"] - round(statistics.mean(down)),
        },
        "first question about a 336 px picture": byte_means(new),
        "another question about it": byte_means([row for row in small if not row["bytes_picture"]]),
    }


def byte_means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of bytes of answered lines."""
    return {name: value for name, value in summary(rows).items() if name.startswith("bytes")}


def answered(out: Path) -> list[dict[str, Any]]:
    """Read the answers of a batch; end the program if a question failed."""
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    bad = [row for row in rows if "error" in row]
    if bad:
        raise SystemExit(f"{len(bad)} of {len(rows)} questions failed, the first with: {bad[0]['error']}")
    return rows


def installed_mb() -> float:
    """Install tofc[device] into a new environment; return its size in MB."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([str(ROOT / ".ci" / "install"), f"{folder}/venv", "device"], cwd=ROOT, check=True)
        files = (file for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink())
        return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "end_to_end.json")
    parser.add_argument("--install", action="store_true", help="also measure the size of an installed tofc[device]")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        questions, out = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        asked = json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))
        questions.write_text(
            "".join(json.dumps({**line, "image": str(PICTURES / line["image"])}) + "\n" for line in asked),
            encoding="utf-8",
        )
        server_mb, device_mb = ask(chosen.model, questions, out)
        rows = answered(out)
        ask(chosen.model, questions, Path(folder, "tls.jsonl"), write(Path(folder, "credentials"), ["localhost"]))
        over_tls = bytes_of(answered(Path(folder, "tls.jsonl")))
    small = [row for row in rows[1:] if row["views"] == 1]  # the first line carries the session's set-up
    new = [row for row in small if row["bytes_picture"]]
    encoder = EncoderThread(TowerEncoder.open(chosen.model))
    names = sorted({Path(row["image"]) for row in small})
    files = [compare([encoder.open(name)], encoder.encoder.rule) for name in names]
    right = sum(row["answer"].strip() == line["answer"] for row, line in zip(rows, asked, strict=True))
    found = {
        "command": "python -m benchmarks.end_to_end",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, loopback",
        "session_set_up": bytes_of(rows)["session_set_up"],
        "over TLS with a token": over_tls,
        "first question about a 336 px picture": summary(new),
        "another question about it": summary([row for row in small if not row["bytes_picture"]]),
        "first question about a picture of several views": summary(
            [row for row in rows if row["views"] > 1 and row["bytes_picture"]]
        ),
        "the same 336 px pictures as files": {
            "jpeg_q75": round(statistics.mean(c.jpeg_bytes for c in files)),
            "webp_q75": round(statistics.mean(c.webp_bytes for c in files)),
        },
        "right_answers": f"{right}/{len(rows)}",
        "peak_mb": {
            "server": round(server_mb),
            "device": round(device_mb),
            **{name: round(run_measured([sys.executable, "-c", code])) for name, code in BASELINES.items()},
        },
    }
    if chosen.install:
        found["installed_device_mb"] = round(installed_mb())
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    json_text.write(chosen.out, found)
    print(json_text.dumps(found, indent=1))


if __name__ == "__main__":
    main()
