"""The words of the corpus, and open-ended ones made of syllables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random


def _words(text: str) -> list[str]:
    return text.split()


GIRLS = _words(
    "Anna Mila Lily Emma Nora Ruby Clara Ella Maya Zoe Ivy Rosa Tess Lena Alma Kate "
    "Jane Sara Nina Vera Dora Hanna Iris Olga Freya Wren Heidi Paula Greta Molly"
)
BOYS = _words(
    "Ben Tom Max Leo Sam Finn Jack Oscar Hugo Noah Paul Theo Adam Carl Emil Felix "
    "Ivan Jonas Karl Luke Marco Nils Otto Peter Ralf Simon Tim Victor Will Rico"
)
NAMES = tuple(sorted(GIRLS + BOYS))
CITIES = tuple(
    _words(
        "Oslo Rome Paris London Berlin Madrid Lisbon Vienna Prague Dublin Athens "
        "Warsaw Cairo Tokyo Delhi Lima Quito Boston Denver Dallas Seoul Hanoi Manila "
        "Nairobi Accra Tunis Riga Bern Milan Porto Leeds Turin Lyon Nice Ghent Malmo "
        "Bergen Tampa Miami Austin Havana Bogota Perth Sydney Osaka Kyoto Mumbai Dakar"
    )
)
ANIMALS = _words(
    "cat dog fox owl bear frog duck hen goat sheep horse pony mouse rabbit "
    "hedgehog squirrel turtle penguin tiger lion monkey parrot whale dolphin seal "
    "beaver otter badger deer wolf"
)
COLOURS = _words(
    "red blue green yellow white black brown pink purple orange silver golden"
)
OBJECTS = _words(
    "kite ball hat box book lamp drum boat key cup coat bell ring map rope shoe "
    "flag coin pen chair clock basket blanket bottle button candle ladder mirror "
    "pillow spoon stone ribbon whistle bucket scarf"
)
PLACES = _words(
    "garden forest park river lake farm school market beach castle village kitchen "
    "library mountain valley meadow barn harbour tower museum bakery island bridge "
    "cave field"
)
FOODS = _words(
    "bread cake soup rice apple pear plum cheese honey pasta salad pie jam "
    "banana carrot cookie berry melon noodle pancake"
)
JOBS = _words(
    "baker teacher doctor farmer sailor painter singer driver pilot nurse cook "
    "gardener writer builder dancer fisher"
)
SPORTS = _words("football tennis golf hockey chess rowing running cycling skiing judo")
FEELINGS = _words("happy sad angry tired proud scared calm excited")
MONTHS = _words(
    "January February March April May June July August September October November "
    "December"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

_ONSETS = _words("b d f g h k l m n p r s t v z br dr gr kl pl st tr sh th")
_VOWELS = _words("a e i o u")
_CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "x")


def all_words() -> tuple[str, ...]:
    """Return every word that a document may have to copy into quotes."""
    groups: tuple[Iterable[str], ...] = (
        NAMES,
        CITIES,
        ANIMALS,
        COLOURS,
        OBJECTS,
        PLACES,
        FOODS,
        JOBS,
        SPORTS,
        FEELINGS,
        MONTHS,
        DAYS,
    )
    return tuple(word for group in groups for word in group)


def pronouns(name: str) -> tuple[str, str, str]:
    """Return subject, object and possessive of ``name``."""
    return ("she", "her", "her") if name in GIRLS else ("he", "him", "his")


def made_up_word(rng: Random) -> str:
    """Return a pronounceable word of two or three syllables that means nothing."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((2, 2, 3)))
    )


def place_name(rng: Random) -> str:
    """Return a city, now and then one that does not exist."""
    if rng.random() < 0.3:
        return made_up_word(rng).capitalize()
    return rng.choice(CITIES)


def person_name(rng: Random) -> str:
    """Return a first name, now and then one that nobody bears."""
    if rng.random() < 0.3:
        return made_up_word(rng).capitalize()
    return rng.choice(NAMES)


def key_name(rng: Random) -> str:
    """Return a key such as ``kelmo``, ``red_kite`` or ``bel42``."""
    form = rng.random()
    if form < 0.5:
        return made_up_word(rng)
    if form < 0.75:
        return f"{rng.choice(COLOURS)}_{rng.choice(OBJECTS)}"
    return f"{made_up_word(rng)}{rng.randint(1, 99)}"


def odd_string(rng: Random) -> str:
    """Return two to six printable characters, such as ``Xk9#p``."""
    return "".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(2, 6)))


def number(rng: Random) -> int:
    """Return a number of one to four digits, each length as likely."""
    digits = rng.choice((1, 2, 2, 3, 4))
    return rng.randint(10 ** (digits - 1) if digits > 1 else 1, 10**digits - 1)


def a(noun: str) -> str:
    """Return ``noun`` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def join_and(items: list[str]) -> str:
    """Return ``x``, ``x and y`` or ``x, y and z``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def system_messages(rng: Random) -> tuple[tuple[str, str], ...]:
    """Return one system message or none, as real callers do."""
    text = rng.choice(
        (
            "",
            "",
            "You are Pie, a small helpful assistant.",
            "You are Pie, a small helpful assistant.",
            "You are a helpful assistant.",
            "Answer briefly.",
        )
    )
    return (("system", text),) if text else ()
