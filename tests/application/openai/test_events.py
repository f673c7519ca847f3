"""Events of answers: what is put together from parts that were encoded before is what JSON says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.openai.answer import EventHead, TextEvent, encode_event
from pie_trio.application.openai.chat_answer import ChatAnswer
from pie_trio.application.openai.completion_answer import CompletionAnswer
from pie_trio.application.openai.failures import OpenAIError
from pie_trio.application.openai.pieces import (
    Piece,
    PieceDecoder,
    TokenLogprob,
    Usage,
)
from pie_trio.application.openai.requests import read_chat, read_completion
from pie_trio.application.server.events import Event

if TYPE_CHECKING:
    from pie_trio.application.openai.answer import Answer

ANY_TEXT = st.one_of(st.text(), st.sampled_from(["\ud800", 'a\udc00"', "\\", ""]))
"""Halves of surrogate pairs too."""
NO_TEXTS: Any = None  # log-probabilities alone need the texts of tokens


class Letters:
    """Texts of tokens: the first is a."""

    def inside(self, token_id: int) -> bytes:
        return bytes([ord("a") + token_id])


LETTERS: Any = Letters()
PIECES = st.lists(
    st.builds(
        Piece,
        choice=st.integers(0, 1),
        text=ANY_TEXT,
        finish=st.sampled_from([None, None, None, "stop", "length"]),
    ),
    max_size=6,
)
NAMES = st.one_of(st.sampled_from(["m", '""', '"text":""', "ü\n"]), st.text())


def as_event(value: dict[str, Any]) -> bytes:
    """Return what an event is by definition."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {data}\n\n".encode("utf-8", "replace")


def told(answer: Answer, pieces: list[Piece]) -> bytes:
    return b"".join(b"".join(answer.stream(piece)) for piece in pieces)


@given(name=NAMES, texts=st.lists(ANY_TEXT, max_size=4))
def test_an_event_with_another_text_is_the_same_event(
    name: str, texts: list[str]
) -> None:
    def fields(text: str) -> dict[str, Any]:
        return {"choices": [{"text": text, "index": 0, "finish_reason": None}]}

    head = EventHead({"model": name})
    event = TextEvent(head.encode(fields("")))
    for text in texts:
        assert event.encode(text) == as_event({"model": name} | fields(text))
        assert encode_event(fields(text), "a") == b"event: a\n" + as_event(fields(text))


@given(name=NAMES, pieces=PIECES, has_usage=st.booleans())
def test_chunks_of_a_completion_are_what_json_makes_of_them(
    name: str, pieces: list[Piece], has_usage: bool
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": has_usage}}
    body = {"model": name or "m", "prompt": ["a", "b"], **options}
    answer = CompletionAnswer(read_completion(body), body, NO_TEXTS)
    head = dict(answer.document(Usage()))
    del head["choices"], head["usage"]
    expected = b""
    finished: dict[int, str] = {}
    for piece in pieces:
        if piece.finish is not None:
            finished[piece.choice] = piece.finish
        choice = {
            "text": piece.text,
            "index": piece.choice,
            "logprobs": None,
            "finish_reason": finished.get(piece.choice),
        }
        usage = {"usage": None} if has_usage else {}
        if piece.text or piece.finish:
            expected += as_event({**head, "choices": [choice], **usage})
    assert told(answer, pieces) == expected


@given(name=NAMES, pieces=PIECES, has_usage=st.booleans())
def test_chunks_of_a_chat_are_what_json_makes_of_them(
    name: str, pieces: list[Piece], has_usage: bool
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": has_usage}, "n": 2}
    user = {"role": "user", "content": "hi"}
    body = {"model": name or "m", "messages": [user], **options}
    answer = ChatAnswer(read_chat(body), body, NO_TEXTS)
    head = {**answer.document(Usage()), "object": "chat.completion.chunk"}
    del head["choices"], head["usage"]
    expected = b""
    begun = set[int]()

    def tell(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish,
        }
        usage = {"usage": None} if has_usage else {}
        return as_event({**head, "choices": [choice], **usage})

    for piece in pieces:
        if piece.choice not in begun:
            expected += tell(piece.choice, {"role": "assistant", "content": ""})
        if piece.text:
            begun.add(piece.choice)
            expected += tell(piece.choice, {"content": piece.text})
        if piece.finish is not None:
            expected += tell(piece.choice, {}, piece.finish)
    assert told(answer, pieces) == expected


@given(
    value=st.fixed_dictionaries(
        {},
        optional={
            "choice": st.one_of(st.integers(-1, 2), st.sampled_from(["1", 1.5, None])),
            "text": st.one_of(ANY_TEXT, st.integers(), st.none()),
        },
    )
)
def test_a_piece_of_text_alone_is_read_like_any_other(value: dict[str, Any]) -> None:
    def read(fields: dict[str, Any]) -> tuple[object, ...]:
        event = Event(1, "message", json.dumps(fields).encode(), 0)
        try:
            (piece,) = PieceDecoder("p", 2).decode([event])
        except OpenAIError as error:
            return (str(error).partition(": {")[0],)
        assert isinstance(piece, Piece)
        assert not any((piece.tokens, piece.call, piece.embedding))
        return piece.choice, piece.text, piece.finish

    assert read(value) == read({**value, "finish": None})


def test_the_end_of_a_choice_is_read_with_its_text() -> None:
    event = Event(1, "message", b'{"text": "a", "finish": "length"}', 0)
    assert PieceDecoder("p", 1).decode([event]) == [
        Piece(0, "a", [], None, "length", [])
    ]


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_each_chunk_of_text_has_the_log_probabilities_that_were_asked_for(
    kind: str,
) -> None:
    body: dict[str, Any] = {"model": "m", "stream": True}
    answer: Answer
    if kind == "completion":
        body |= {"prompt": "x", "logprobs": 1}
        answer = CompletionAnswer(read_completion(body), body, LETTERS)
    else:
        body |= {"messages": [{"role": "user", "content": "x"}], "logprobs": True}
        answer = ChatAnswer(read_chat(body), body, LETTERS)
    for number, letter in enumerate("abc"):
        piece = Piece(text=letter, tokens=[TokenLogprob(number, -0.5, ())])
        chunk = list(answer.stream(piece))[-1]
        (choice,) = json.loads(chunk.removeprefix(b"data: "))["choices"]
        told = choice["logprobs"]
        if kind == "completion":
            assert (told["tokens"], told["token_logprobs"]) == ([letter], [-0.5])
        else:
            (token,) = told["content"]
            assert (token["token"], token["logprob"]) == (letter, -0.5)


def test_a_field_that_there_is_not_is_named() -> None:
    event = Event(1, "message", b'{"text": "a", "texts": "b"}', 0)
    with pytest.raises(OpenAIError, match="there is no field 'texts'"):
        PieceDecoder("p", 1).decode([event])
