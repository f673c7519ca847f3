"""Chat: greetings, a little knowledge, names to remember, and polite refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.corpus import lexicon
from training.corpus.documents import Document, chat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

UNKNOWN = "I am sorry, I do not know that."
UNABLE = "I am sorry, I cannot do that."


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("/") for pair in text.split())


_CAPITALS = _pairs(
    "Norway/Oslo Italy/Rome France/Paris England/London Germany/Berlin "
    "Spain/Madrid Portugal/Lisbon Austria/Vienna Ireland/Dublin Greece/Athens "
    "Poland/Warsaw Egypt/Cairo Japan/Tokyo India/Delhi Peru/Lima Cuba/Havana "
    "Kenya/Nairobi Ghana/Accra Latvia/Riga Tunisia/Tunis"
)
_SOUNDS = _pairs(
    "cat/meow dog/woof duck/quack sheep/baa horse/neigh pony/neigh hen/cluck "
    "owl/hoot frog/croak lion/roar tiger/roar bear/growl wolf/howl mouse/squeak"
)
_OPPOSITES = _pairs(
    "hot/cold big/small fast/slow happy/sad day/night young/old up/down "
    "left/right open/closed light/dark wet/dry hard/soft long/short full/empty"
)
_SMALL_TALK: Sequence[tuple[tuple[str, ...], str]] = (
    (("Hello!", "Hi!", "Hello", "Hi", "Hey!"), "Hello! How can I help you?"),
    (("Good morning!",), "Good morning! How can I help you?"),
    (("Good evening!",), "Good evening! How can I help you?"),
    (("How are you?", "How do you do?"), "I am fine, thank you. How can I help you?"),
    (
        ("Who are you?", "What is your name?", "What are you?"),
        "I am Pie, a very small language model.",
    ),
    (
        ("What can you do?", "How can you help me?"),
        "I can tell stories, call tools, write JSON and find facts in a text.",
    ),
    (("Thank you!", "Thanks!", "Thank you", "Thanks"), "You are welcome!"),
    (("Goodbye!", "Bye!", "See you!"), "Goodbye! Have a nice day."),
)


def _small_talk(rng: Random) -> tuple[str, str]:
    questions, answer = rng.choice(_SMALL_TALK)
    return rng.choice(questions), answer


def _known(rng: Random) -> tuple[str, str]:
    country, capital = rng.choice(list(_CAPITALS.items()))
    animal, sound = rng.choice(list(_SOUNDS.items()))
    word, opposite = rng.choice(list(_OPPOSITES.items()))
    if rng.random() < 0.5:
        word, opposite = opposite, word
    index = rng.randrange(len(lexicon.DAYS))
    after = lexicon.DAYS[(index + 1) % 7]
    return rng.choice(
        (
            (
                f"What is the capital of {country}?",
                f"The capital of {country} is {capital}.",
            ),
            (f"What does the {animal} say?", f"The {animal} says {sound}."),
            (
                f"What is the opposite of {word}?",
                f"The opposite of {word} is {opposite}.",
            ),
            (
                f"Which day comes after {lexicon.DAYS[index]}?",
                f"After {lexicon.DAYS[index]} comes {after}.",
            ),
        )
    )


def _unknown(rng: Random) -> tuple[str, str]:
    name, thing = lexicon.person_name(rng), rng.choice(lexicon.OBJECTS)
    city, word = lexicon.place_name(rng), lexicon.made_up_word(rng)
    question = rng.choice(
        (
            f"How old is {name}?",
            f"Where is my {thing}?",
            f"Who built {city}?",
            f"What is the capital of {word.capitalize()}?",
            f"What does {word} mean?",
            f"What is the phone number of {name}?",
            f"Who won the game in {city}?",
            f"What will the weather be in {city}?",
            f"How much does the {thing} cost?",
            f"What is {lexicon.number(rng)} * {lexicon.number(rng)}?",
        )
    )
    return question, UNKNOWN


def _unable(rng: Random) -> tuple[str, str]:
    name, city = lexicon.person_name(rng), lexicon.place_name(rng)
    thing = rng.choice(lexicon.OBJECTS)
    question = rng.choice(
        (
            f"Call {name} for me.",
            f"Book a flight to {city}.",
            f"Buy me a {thing}.",
            f"Send a letter to {name}.",
            f"Draw a {thing}.",
            f"Play some music for {name}.",
            f"Open the door for {name}.",
        )
    )
    return question, UNABLE


def _introduction(rng: Random) -> list[tuple[str, str]]:
    """Return a chat in which something about the user is asked again later."""
    name, city = lexicon.person_name(rng), lexicon.place_name(rng)
    thing = lexicon.a(f"{rng.choice(lexicon.COLOURS)} {rng.choice(lexicon.OBJECTS)}")
    told, asked, answer = rng.choice(
        (
            (f"My name is {name}.", "What is my name?", f"Your name is {name}."),
            (f"I live in {city}.", "Where do I live?", f"You live in {city}."),
            (f"I have {thing}.", "What do I have?", f"You have {thing}."),
        )
    )
    messages = [("user", told), ("assistant", "Thank you, I will remember that.")]
    for question, reply in (_exchange(rng) for _ in range(rng.randint(0, 2))):
        messages += [("user", question), ("assistant", reply)]
    return [*messages, ("user", asked), ("assistant", answer)]


def _exchange(rng: Random) -> tuple[str, str]:
    makers = (_small_talk, _known, _unknown, _unable)
    return rng.choices(makers, (3, 3, 2, 1))[0](rng)


def generate(rng: Random) -> Document:
    """Return a chat of one to four exchanges."""
    if rng.random() < 0.35:
        messages = _introduction(rng)
        entities: tuple[str, ...] = (messages[-1][1],)
        kind = "memory"
    else:
        messages = []
        for question, answer in (_exchange(rng) for _ in range(rng.randint(1, 3))):
            messages += [("user", question), ("assistant", answer)]
        entities = ()
        kind = "exchange"
    turns = chat(*lexicon.system_messages(rng), *messages)
    return Document("talk", kind, turns, entities)


def check(document: Document) -> bool:
    """Return whether every answer is a sentence."""
    return all(
        turn.completion.removesuffix("<|im_end|>")[-1] in ".!?"
        for turn in document.turns
    )
