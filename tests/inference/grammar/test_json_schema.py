from __future__ import annotations

import json
import random
import re
import warnings
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar import Grammar, GrammarVocabulary, compile_grammar
from tests.inference.grammar.schemas import schemas, validator_for, values
from tests.inference.grammar.walks import accepts, spell, walk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


def compile_schema(schema: object, vocabulary: GrammarVocabulary) -> Grammar:
    return compile_grammar("json-schema", json.dumps(schema), vocabulary)


def read_suite(folder: Path) -> list[tuple[str, Any, list[dict[str, Any]]]]:
    """Return name, schema and tests of each group of the official suite."""
    groups: list[tuple[str, Any, list[dict[str, Any]]]] = []
    for draft, url in DRAFTS.items():
        for path in sorted((folder / "tests" / draft).rglob("*.json")):
            # Since 2019-09 these are remarks; nobody enforces them by default.
            if path.name == "content.json":
                continue
            for group in json.loads(path.read_text(encoding="utf-8")):
                schema = group["schema"]
                if isinstance(schema, dict):
                    schema = {"$schema": url, **schema}
                name = f"{draft}/{path.stem}: {group['description']}"
                groups.append((name, schema, group["tests"]))
    return groups


def check_group(
    grammar: Grammar, schema: Any, tests: list[dict[str, Any]], seeds: range
) -> Iterator[str]:
    """Yield what is wrong; and "open" for each walk that did not come to an end."""
    for test in tests:
        text = json.dumps(test["data"], ensure_ascii=False)
        is_text = re.search("[\ud800-\udfff]", text) is None
        if is_text and not test["valid"] and accepts(grammar, text):
            yield f"accepts {text}: {test['description']}"
    validator = validator_for(schema)
    for seed in seeds:
        tokens = walk(grammar, random.Random(seed), eager_after=40, limit=600)
        if tokens is None:
            yield "open"
            continue
        value = json.loads(spell(grammar.vocabulary, tokens).decode())
        # Properties of characters are not in Python's regular expressions.
        if r"\p" not in json.dumps(schema).replace(r"\\", "\\"):
            errors = list(validator.iter_errors(value))
            if errors:
                yield f"makes {value!r}: {errors[0].message}"


def check_suite(
    groups: list[tuple[str, Any, list[dict[str, Any]]]],
    vocabulary: GrammarVocabulary,
    seeds: range,
) -> tuple[int, int, int]:
    """Return how many groups were followed and refused, and how many walks stayed open."""
    followed = refused = still_open = 0
    problems: list[str] = []
    for name, schema, tests in groups:
        try:
            grammar = compile_schema(schema, vocabulary)
        except GrammarError as error:
            assert str(error).startswith("json-schema: "), name
            refused += 1
            continue
        followed += 1
        found = list(check_group(grammar, schema, tests, seeds))
        still_open += found.count("open")
        problems += [f"{name}: {problem}" for problem in found if problem != "open"]
    assert not problems, "\n".join(problems)
    return followed, refused, still_open


def test_a_sample_of_the_official_suite_makes_nothing_invalid(
    shared_directory: Path, byte_vocabulary: GrammarVocabulary
) -> None:
    groups = read_suite(shared_directory / "data/json_schema_test_suite")
    sample = random.Random(5).sample(groups, 300)
    followed, refused, still_open = check_suite(sample, byte_vocabulary, range(1))
    assert followed > 120
    assert refused > 80
    assert still_open < followed / 20


@pytest.mark.slow
def test_the_official_suite_makes_nothing_invalid(
    shared_directory: Path,
    byte_vocabulary: GrammarVocabulary,
    pie_tiny_vocabulary: GrammarVocabulary,
) -> None:
    groups = read_suite(shared_directory / "data/json_schema_test_suite")
    for vocabulary in (byte_vocabulary, pie_tiny_vocabulary):
        followed, _, still_open = check_suite(groups, vocabulary, range(3))
        assert followed > 880
        assert still_open < followed / 10


