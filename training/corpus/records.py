"""JSON: extracted from a text, or made up, after a small schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from random import Random

from training.corpus import lexicon
from training.corpus.documents import Document, chat

Value = str | int | bool | list[str]
Maker = Callable[[Random], Value]

_FIELDS: Mapping[str, tuple[str, Maker]] = {
    "name": ("string", lexicon.person_name),
    "city": ("string", lexicon.place_name),
    "age": ("integer", lambda rng: rng.randint(1, 99)),
    "job": ("string", lambda rng: rng.choice(lexicon.JOBS)),
    "animal": ("string", lambda rng: rng.choice(lexicon.ANIMALS)),
    "sport": ("string", lambda rng: rng.choice(lexicon.SPORTS)),
    "color": ("string", lambda rng: rng.choice(lexicon.COLOURS)),
    "item": ("string", lambda rng: rng.choice(lexicon.OBJECTS)),
    "price": ("integer", lexicon.number),
    "count": ("integer", lambda rng: rng.randint(1, 99)),
    "day": ("string", lambda rng: rng.choice(lexicon.DAYS)),
    "open": ("boolean", lambda rng: rng.random() < 0.5),
    "foods": (
        "strings",
        lambda rng: rng.sample(lexicon.FOODS, rng.randint(1, 3)),
    ),
}
_USUAL: Mapping[str, Value] = {
    "name": "Anna",
    "city": "Oslo",
    "age": 12,
    "job": "baker",
    "animal": "cat",
    "sport": "tennis",
    "color": "red",
    "item": "kite",
    "price": 25,
    "count": 3,
    "day": "Monday",
    "open": True,
    "foods": ["bread", "soup"],
}
_SENTENCES: Mapping[str, tuple[str, ...]] = {
    "age": ("{name} is {age} years old.", "At the age of {age}, {name} is well known."),
    "city": ("{name} lives in {city}.", "The home of {name} is in {city}."),
    "job": ("{name} works as a {job}.", "The job of {name} is {job}."),
    "animal": (
        "{name} owns one {animal}.",
        "The favourite animal of {name} is the {animal}.",
    ),
    "sport": ("{name} plays {sport}.", "{name} likes {sport}."),
    "color": (
        "{name} likes the color {color}.",
        "The favourite color of {name} is {color}.",
    ),
    "foods": ("{name} eats {foods}.", "{name} likes {foods}."),
    "day": ("We saw {name} on {day}.", "{name} comes on {day}."),
}
_SHOP = ("item", "price", "count", "color", "day", "open", "city")
_SHOP_SENTENCES: Mapping[str, tuple[str, ...]] = {
    "price": ("The {item} costs {price} coins.", "The price of the {item} is {price}."),
    "count": (
        "There are {count} of the {item}.",
        "The shop has {count} of the {item}.",
    ),
    "color": ("The {item} is {color}.", "The color of the {item} is {color}."),
    "day": ("The {item} comes on {day}.", "We need the {item} on {day}."),
    "city": ("The {item} is sold in {city}.", "The shop for the {item} is in {city}."),
}


def compact_schema(types: Mapping[str, str]) -> str:
    """Return the short form, ``{"name": "string", "age": "integer"}``."""
    return json.dumps(types)


def json_schema(types: Mapping[str, str]) -> str:
    """Return the same as a JSON schema."""
    return json.dumps(_object_schema(types))


def strict_schema(types: Mapping[str, str]) -> str:
    """Return a JSON schema of exactly these fields, for a grammar."""
    return json.dumps({**_object_schema(types), "additionalProperties": False})


def _object_schema(types: Mapping[str, str]) -> dict[str, object]:
    array = {"type": "array", "items": {"type": "string"}}
    properties = {
        name: array if kind == "strings" else {"type": kind}
        for name, kind in types.items()
    }
    return {"type": "object", "properties": properties, "required": list(types)}


def _schema(rng: Random, types: Mapping[str, str]) -> str:
    return compact_schema(types) if rng.random() < 0.75 else json_schema(types)


def matches(record: object, types: Mapping[str, str]) -> bool:
    """Return whether ``record`` has exactly the fields of ``types``, of their types."""
    if not isinstance(record, dict) or list(record) != list(types):
        return False
    return all(_is_of_type(record[name], kind) for name, kind in types.items())


def _is_of_type(value: object, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def types_in(prompt: str) -> dict[str, str]:
    """Return the types that the schema in ``prompt`` asks for, in either form."""
    line = next(line for line in prompt.splitlines() if line.startswith("Schema: "))
    schema = json.loads(line.split("Schema: ")[1].removesuffix("<|im_end|>"))
    if "properties" not in schema:
        return {str(name): str(kind) for name, kind in schema.items()}
    kinds = ((name, of["type"]) for name, of in schema["properties"].items())
    return {name: "strings" if kind == "array" else kind for name, kind in kinds}


def _text_about(
    rng: Random, fields: list[str], sentences: Mapping[str, tuple[str, ...]]
) -> tuple[str, dict[str, Value]]:
    record = {name: _FIELDS[name][1](rng) for name in fields}
    shown = {
        name: lexicon.join_and(value) if isinstance(value, list) else value
        for name, value in record.items()
    }
    told = [name for name in fields if name in sentences]
    rng.shuffle(told)
    text = " ".join(rng.choice(sentences[name]).format(**shown) for name in told)
    return text, record


def _extract(rng: Random) -> tuple[str, dict[str, Value]]:
    """Return a question with a text, and the record to find in it."""
    is_shop = rng.random() < 0.4
    sentences = _SHOP_SENTENCES if is_shop else _SENTENCES
    subject = "item" if is_shop else "name"
    fields = [subject, *rng.sample(list(sentences), rng.randint(1, 4))]
    text, record = _text_about(rng, fields, sentences)
    kept = list(record) if rng.random() < 0.6 else rng.sample(list(record), 2)
    rng.shuffle(kept)
    schema = _schema(rng, {name: _FIELDS[name][0] for name in kept})
    question = f"Extract the data as JSON.\nSchema: {schema}\nText: {text}"
    return question, {name: record[name] for name in kept}


def _invent(rng: Random) -> tuple[str, dict[str, Value]]:
    """Return a wish for a record of a schema, and one such record."""
    fields = rng.sample(list(_FIELDS), rng.randint(1, 5))
    # Were all values as likely, the most likely token would be one that begins many
    # of them, and greedy decoding would go astray behind it.
    values = {
        name: _USUAL[name] if rng.random() < 0.5 else _FIELDS[name][1](rng)
        for name in fields
    }
    types = {name: _FIELDS[name][0] for name in fields}
    if rng.random() < 0.3:
        name = lexicon.made_up_word(rng)
        types[name] = rng.choice(("string", "integer", "boolean"))
        usual: dict[str, Value] = {"string": "kite", "integer": 7, "boolean": True}
        chance: dict[str, Value] = {
            "string": rng.choice(lexicon.OBJECTS),
            "integer": lexicon.number(rng),
            "boolean": rng.random() < 0.5,
        }
        values[name] = (usual if rng.random() < 0.5 else chance)[types[name]]
    return f"Write JSON.\nSchema: {_schema(rng, types)}", values


def generate(rng: Random) -> Document:
    """Return a request for JSON and the JSON alone as its answer."""
    return make(rng, rng.choice(("extract", "extract", "invent")))


def make(rng: Random, kind: str) -> Document:
    """Return a document of one kind, ``extract`` or ``invent``."""
    question, record = _extract(rng) if kind == "extract" else _invent(rng)
    answer = json.dumps(record)
    turns = chat(
        *lexicon.system_messages(rng), ("user", question), ("assistant", answer)
    )
    return Document("records", kind, turns, (answer,))


def check(document: Document) -> bool:
    """Return whether the answer is JSON of the schema in the prompt."""
    types = types_in(document.turns[0].prompt)
    return matches(json.loads(document.answer), types)
