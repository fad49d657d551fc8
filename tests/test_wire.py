"""What travels to a server: nothing changes on the way, and nothing malformed, oversized or pickled gets in."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from otca.errors import InputError
from otca.rewards import wire
from otca.rewards.base import build_reward
from otca.rewards.pixels import to_pixels
from otca.serving import make_app
from otca.types import Prompt
from tests.servers import clips, pictures, running


@pytest.fixture(scope="module")
def quality():
    """Address of a server of the embedded reward `quality`, open to this machine."""
    with running(make_app(build_reward("quality"), max_body=1_000_000)) as address:
        yield address


@pytest.mark.parametrize("media", [pictures, clips])
def test_what_is_packed_is_unpacked(media):
    media_BFCHW, prompts = media()
    pixel_BFCHW = to_pixels(media_BFCHW)
    body = wire.pack(pixel_BFCHW, prompts)
    found_BFCHW, found = wire.unpack(body)
    assert torch.equal(to_pixels(found_BFCHW), pixel_BFCHW) and found == prompts
    assert (b"PNG" in body) == (media is pictures)


def test_a_rate_travels_in_the_head_or_not_at_all():
    pixel_BFCHW, prompts = torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), [Prompt("a", "x")]
    told, untold = wire.pack(pixel_BFCHW, prompts, 23.976), wire.pack(pixel_BFCHW, prompts)
    assert wire.stated_rate(told) == 23.976 and wire.stated_rate(untold) is None and b"fps" not in untold
    assert torch.equal(wire.unpack(told)[0], wire.unpack(untold)[0])
    assert wire.stated_rate(told.replace(b"23.976", b"  null")) is None


def test_noise_needs_no_more_bytes_than_foreseen():
    noise = torch.randint(256, (2, 1, 3, 67, 131), dtype=torch.uint8)
    alone = [len(wire.pack(noise[i : i + 1], [Prompt("a", "x")])) for i in range(2)]
    assert max(alone) < wire.media_bytes(1, 67, 131) < 1.2 * min(alone)


def png(size=(8, 8), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


def png_of(width, height):
    """A PNG of a few bytes whose header speaks of so many pixels."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))
    body = b"IDAT" + zlib.compress(bytes(100))
    return start + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def npy(array, **changes):
    """An array file; ``changes`` of its header may lie about what follows."""
    buffer = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + array.tobytes()


def body(*media, head=None, kind="png", **changes):
    """A request for these media; ``changes`` go into every item, ``head`` replaces the whole head."""
    items = [{"id": "a", "text": "x", "spec": None, "kind": kind, "bytes": len(m)} | changes for m in media]
    head = json.dumps({"wire": 1, "items": items}).encode() if head is None else head
    return len(head).to_bytes(4, "big") + head + b"".join(media)


