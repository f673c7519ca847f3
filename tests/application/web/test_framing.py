"""What is refused before h11 sees it, whatever the pieces in which it comes."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.application.web.problems import RefusedError
from pie_trio.application.web.shell import ShellConfig
from pie_trio.application.web.shell.framing import Framing, Phase

CONFIG = ShellConfig(max_head_bytes=1024, max_headers=8, max_body_bytes=100)
HOST = b"Host: x\r\n"


def head(*lines: bytes, first: bytes = b"POST / HTTP/1.1", host: bytes = HOST) -> bytes:
    return first + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def chunked(*chunks: bytes) -> bytes:
    return head(b"Transfer-Encoding: chunked") + b"".join(chunks)


GOOD = [
    head(first=b"GET / HTTP/1.1"),
    head(first=b"GET / HTTP/1.0", host=b""),
    head(b"Content-Length: 5") + b"hello",
    head(b"content-length:0"),
    head(b"X: \xe9\t a", b"Y:"),
    head(b"Expect: 100-Continue", b"Content-Length: 1") + b"x",
    head(first=b"GET http://x/a?b HTTP/1.1"),
    head(first=b"OPTIONS * HTTP/1.1"),
    head(b"Upgrade: h2c", b"Connection: Upgrade", first=b"GET / HTTP/1.1"),
    chunked(b"0\r\n\r\n"),
    chunked(b"5\r\nhello\r\n", b"0a;x=y\r\n0123456789\r\n", b"0\r\n\r\n"),
    b"\r\n" + head(first=b"GET / HTTP/1.1"),
]

HOSTILE = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "binary": (b"\x00\x01", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/3.0": (head(first=b"GET / HTTP/3.0"), 505),
    "two spaces": (head(first=b"GET  / HTTP/1.1"), 400),
    "lower case": (head(first=b"get / HTTP/1.1"), 400),
    "target without slash": (head(first=b"GET x HTTP/1.1"), 400),
    "target not ASCII": (head(first=b"GET /\xe9 HTTP/1.1"), 400),
    "CONNECT": (head(first=b"CONNECT x:1 HTTP/1.1"), 501),
    "bare LF": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "one bare LF": (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "bare CR": (head(b"A: b\rC: d"), 400),
    "obs-fold": (head(b"A: b", b" c"), 400),
    "folded at once": (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    "space before colon": (head(b"Content-Length : 5"), 400),
    "no colon": (head(b"A"), 400),
    "NUL": (head(b"A: \x00"), 400),
    "control character": (head(b"A: \x07"), 400),
    "no host": (head(host=b""), 400),
    "two hosts": (head(b"Host: y"), 400),
    "host with a path": (head(host=b"Host: x/y\r\n"), 400),
    "host with a user": (head(host=b"Host: a@x\r\n"), 400),
    "CL and TE": (head(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
    "two CL": (head(b"Content-Length: 5", b"Content-Length: 5"), 400),
    "CL list": (head(b"Content-Length: 5, 5"), 400),
    "CL signed": (head(b"Content-Length: +5"), 400),
    "CL hex": (head(b"Content-Length: 0x5"), 400),
    "CL empty": (head(b"Content-Length:"), 400),
    "CL huge": (head(b"Content-Length: " + b"9" * 30), 400),
    "CL over the limit": (head(b"Content-Length: 101"), 413),
    "TE twice": (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"), 400),
    "TE gzip": (head(b"Transfer-Encoding: gzip, chunked"), 501),
    "TE obscured": (head(b"Transfer-Encoding: xchunked"), 501),
    "TE with a tab": (head(b"Transfer-Encoding:\x0bchunked"), 400),
    "TE in 1.0": (head(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"), 400),
    "expectation": (head(b"Expect: miracles"), 417),
    "many headers": (head(*[b"A: b"] * 8), 431),
    "large header": (head(b"A: " + b"b" * 1024), 431),
    "large head that does not end": (b"GET / HTTP/1.1\r\nA: " + b"b" * 1100, 431),
    "chunk without size": (chunked(b"\r\n"), 400),
    "chunk size signed": (chunked(b"+5\r\nhello\r\n"), 400),
    "chunk size with 0x": (chunked(b"0x5\r\nhello\r\n"), 400),
    "chunk size with space": (chunked(b"5 \r\nhello\r\n"), 400),
    "chunk size huge": (chunked(b"f" * 16 + b"\r\n"), 400),
    "chunk size negative": (chunked(b"-1\r\n"), 400),
    "chunk with bare LF": (chunked(b"5\nhello\r\n"), 400),
    "chunk extension with LF": (chunked(b"5;a\nb\r\nhello\r\n"), 400),
    "chunk extension endless": (chunked(b"5;" + b"a" * 300), 400),
    "chunk longer than it said": (chunked(b"5\r\nhello!\r\n"), 400),
    "chunk without its end": (chunked(b"5\r\nhello5\r\n"), 400),
    "end of chunks by bare LF": (chunked(b"0\r\n\n"), 400),
    "trailers": (chunked(b"0\r\nA: b\r\n\r\n"), 400),
    "trailers with a request": (chunked(b"0\r\nX: y\n\nGET /b HTTP/1.1\r\n\r\n"), 400),
    "chunks over the limit": (chunked(b"40\r\n" + b"x" * 64 + b"\r\n25\r\n"), 413),
    "one chunk over the limit": (chunked(b"65\r\n"), 413),
}


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def run(framing: Framing, pieces: list[bytes]) -> list[bytes]:
    """Return the requests that pass, one string each."""
    passed = [b""]
    for piece in pieces:
        framing.feed(piece)
        while True:
            while taken := framing.take():
                passed[-1] += taken
            if framing.phase is not Phase.COMPLETE:
                break
            framing.begin_next()
            passed.append(b"")
    return passed[:-1] if not passed[-1] else passed


@pytest.mark.parametrize("data", GOOD)
@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_a_request_in_order_passes_as_it_came(data: bytes, cuts: list[int]) -> None:
    assert run(Framing(CONFIG), pieces_of(data, cuts)) == [data.removeprefix(b"\r\n")]


@pytest.mark.parametrize("name", HOSTILE)
@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 1500), max_size=4))
def test_what_is_ambiguous_or_too_large_is_refused(name: str, cuts: list[int]) -> None:
    data, status = HOSTILE[name]
    with pytest.raises(RefusedError) as caught:
        run(Framing(CONFIG), pieces_of(data, cuts))
    assert caught.value.status == status


@given(
    requests=st.lists(st.sampled_from(GOOD), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
)
def test_requests_in_one_stream_are_told_apart(
    requests: list[bytes], cuts: list[int]
) -> None:
    expected = [request.removeprefix(b"\r\n") for request in requests]
    assert run(Framing(CONFIG), pieces_of(b"".join(requests), cuts)) == expected


async def test_the_next_request_is_held_until_this_one_is_answered() -> None:
    framing = Framing(CONFIG)
    framing.feed(GOOD[0] + GOOD[2])
    assert framing.take() == GOOD[0]
    assert framing.take() == b""
    assert framing.is_held
    assert framing.num_held == len(GOOD[2])
    framing.begin_next()
    assert framing.take() + framing.take() == GOOD[2]


TOKENS = st.sampled_from(
    [
        *(b"5\r\nhello\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"1;a=b\r\nx\r\n"),
        *(b"5\r\nhell", b"\r\n", b"\n", b"0\r\n", b"\r", b"a", b"5 \r\n", b"X: y\r\n"),
    ]
)


@given(parts=st.lists(TOKENS, max_size=8), cuts=st.lists(st.integers(0, 500)))
def test_what_passes_means_the_same_to_h11(parts: list[bytes], cuts: list[int]) -> None:
    data = chunked(*parts)
    framing, http = Framing(CONFIG), h11.Connection(h11.SERVER)
    passed = b""
    try:
        for piece in pieces_of(data, cuts):
            framing.feed(piece)
            while taken := framing.take():
                passed += taken
    except RefusedError:
        pass
    http.receive_data(passed)
    events = list[type[h11.Event]]()
    while isinstance(event := http.next_event(), h11.Event):
        events.append(type(event))
    assert events[0] is h11.Request
    assert (h11.EndOfMessage in events) == (framing.phase is Phase.COMPLETE)
    assert http.trailing_data[0] == b""


def test_a_trickled_head_is_not_searched_again_from_its_beginning() -> None:
    framing = Framing(CONFIG)
    for byte in GOOD[4]:
        framing.feed(bytes([byte]))
        if taken := framing.take():
            assert taken == GOOD[4]
    assert framing.phase is Phase.COMPLETE
