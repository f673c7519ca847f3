from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar import Grammar, GrammarVocabulary, compile_grammar
from pie_trio.inference.grammar.compiling import compile_lark
from pie_trio.inference.grammar.gbnf import gbnf_to_lark
from pie_trio.inference.grammar.gbnf_parser import parse_gbnf
from tests.inference.grammar.gbnf_reference import is_in_language
from tests.inference.grammar.walks import accepts, allowed_tokens, spell, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = ["".join(letters) for n in range(5) for letters in product("abc", repeat=n)]

operands = st.sampled_from(
    [
        '"a"',
        '"b"',
        '"ab"',
        '"ba"',
        '"abc"',
        '""',
        "[a-b]",
        "[^a]",
        "root",
        "x",
        "y",
        "y",
        ".",
    ]
)
operators = st.sampled_from(
    ["", "", "", "", "*", "+", "?", "{2}", "{1,2}", "{2,}", "{0,3}"]
)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 2) -> str:
    """Draw alternatives of sequences, some of them empty."""

    def item() -> str:
        is_group = depth > 0 and draw(st.integers(0, 3)) == 0
        body = f"({draw(expressions(depth - 1))})" if is_group else draw(operands)
        return body + draw(operators)

    def sequence() -> str:
        return " ".join(item() for _ in range(draw(st.integers(0, 3)))) or '""'

    return " | ".join(sequence() for _ in range(draw(st.integers(1, 3))))


def compile_gbnf(text: str, vocabulary: GrammarVocabulary) -> Grammar:
    return compile_grammar("gbnf", text, vocabulary)


@given(root=expressions(), x=expressions(), y=expressions())
@settings(max_examples=40)
@example(root='"a" "bc" | "ab" "a"', x='""', y='""')  # a lexeme must not be the longest
@example(root='x "a"', x="[a-b]*", y='""')
@example(root="x y", x='"a"* | "b"', y='"ab" x | "c"')
@example(root='"a" root "b" | x', x='"ab"? | y', y='"a"')
@example(root="x | x root", x='"ab" | "a"', y='"b"')
@example(root='x root? "c"', x='"a"+ "b"*', y='"b"')
def test_a_translated_grammar_has_the_same_language(
    byte_vocabulary: GrammarVocabulary, root: str, x: str, y: str
) -> None:
    text = f"root ::= {root}\nx ::= {x}\ny ::= {y}"
    rules = parse_gbnf(text)
    expected = {t for t in TEXTS if is_in_language(rules, t)}
    for max_steps in (400_000, 0):
        try:
            lark = gbnf_to_lark(text, max_steps=max_steps)
            grammar = compile_lark("gbnf", lark, byte_vocabulary)
        except GrammarError:
            assert not expected
            continue
        assert {t for t in TEXTS if accepts(grammar, t)} == expected, lark


# What is in the language of a file, and what is not.
SHARED = {
    "arithmetic": (
        ["a=1\n", "(a +b_2)*3 = x\n", "a \n =1\n"],
        ["a=1", "1a=2\n", "(a + b)=1\n"],
    ),
    "c": (
        ["", "int f(){}", "int g(int a){x = 1+g(2);while(a<intx){// \n}}char \tc(){}"],
        ["int f()", "main(){}", "int f(){return1;}", "int f(){x =1;}"],
    ),
    "chess": (
        ["1. e4 e5\n2. Nf3 Nc6\n", "1. O-O O-O-O\n10. exd8=Q+ Kxa1#\n"],
        ["1. e4 e5\n"],
    ),
    "english": (["Hello, world!", "a b\tc"], ["", " a", "é"]),
    "japanese": (["こんにちは", "漢字 カナ"], ["abc", "漢字  カナ"]),
    "json": (
        ['{"a":1}', '{"a": [1, -2.5e+3, true, null], "b\\u00e9\\n": {}}', "{ }"],
        ["[]", '{"a":01}', '{"a":1,}', "{'a':1}", '{"a":1'],
    ),
    "json_arr": (["[\n]", '[\n1,\n{"a": "b"}]'], ["[]", "[\n1,2]", "[\n1] "]),
    "list": (["- a\n", "- a b\n- ü\n"], ["- a", "a\n", "- \n"]),
}


@pytest.mark.parametrize("name", sorted(SHARED))
def test_the_grammars_of_llama_cpp_mean_what_they_mean_there(
    name: str, shared_directory: Path, byte_vocabulary: GrammarVocabulary
) -> None:
    path = shared_directory / "data/llama_cpp_grammars" / f"{name}.gbnf"
    text = path.read_text(encoding="utf-8")
    grammar = compile_gbnf(text, byte_vocabulary)
    rules = parse_gbnf(text)
    inside, outside = SHARED[name]
    for sample in inside + outside:
        expected = is_in_language(rules, sample)
        assert accepts(grammar, sample) == expected, sample
    assert all(accepts(grammar, sample) for sample in inside)
    assert not any(accepts(grammar, sample) for sample in outside)


def test_every_grammar_of_llama_cpp_is_tried(shared_directory: Path) -> None:
    folder = shared_directory / "data/llama_cpp_grammars"
    assert {path.stem for path in folder.glob("*.gbnf")} == set(SHARED)


