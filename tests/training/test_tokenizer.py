from itertools import islice

from tokenizers import Tokenizer

from training.corpus import Split, stream
from training.corpus.documents import IM_END, IM_START
from training.tokenizer import twins


def test_every_text_comes_back(tokenizer: Tokenizer) -> None:
    texts = [document.text for document in islice(stream(1, Split.HELD_OUT), 100)]
    for text in [*texts, "Grüße, 東京 \U0001f967\n\ttab", " two  spaces ", ""]:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_each_digit_is_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("12345").tokens == list("12345")


def test_markers_are_single_tokens(tokenizer: Tokenizer) -> None:
    markers = [IM_START, IM_END, "<|endoftext|>", "<tool_call>", "</tool_call>"]
    assert tokenizer.encode("".join(markers)).tokens == markers


def test_tool_markers_survive_decoding_and_turn_markers_do_not(
    tokenizer: Tokenizer,
) -> None:
    ids = tokenizer.encode(f"<tool_call>x</tool_call>{IM_END}").ids
    assert tokenizer.decode(ids) == "<tool_call>x</tool_call>"


def test_twins_differ_by_a_leading_space(tokenizer: Tokenizer) -> None:
    pairs = twins(tokenizer)
    assert len(pairs) > 50
    for bare, spaced in pairs[:50]:
        assert tokenizer.decode([spaced]) == " " + tokenizer.decode([bare])