@given(schema=schemas, candidates=st.lists(values, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_what_a_random_schema_lets_through_validates(
    byte_vocabulary: GrammarVocabulary,
    schema: dict[str, Any],
    candidates: list[Any],
    seed: int,
) -> None:
    try:
        grammar = compile_schema(schema, byte_vocabulary)
    except GrammarError:
        return
    validator = validator_for(schema)
    for candidate in candidates:
        if accepts(grammar, json.dumps(candidate)):
            validator.validate(candidate)
    tokens = walk(grammar, random.Random(seed), eager_after=12, limit=300)
    if tokens is not None:
        validator.validate(json.loads(spell(byte_vocabulary, tokens).decode()))


# Each of these llguidance alone lets through, and then accepts something that is invalid.
TRAPS: list[tuple[object, str]] = [
    ({"const": 2**53 + 1}, "/const"),
    ({"type": "integer", "const": 1e20}, "/const"),
    ({"enum": [{"a": [2**60]}]}, "/enum"),
    ({"minProperties": 2}, "/minProperties"),
    ({"prefixItems": [{"type": "null"}], "additionalItems": True}, "additionalItems"),
    ({"items": [{"type": "null"}]}, "prefixItems"),
    ({"$ref": "#/", "": {"type": "null"}}, "/$ref"),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a~1b": True, "a/b": False}}, "/$ref"),
    ({"x-guidance": {"lenient": True}, "type": "object", "not": {}}, "x-guidance"),
    ({"x-guidance": {"coerce_one_of": True}, "oneOf": [{}, {}]}, "x-guidance"),
    ({"type": "string", "format": "unknown"}, "/format"),
    (
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {
                    "$id": "http://x.test/a",
                    "$ref": "#/$defs/b",
                    "$defs": {"b": False},
                },
                "b": True,
            },
        },
        "$id",
    ),
    (
        {
            "$schema": DRAFTS["draft7"],
            "oneOf": [
                {"$ref": "#/definitions/any", "type": "string"},
                {"type": "integer"},
            ],
            "definitions": {"any": {}},
        },
        "/oneOf/0",
    ),
    ({"$schema": DRAFTS["draft4"], "const": 1, "type": "integer"}, "/const"),
    (
        {"$schema": "http://json-schema.org/draft-03/schema#", "disallow": "any"},
        "$schema",
    ),
    ({"properties": {"a": {"$schema": DRAFTS["draft4"]}}}, "/properties/a/$schema"),
    ({"$ref": "#/enum/0", "enum": [{"pattern": r"\s"}]}, "const or enum"),
]

NOT_SUPPORTED = [
    ({"not": {}}, "not"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": {"type": "null"}}, "contains"),
    ({"if": {"type": "null"}, "then": False}, "if"),
    ({"propertyNames": {"maxLength": 2}}, "propertyNames"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"dependentSchemas": {"a": False}}, "dependentSchemas"),
    ({"dependencies": {"a": ["b"]}}, "dependencies"),
    ({"unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"unevaluatedItems": False}, "unevaluatedItems"),
    ({"$dynamicRef": "#a"}, "$dynamicRef"),
]


@pytest.mark.parametrize(("schema", "place"), TRAPS)
def test_what_would_be_passed_over_in_silence_is_refused(
    byte_vocabulary: GrammarVocabulary, schema: object, place: str
) -> None:
    with pytest.raises(GrammarError, match=re.escape(place)):
        compile_schema(schema, byte_vocabulary)


@pytest.mark.parametrize(("schema", "keyword"), NOT_SUPPORTED)
@pytest.mark.parametrize("draft", sorted(DRAFTS))
def test_a_keyword_that_is_not_supported_is_named_with_its_place(
    byte_vocabulary: GrammarVocabulary, draft: str, schema: Any, keyword: str
) -> None:
    whole = {"$schema": DRAFTS[draft], "properties": {"a": {"anyOf": [schema]}}}
    message = f"json-schema: /properties/a/anyOf/0/{keyword}: the keyword {keyword}"
    with pytest.raises(GrammarError, match=re.escape(message)):
        compile_schema(whole, byte_vocabulary)


def test_what_is_not_reached_does_not_matter(
    byte_vocabulary: GrammarVocabulary,
) -> None:
    schema = {"type": "null", "$defs": {"a": {"not": {}}}, "examples": [{"not": {}}]}
    assert accepts(compile_schema(schema, byte_vocabulary), "null")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", '{"minimum": NaN}', '{"type": 5}', '{"properties": []}',
     '{"enum": []}', '{"maxLength": -1}', '{"maxLength": 1.5}', '{"multipleOf": 0}',
     '{"minimum": "1"}', '{"exclusiveMinimum": true}', '{"$ref": "http://x.test/"}',
     '{"$ref": "#/nowhere"}', '{"allOf": {}}', '{"type": "string", "pattern": "("}',
     "[" * 100_000, '{"items":' * 70 + "{}" + "}" * 70, "false", '{"const": "\\ud800"}'],
)  # fmt: skip
def test_what_is_no_schema_is_refused(
    byte_vocabulary: GrammarVocabulary, text: str
) -> None:
    with pytest.raises(GrammarError, match="json-schema: "):
        compile_grammar("json-schema", text, byte_vocabulary)


PATTERN_TEXTS = ["".join(t) for n in range(4) for t in product("ab-[1 \n", repeat=n)]
atoms = st.sampled_from(
    ["a", "b", "^", "$", ".", "[ab]", "[^a]", "[a[]", "[a-b1]", r"[a\-b]", r"[\d-]", "[-a]",
     "[a-]", r"\d", r"\s", r"\w", r"\S", r"\W", r"\D", r"[^\d]", r"[\W1]", r"\-", r"\[",
     "[&&a]", "[a&&b]", "[~a]", r"[\]a]", r"\x61", r"[\s1]", " "]
)  # fmt: skip


