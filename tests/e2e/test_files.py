"""Unusual files of one picture, asked about by the command: each is answered as the plain file, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.e2e.conftest import MODEL, ROOT, ServerThread
from tests.model.files import chunk, saved, segment, tiff, with_chunks

SIGN = "what number is on the sign?"
EXAMPLE = (MODEL / "example.jpg").read_bytes()


def files() -> dict[str, bytes]:
    with Image.open(MODEL / "example.jpg") as opened:
        plain = opened.convert("RGB")
    grey = np.asarray(plain.convert("L")).astype(np.float32)
    png, shape = saved(plain, "PNG"), plain.size
    return {
        "plain.png": png,
        "text.png": with_chunks(png, chunk(b"zTXt", b"notes\0\0" + zlib.compress(bytes(2_000_000)))),
        "checksum.png": with_chunks(png, chunk(b"tEXt", b"a\0b", crc=7)),
        "exif.png": with_chunks(png, chunk(b"eXIf", b"no TIFF")),
        "noend.png": png[:-12],
        "noend.jpg": EXAMPLE[:-2],
        "exif.jpg": EXAMPLE[:2] + segment(0xE1, b"Exif\0\0no TIFF") + EXAMPLE[2:],
        "grey.png": saved(plain.convert("L"), "PNG"),
        "float.tif": tiff(shape, (grey / 255).tobytes(), 32, kind=3),
        "int.tif": tiff(shape, grey.astype("i4").tobytes(), 32, kind=2),
        "white.tif": tiff(shape, (65_535 - grey * 257).astype("u2").tobytes(), 16, photometric=0),
        "twelve.png": saved(Image.fromarray((grey * 4095 / 255).astype(np.uint16)), "PNG"),
        "half.jpg": EXAMPLE[: len(EXAMPLE) // 2],
        "numbers.tif": tiff(shape, (grey * 20).tobytes(), 32, kind=3),
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    }


def test_unusual_files_are_answered_as_the_plain_one_or_refused(server: ServerThread, tmp_path: Path) -> None:
    for name, data in files().items():
        (tmp_path / name).write_bytes(data)
    lines = [{"image": name, "question": SIGN} for name in files()]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["ask", "--batch", "lines.jsonl", "--out", "out.jsonl", "--server", server.address, "--model", str(MODEL)]
    script = (
        "import sys; sys.modules['pillow_heif'] = sys.modules['pi_heif'] = None\n"
        "from device_client.cli import app; app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "shared")])},
    )
    found: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert done.returncode == 4
    said = {line["image"]: line.get("answer", line.get("error")) for line in found}
    errors = {name: said.pop(name) for name in ("half.jpg", "numbers.tif", "phone.heic")}
    assert set(said.values()) == {"42"}, said
    assert "half.jpg is damaged or truncated" in errors["half.jpg"]
    assert "numbers.tif holds numbers from" in errors["numbers.tif"]
    assert "phone.heic is HEIC; install pillow-heif" in errors["phone.heic"]
    sent = [line["image"] for line in found if line.get("bytes_picture")]
    assert set(sent) <= {"plain.png", "grey.png"}, (
        "equal pixels are sent once, whatever the file"
    )  # another test may have sent them already
    assert not any(word in done.stderr for word in ("Warning", "PIL", "libtiff", "Traceback"))