BYTES, FLOATS = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.float32)
PICKLED = io.BytesIO()
np.save(PICKLED, np.array([{"a": 1}], dtype=object), allow_pickle=True)
BAD = {
    "empty": (b"", 422, "a body of 0 bytes"),
    "head cut": (b"\0\0\1\0{}", 422, "cannot hold its length and a head of 256"),
    "head long": (b"\xff\xff\xff\xff", 413, "the limit is 16000000"),
    "not JSON": (body(head=b"{"), 422, "the head of the body: "),
    "not UTF-8": (body(head=b'{"\xff'), 422, "the head of the body: "),
    "NaN in JSON": (body(head=b'{"wire": 1, "items": [NaN]}'), 422, "item 0 is not an item"),
    "other wire": (body(head=b'{"wire": 2, "items": [1]}'), 422, "the head must be"),
    "rate 0": (body(head=b'{"wire": 1, "fps": 0, "items": [1]}'), 422, "fps is 0; it must be a positive number of frames"),
    "no items": (body(), 422, "at least one"),
    "many items": (body(*[b"x"] * 1025), 413, "1025 items"),
    "no object": (body(head=b'{"wire": 1, "items": [1]}'), 422, "item 0 is not an item"),
    "text": (body(png(), text=1), 422, "item 0 is not an item"),
    "spec": (body(png(), spec=[1]), 422, "spec an object or null"),
    "length": (body(png(), bytes=-1), 422, "bytes must be a positive integer"),
    "media missing": (body(png())[:-9], 422, "and its head speaks of"),
    "media left over": (body(png()) + b"123", 422, "and its head speaks of"),
    "kind": (body(b"x", kind="pkl"), 422, 'kind "png" or "npy"'),
    "no PNG": (body(b"x" * 80), 422, "item 0 is not an item"),
    "PNG cut": (body(png((64, 64))[:-30]), 422, "item 0"),
    "transparent": (body(png(mode="RGBA")), 422, "found mode RGBA"),
    "animated": (body(png(save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])), 422, "2 pictures"),
    "bomb": (body(png_of(9000, 9000)), 413, "9000×9000; the limits are 64000000 pixels a frame"),
    "many bombs": (body(*[png_of(8000, 8000)] * 5), 413, "item 0 of 5: 1 frames of 8000×8000"),
    "short IDAT": (body(png_of(700, 700)), 422, "item 0: the media cannot be decoded"),
    "sizes": (body(png(), png((8, 9))), 422, "media of different sizes"),
    "pickle": (body(PICKLED.getvalue(), kind="npy"), 422, "found (1,) of object"),
    "npy of planes": (body(npy(BYTES.transpose(0, 3, 1, 2).copy()), kind="npy"), 422, "found (2, 3, 8, 8)"),
    "npy in Fortran's order": (body(npy(BYTES, fortran_order=True), kind="npy"), 422, "in C order"),
    "npy that lies": (body(npy(BYTES, shape=(10**9, 8, 8, 3)), kind="npy"), 422, "are not the 384 bytes that follow"),
    "npy below 0": (body(npy(BYTES, shape=(-2, -8, 8, 3)), kind="npy"), 422, "expected (F, H, W, 3)"),
    "npy of nothing": (body(npy(BYTES[:0]), kind="npy"), 422, "expected (F, H, W, 3)"),
    "long video": (body(npy(np.zeros((5000, 1, 1, 3), np.uint8)), kind="npy"), 413, "4096 frames"),
    "NaN": (body(npy(FLOATS + np.nan), kind="npy"), 422, "found NaN, or values outside of [0, 1]"),
    "too bright": (body(npy(FLOATS + 1.01), kind="npy"), 422, "found NaN, or values outside of [0, 1]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_bodies_are_refused_in_one_line(quality, case):
    sent, status, said = BAD[case]
    answer = httpx.post(f"{quality}/score", content=sent, headers={"Content-Type": wire.CONTENT_TYPE}, trust_env=False)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert said in error and "\n" not in error


@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
@settings(max_examples=300, deadline=None)
def test_damaged_bodies_are_refused_or_read_whole(place, value, video):
    """Whatever byte changes, unpacking ends with InputError or with media in range."""
    whole = bytearray(body(npy(BYTES), kind="npy") if video else body(png(), png()))
    whole[place % len(whole)] = value
    with contextlib.suppress(InputError):
        assert wire.stated_rate(whole) is None
        media_BFCHW, prompts = wire.unpack(whole)
        assert media_BFCHW.shape[2] == 3 and len(media_BFCHW) == len(prompts)
        assert media_BFCHW.min() >= 0 and media_BFCHW.max() <= 1


def test_floats_travel_exactly_and_kinds_may_be_mixed():
    value_FHWC = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    head = [
        {"id": "a", "text": "x", "kind": kind, "bytes": size}
        for kind, size in (("npy", len(npy(value_FHWC))), ("png", len(png())))
    ]
    media_BFCHW, _ = wire.unpack(body(npy(value_FHWC), png(), head=json.dumps({"wire": 1, "items": head}).encode()))
    assert np.array_equal(media_BFCHW[0].permute(0, 2, 3, 1).numpy(), value_FHWC) and not media_BFCHW[1].any()
