"""The index codec's part of the second decoder, written from docs/bitstream.md alone, in plain integers."""

from __future__ import annotations

from typing import Any


class PlainIndices:
    """Decodes the indices of a view from a stream of symbols, given codec.json and the tensors as lists."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Any]) -> None:
        self.config, self.tensors = config, tensors
        rows, self.codebook = tensors["codebook"], []
        self.starts = []
        for size in config["codewords"]:
            self.starts.append(sum(map(len, self.codebook)))
            self.codebook.append(rows[self.starts[-1] : self.starts[-1] + size])

    def decode(self, stream: Any, side: int, cells: list[int], quality: int) -> list[list[int]]:
        q: dict[int, list[int]] = {cell: [] for cell in cells}
        done: dict[int, list[int]] = {}  # cell → embedding
        for wave in range(3 * side):
            here = [cell for cell in cells if 2 * (cell // side) + cell % side == wave]
            earlier = dict(done)
            for stage in range(len(self.codebook)):
                for cell in here:
                    logits = self.logits(earlier, side, cell, q[cell], stage, quality)
                    q[cell].append(stream.symbol(self.counts(logits)))
            done |= {cell: self.embedding(q[cell], quality) for cell in here}
        return [q[cell] for cell in cells]

    def embedding(self, indices: list[int], quality: int) -> list[int]:
        t = self.tensors
        sums = list(t["embed_b"][quality])
        for stage, index in enumerate(indices):
            row = [4 * number for number in self.codebook[stage][index]]
            sums = [s + dot(w, row) for s, w in zip(sums, t["embed_w"][stage], strict=True)]
        return [activation(s) for s in sums]

    def logits(
        self, done: dict[int, list[int]], side: int, cell: int, before: list[int], stage: int, quality: int
    ) -> list[int]:
        t, reach, channels = self.tensors, self.config["reach"], self.config["channels"]
        row, column = divmod(cell, side)
        a: list[int] = []
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                if 2 * dy + dx >= 0:
                    continue
                inside = 0 <= row + dy < side and 0 <= column + dx < side
                known = done.get((row + dy) * side + column + dx) if inside else None
                a += [0] * (channels + 1) if known is None else [*known, 256]
        b = [0] * (channels + 1)
        if done:
            b = [*(sum(each) // len(done) for each in zip(*done.values(), strict=True)), 256]
        place = t.get(f"place.{side}")
        own = self.embedding(before, quality) if stage else []
        h = []
        for i in range(self.config["context_hidden"]):
            total = dot(t["around_w"][i], a) + dot(t["before_w"][i], b) + t["first_b"][quality][stage][i]
            total += place[cell][i] if place else 0
            total += dot(t["own_w"][stage - 1][i], own) if stage else 0
            h.append(activation(total))
        mid = zip(t["mid_w"][stage], t["mid_b"][quality][stage], strict=True)
        h = [activation(dot(w, h) + bias) for w, bias in mid]
        out = zip(t["out_w"][stage], t["out_b"][quality][stage], strict=True)
        v = [min(max(dot(w, h) + bias >> 10, -32767), 32767) for w, bias in out]
        bias = t["code_b"][quality][self.starts[stage] :]
        shift = 14 - self.config["logit_bits"]
        return [dot(code, v) + bias[index] >> shift for index, code in enumerate(self.codebook[stage])]

    def counts(self, logits: list[int]) -> list[int]:
        table, most, size = self.tensors["exp2"], max(logits), len(logits)
        sums = [0]
        for logit in logits:
            sums.append(sums[-1] + table[min(most - logit, len(table) - 1)])
        return [x + s * (2**24 - size) // sums[-1] for x, s in enumerate(sums)]


def dot(a: list[int], b: list[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def activation(total: int) -> int:
    return min(max(total >> 10, 0), 4095)