@st.composite
def patterns(draw: st.DrawFn, depth: int = 2) -> str:
    def item() -> str:
        operator = draw(
            st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,2}", "*?"])
        )
        if depth and draw(st.integers(0, 3)) == 0:
            opening = draw(st.sampled_from(["(", "(?:"]))
            return f"{opening}{draw(patterns(depth - 1))}){operator}"
        atom = draw(atoms)
        return atom if atom in "^$" else atom + operator

    def sequence() -> str:
        return "".join(item() for _ in range(draw(st.integers(0, 3))))

    return "|".join(sequence() for _ in range(draw(st.integers(1, 2))))


@given(pattern=patterns())
@settings(max_examples=60)
def test_a_pattern_means_what_it_means_elsewhere(
    byte_vocabulary: GrammarVocabulary, pattern: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Python's sets in sets
        # Python's $ also matches before a line end at the end; JavaScript's does not.
        python = re.sub(r"(?<!\\)\$(?![^\[]*\])", r"\\Z", pattern)
        expression = re.compile(python, re.ASCII)
    try:
        grammar = compile_schema(
            {"type": "string", "pattern": pattern}, byte_vocabulary
        )
    except GrammarError:
        return
    for text in PATTERN_TEXTS:
        expected = expression.search(text) is not None
        assert accepts(grammar, json.dumps(text)) == expected, text


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        ("^.$", "\r", False),
        ("^.$", "\u2028", False),
        (r"^\s$", "\ufeff", True),
        (r"^\s$", "\x85", False),
        (r"^\S$", "\x1c", True),
        (r"^\w$", "é", False),
        (r"^\W$", "é", True),
        (r"^\d$", "\u0661", False),
        (r"^\u00e9\u{1F600}$", "é😀", True),
        (r"^\p{Lu}$", "É", True),
        (r"^[\s\S]$", "\n", True),
    ],
)
def test_classes_of_characters_are_those_of_javascript(
    byte_vocabulary: GrammarVocabulary, pattern: str, text: str, is_match: bool
) -> None:
    grammar = compile_schema({"type": "string", "pattern": pattern}, byte_vocabulary)
    assert accepts(grammar, json.dumps(text, ensure_ascii=False)) == is_match


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)", "(?!a)", "(?<=a)", "(?<!a)", r"(a)\1", r"\bword", "(?i)a", "a{,3}", "[]", "[]a]",
     "[^]", r"\A", r"\z", r"\cA", r"\a", "[a", "a\\", r"\x1", r"\u12", "{", r"[\w-\d]x\q"],
)  # fmt: skip
def test_a_pattern_that_not_all_understand_is_refused(
    byte_vocabulary: GrammarVocabulary, pattern: str
) -> None:
    with pytest.raises(GrammarError, match=r"/pattern: the pattern"):
        compile_schema({"type": "string", "pattern": pattern}, byte_vocabulary)


def test_white_space_comes_to_an_end(byte_vocabulary: GrammarVocabulary) -> None:
    grammar = compile_schema({"type": "array"}, byte_vocabulary)
    assert accepts(grammar, "[" + " " * 40 + "1,\n\t2]")
    assert not accepts(grammar, "[" + " " * 41 + "1]")
    compact = {"type": "array", "x-guidance": {"whitespace_flexible": False}}
    grammar = compile_schema(compact, byte_vocabulary)
    assert accepts(grammar, "[1,2]")
    assert not accepts(grammar, "[1, 2]")


def test_a_schema_of_many_names_and_references_is_followed(
    byte_vocabulary: GrammarVocabulary,
) -> None:
    names = {f"name{i}": {"$ref": "#/$defs/node"} for i in range(900)}
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    schema = {"type": "object", "properties": names, "$defs": {"node": node}}
    grammar = compile_schema(schema, byte_vocabulary)
    assert accepts(grammar, '{"name7": {"next": {}}, "name899": {}}')


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"pattern": f"(a|b)*{c}(a|b){{9}}"} for c in "ab" * 20]},
        {"patternProperties": {f"^{i}": {} for i in range(1000)}},
        {
            "$ref": "#/$defs/0",
            "$defs": {
                str(i): {"properties": {"x": {"$ref": f"#/$defs/{i + 1}"}}}
                for i in range(1500)
            },
        },
        {"enum": ["x" * 1000] * 200},
    ],
    ids=["patterns", "names", "references", "length"],
)
def test_a_schema_that_would_hold_up_the_server_is_refused(
    byte_vocabulary: GrammarVocabulary, schema: object
) -> None:
    with pytest.raises(GrammarError, match="json-schema: "):
        compile_schema(schema, byte_vocabulary)


def test_a_long_chain_of_schemas_does_not_use_up_the_stack(
    byte_vocabulary: GrammarVocabulary,
) -> None:
    chain = {
        str(i): {
            "properties": {"x": {"$ref": f"#/$defs/{i + 1}"}},
            "$comment": "-" * 40,
        }
        for i in range(800)
    }
    schema = {"$ref": "#/$defs/0", "$defs": {**chain, "800": {"type": "null"}}}
    try:
        grammar = compile_schema(schema, byte_vocabulary)
    except GrammarError as error:
        assert "hundreds of times" in str(error)
    else:
        assert accepts(grammar, '{"x": {"x": {}}}')