@pytest.mark.parametrize("name", ["chess", "json"])
def test_a_published_vocabulary_follows_a_grammar_of_llama_cpp(
    name: str,
    shared_directory: Path,
    shared_vocabulary: Callable[[str], GrammarVocabulary],
) -> None:
    path = shared_directory / "data/llama_cpp_grammars" / f"{name}.gbnf"
    text = path.read_text(encoding="utf-8")
    grammar = compile_gbnf(text, shared_vocabulary("gpt2"))
    tokens = walk(grammar, random.Random(1), eager_after=30)
    assert tokens is not None
    output = spell(grammar.vocabulary, tokens).decode()
    assert is_in_language(parse_gbnf(text), output)


def test_a_json_grammar_is_cut_into_lexemes_and_not_into_characters(
    shared_directory: Path,
) -> None:
    path = shared_directory / "data/llama_cpp_grammars/json.gbnf"
    lark = gbnf_to_lark(path.read_text())
    rules = [line for line in lark.splitlines() if line.startswith("r_")]
    assert len(rules) == 4  # root, object, value and array; the rest is in lexemes
    assert not any("/" in rule for rule in rules)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (r'root ::= "\x41\u00e9\U0001F600\n\t\r\\\"\[\]"', ['Aé😀\n\t\r\\"[]'], ["A"]),
        ("root ::= [-+*/] [a-c-] []x]".replace("[]x]", "[x]"), ["-bx", "*-x"], ["ax"]),
        (r"root ::= [^a-z\n]+", ["A", "é 😀"], ["a", "A\n"]),
        ("root ::= .{2}", ["\n\n", "é😀"], ["a", "abc"]),
        (
            "root ::= [a]{,} | b\nb ::= [b]".replace("{,}", "{0,}"),
            ["", "aa", "b"],
            ["bb"],
        ),
        (
            'root ::= ("a" # comment\n  | "b"\n) |\n  "c" # end',
            ["a", "b", "c"],
            ["#", ""],
        ),
        ('root ::= a-b_1\r\na-b_1 ::= "x"{2,3}', ["xx", "xxx"], ["x", "xxxx"]),
        ('root ::= "a"{0} "b"*{2}', ["", "bbb"], ["a"]),
        (
            "root ::= list\nlist ::= list [,] item | item\nitem ::= [0-9]+",
            ["1", "1,22"],
            ["1,"],
        ),
    ],
)
def test_the_notation_is_that_of_the_guide(
    byte_vocabulary: GrammarVocabulary,
    text: str,
    inside: list[str],
    outside: list[str],
) -> None:
    grammar = compile_gbnf(text, byte_vocabulary)
    assert all(accepts(grammar, sample) for sample in inside)
    assert not any(accepts(grammar, sample) for sample in outside)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('x ::= "a"', "line 1, column 10: there is no rule root"),
        ("root ::= a\nb ::= c", "line 1, column 10: there is no rule a"),
        (
            'root ::= "a"\nroot ::= "b"',
            "line 2, column 1: the rule root is there already",
        ),
        ('root = "a"', "line 1, column 6: expected ::="),
        ('root ::= "a', "line 1, column 10: this string is not closed"),
        ("root ::= [a", "line 1, column 10: this class is not closed"),
        ("root ::= [b-a]", "line 1, column 11: a range ends before it begins"),
        ("root ::= []", "line 1, column 10: no character is in this class"),
        ('root ::= ("a"\n', "line 1, column 10: this parenthesis is not closed"),
        ('root ::= "a" )', "line 1, column 14: expected a symbol"),
        ("root ::= *", "line 1, column 10: there is nothing before"),
        ('root ::= "a"{2,1}', "line 1, column 13: at least 2 and at most 1"),
        ('root ::= "a"{x}', "line 1, column 13: expected {m}"),
        ('root ::= "a"{2001}', "line 1, column 13: more than 2000 repetitions"),
        (r'root ::= "\q"', r"line 1, column 11: \q is no escape"),
        (r'root ::= "\x4"', "line 1, column 11: expected 2 hexadecimal digits"),
        (r'root ::= "\uD800"', "line 1, column 11: 0xd800 is no character"),
        ("root ::= <think> .*", "line 1, column 10: tokens in angle brackets"),
        ("root ::= !<[1000]>", "line 1, column 10: tokens in angle brackets"),
        ("root ::= " + "(" * 200, "more than 100 parentheses"),
    ],
)
def test_an_error_names_its_place(
    byte_vocabulary: GrammarVocabulary, text: str, message: str
) -> None:
    with pytest.raises(GrammarError) as raised:
        compile_gbnf(text, byte_vocabulary)
    assert str(raised.value).startswith("gbnf: ")
    assert message in str(raised.value)


def test_a_way_that_never_comes_to_an_end_is_not_taken(
    byte_vocabulary: GrammarVocabulary,
) -> None:
    text = 'root ::= "x" | "a" r | "b" r? | "c" r{2} "d"\nr ::= "y" r'
    matcher = compile_gbnf(text, byte_vocabulary).matcher()
    assert allowed_tokens(matcher) == [ord("b"), ord("x")]
    assert matcher.accept([ord("b")]) == 1
    assert matcher.is_finished


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a" root',
        "root ::= r0\n"
        + "\n".join(f"r{i} ::= r{i + 1}" for i in range(900))
        + "\nr900 ::= r0",
    ],
)
def test_a_grammar_without_outputs_is_refused(
    byte_vocabulary: GrammarVocabulary, text: str
) -> None:
    with pytest.raises(GrammarError):
        compile_gbnf(text, byte_vocabulary)
