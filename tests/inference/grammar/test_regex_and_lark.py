from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar import GrammarVocabulary, compile_grammar
from tests.inference.grammar.walks import accepts, spell, walk

# Here Python and Rust mean the same.
EXPRESSIONS = [
    "a*b+c?",
    "(ab|a)(bc|c)*",
    "[a-f0-9]{2,5}(-[a-f]{0,3})?",
    "(?:é|[^a-y\n]){1,4}",
    r"(\([a-z]*\)|\[[0-9][0-9]\])*",
    r'"(\\["\\nt]|[ -!#-\[\]-~])*"',
    "(a|b)*a(a|b){6}",
    "/a/(/b/)?",
    "",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
@given(data=st.data())
@settings(max_examples=15)
def test_what_matches_a_regex_is_accepted(
    byte_vocabulary: GrammarVocabulary, expression: str, data: st.DataObject
) -> None:
    compiled = re.compile(expression, re.ASCII)
    grammar = compile_grammar("regex", expression, byte_vocabulary)
    text = data.draw(st.from_regex(compiled, fullmatch=True))
    assert accepts(grammar, text)
    other = data.draw(st.text(st.sampled_from('ab-0("\n'), max_size=6))
    assert accepts(grammar, other) == (compiled.fullmatch(other) is not None)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_made_by_a_regex_matches_it(
    byte_vocabulary: GrammarVocabulary, expression: str
) -> None:
    grammar = compile_grammar("regex", expression, byte_vocabulary)
    for seed in range(10):
        tokens = walk(grammar, random.Random(seed), eager_after=15)
        assert tokens is not None
        text = spell(byte_vocabulary, tokens).decode()
        assert re.fullmatch(expression, text, re.ASCII), text


@pytest.mark.parametrize(
    "expression",
    ["(", "a{2,1}", "(?=a)", r"(a)\1", "[b-a]", "a\\", "(" * 5000 + ")" * 5000],
)
def test_a_regex_that_cannot_be_compiled_is_refused(
    byte_vocabulary: GrammarVocabulary, expression: str
) -> None:
    with pytest.raises(GrammarError, match="regex: ") as raised:
        compile_grammar("regex", expression, byte_vocabulary)
    assert len(str(raised.value)) < 600


LIST = """
start: "[" [item ("," item)*] "]"   // a list
item: NUMBER | start
NUMBER: /-?[0-9]+/
%ignore / /
"""
CALL = """start: "call(" %json {
  "type": "object",
  "properties": {"to": {"enum": ["x", "y"]}},
  "required": ["to"], "additionalProperties": false
} ")"
"""


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (LIST, ["[]", "[ 1,[-2, 33] ]"], ["[", "[1,]", "[a]"]),
        (CALL, ['call({"to": "x"})'], ['call({"to": "z"})', "call({})"]),
        ('start: "a"~2..3 "<[65]>" # <[65]>\n', ["aa<[65]>", "aaa<[65]>"], ["aA"]),
        ("start: /[<]x[>]|%json/", ["<x>", "%json"], ["x"]),
        ('start: "a"i x*\nx: "b" | "\\u00e9"', ["A", "aéb"], ["b"]),
    ],
)
def test_lark_means_what_llguidance_documents(
    byte_vocabulary: GrammarVocabulary,
    text: str,
    inside: list[str],
    outside: list[str],
) -> None:
    grammar = compile_grammar("lark", text, byte_vocabulary)
    assert all(accepts(grammar, sample) for sample in inside)
    assert not any(accepts(grammar, sample) for sample in outside)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start: <think> /.*/", "line 1, column 8: the token <think> is not supported"),
        ("start: a\na: <[257]>", "line 2, column 4: the token <[257]>"),
        ("start: <[*]>", "line 1, column 8: the token <[*]>"),
        ("start: @other", "line 1, column 8: there is no other grammar @other"),
        ('start[max_tokens=5]: "a"', "line 1, column 17: the attribute max_tokens"),
        ("start: a\na[stop=/x/]: /.*/", "line 2, column 7: the attribute stop"),
        ("start[temperature=0.5]: /a/", "column 18: the attribute temperature"),
        (
            'start: %json {"not": {}}',
            "line 1, column 8: json-schema: /not: the keyword not",
        ),
        ('start: "x" %json {"a": }', "line 1, column 18: expected JSON"),
        (
            '%llguidance {"allow_invalid_utf8": true}\nstart: /a/',
            "not allow_invalid_utf8",
        ),
        ("start: A\nA: " + " & ".join(["/a*/"] * 10), "more than 8 operators & and ~"),
        ("start: A\nA: " + "~" * 9 + "/a/", "more than 8 operators & and ~"),
        ("start: a\n\nb: /b/", "unknown name"),
        (f"{CALL}\nother: )", "line 7, column 8: "),
        ("start: /a", "lark: the end: "),
        ("", "no start"),
        ("start: (" + "(" * 3000, "too deeply nested"),
        ("\n".join(f"a{i}: /a/" for i in range(400)), "line 301"),
        ("start: /a/\n" + " " * 40_000, "expected at most 32768 characters"),
        ("start: /a\0/", "NUL"),
    ],
)
def test_lark_that_is_not_supported_is_refused(
    byte_vocabulary: GrammarVocabulary, text: str, message: str
) -> None:
    with pytest.raises(GrammarError) as raised:
        compile_grammar("lark", text, byte_vocabulary)
    assert str(raised.value).startswith("lark: ")
    assert message in str(raised.value)


def test_an_unknown_kind_is_refused(byte_vocabulary: GrammarVocabulary) -> None:
    with pytest.raises(
        GrammarError, match="json-schema, regex, lark, gbnf, got 'ebnf'"
    ):
        compile_grammar("ebnf", "", byte_vocabulary)  # type: ignore[arg-type]


HOSTILE = {
    "deep": ("lark", "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(298)) + '\nr298: "a"'),
    "doubling": ("lark", "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(298)) + '\nA298: "a"'),
    "repetition": ("lark", 'start: ((("a"{1,9999}){1,9999}){1,9999} "b"){1,9999}'),
    "words": ("regex", "|".join(f"w{i * 7919 % 99991}" for i in range(4000))),
    "backtracking": ("regex", "((a*)*)*b(.*a){30}(.*b){30}"),
    "choices": ("gbnf", "root ::= x*\nx ::= " + " | ".join(f'"w{i}" [a-z]* x? "e"' for i in range(1100))),
    "chain": ("gbnf", "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(1200)) + '\nr1200 ::= "a"'),
    "options": ("gbnf", "root ::= " + "[a-z]? " * 4000),
    "left": ("gbnf", "\n".join(f'r{i} ::= r{i + 1}? "x"? | "(" root ")"' for i in range(800)) + '\nr800 ::= "q"\nroot ::= r0 "z"'),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_grammar_takes_seconds_of_cpu_at_most(
    pie_tiny_vocabulary: GrammarVocabulary, name: str
) -> None:
    kind, text = HOSTILE[name]
    start = time.process_time()
    try:
        compile_grammar(kind, text, pie_tiny_vocabulary)  # type: ignore[arg-type]
    except GrammarError as error:
        assert str(error).startswith(f"{kind}: ")
    assert time.process_time() - start < 6
