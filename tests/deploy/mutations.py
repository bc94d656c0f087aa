"""Files that are nearly LiteRT files, or others: drawn from a seed, to see who survives them."""

import gzip
import io
import random
import struct
import zipfile

EXTREMES = (0, 1, 2, 3, 127, 128, 255, 256, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 4)


def structure(data, least=64):
    """Ranges of a LiteRT file outside its large blocks of values: tables, offsets, names, shapes.

    Args:
        data: bytes.
        least: bytes of a block that counts as large.

    Returns:
        List of `(start, stop)`.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data)
    blocks = []
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        if buffer.DataLength() >= least:
            start = buffer._tab.Vector(buffer._tab.Offset(4))
            blocks.append((start, start + buffer.DataLength()))
    ranges, at = [], 0
    for start, stop in sorted(blocks):
        ranges.append((at, start))
        at = max(at, stop)
    return [(start, stop) for start, stop in [*ranges, (at, len(data))] if start < stop]


class Source:
    """One good file and where its structure lies."""

    def __init__(self, name, data):
        self.name, self.data = name, data
        self.ranges = structure(data)
        self.weights = [stop - start for start, stop in self.ranges]

    def place(self, rng):
        """A byte's place, mostly in the structure, as weights are most of a file."""
        if rng.random() < 0.8:
            start, stop = rng.choices(self.ranges, self.weights)[0]
            return rng.randrange(start, stop)
        return rng.randrange(len(self.data))


def truncated(source, rng, others):
    return source.data[: rng.randrange(len(source.data))]


def flipped(source, rng, others):
    data = bytearray(source.data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16, 64))):
        data[source.place(rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwritten(source, rng, others):
    """Aligned numbers become others, most of them extreme."""
    data = bytearray(source.data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        form, size = rng.choice((("<I", 4), ("<I", 4), ("<H", 2), ("<B", 1)))
        at = source.place(rng) // size * size
        value = rng.choice(EXTREMES) if rng.random() < 0.7 else rng.getrandbits(32)
        if at + size <= len(data):
            struct.pack_into(form, data, at, value % 256**size)
    return bytes(data)


def nudged(source, rng, others):
    """A small number becomes a little larger or smaller: an index, a shape, an option."""
    data = bytearray(source.data)
    for _ in range(rng.choice((1, 1, 2))):
        at = source.place(rng) // 4 * 4
        if at + 4 <= len(data):
            (value,) = struct.unpack_from("<i", data, at)
            value = max(-(2**31), min(2**31 - 1, value + rng.choice((-4, -2, -1, 1, 2, 4))))
            struct.pack_into("<i", data, at, value)
    return bytes(data)


def spliced(source, rng, others):
    """A piece of this or another file is put over this one, or between its bytes."""
    data, piece = source.data, rng.choice(others).data
    length = min(rng.choice((4, 16, 64, 256, 4096)), len(piece))
    start = rng.randrange(len(piece) - length + 1)
    at = source.place(rng)
    left = at if rng.random() < 0.3 else at + length
    return data[:at] + piece[start : start + length] + data[left:]


def blanked(source, rng, others):
    data = bytearray(source.data)
    at, length = source.place(rng), rng.choice((1, 4, 16, 64, 512, 8192))
    stop = min(at + length, len(data))
    data[at:stop] = rng.choice((b"\x00", b"\xff")) * (stop - at)
    return bytes(data)


def shifted(source, rng, others):
    """Bytes are missing or too many in the middle, as after a copy in text mode."""
    at, count = source.place(rng), rng.choice((1, 2, 4, 8))
    if rng.random() < 0.3:
        return source.data.replace(b"\n", b"\r\n")
    if rng.random() < 0.5:
        return source.data[:at] + source.data[at + count :]
    return source.data[:at] + rng.randbytes(count) + source.data[at:]


def foreign(source, rng, others):
    """Other formats, some with the mark of a LiteRT file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("config.json", "{}")
    kinds = [
        *(
            b"",
            b"\n",
            b"TFL3",
            b"\0\0\0\0TFL3",
            b"\x1c\0\0\0TFL3",
            b"{}",
            b"\x08\x07\x12\x07pytorch",
        ),
        *(b"<!DOCTYPE html><html>404</html>", b"\x89PNG\r\n\x1a\n" + rng.randbytes(200)),
        *(b"\x89HDF\r\n\x1a\n" + rng.randbytes(200), archive.getvalue(), source.data[8:]),
        *(gzip.compress(source.data[:4096]), source.data[::-1], b"PK\3\4" + source.data),
        *(b"\x1c\0\0\0TFL3" + rng.randbytes(rng.choice((4, 60, 4096))), source.data.hex().encode()),
        *(b"\xff" * 8, bytes(4) + b"TFL3" + bytes(4096), b"\x08\0\0\0TFL3" + bytes(4096)),
        source.data[:8] + rng.randbytes(len(source.data) - 8),
    ]
    return rng.choice(kinds)


MUTATIONS = (truncated, flipped, overwritten, nudged, spliced, blanked, shifted, foreign)


def draw(seed, sources):
    """One broken file.

    Args:
        seed: of all that is random.
        sources: list of `Source`.

    Returns:
        `(mutation's name, source's name, bytes)`.
    """
    rng = random.Random(seed)
    source = rng.choice(sources)
    mutation = rng.choices(MUTATIONS, weights=(1, 2, 3, 3, 2, 2, 1, 0.5))[0]
    return mutation.__name__, source.name, mutation(source, rng, sources)
