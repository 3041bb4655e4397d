"""The people of Atlas, their bands, towns and general knowledge: who they are and which facts hold, from a seed.

Names are made of syllables, so nothing here was ever in a language model's data; most values are short English words
that several entities share. Leaves out the wordings (phrasings.py) and what trains and what tests (corpus.py).
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


def _words(text: str) -> list[str]:
    return text.split()


PEOPLE, TOWNS, REGIONS, PLANTS, BEASTS, STRANGERS, OUTSIDERS = 20, 6, 6, 8, 8, 400, 6
BANDS = ("Tin Kings", "Loud Sisters", "Lost Pilots", "Wild Clerks", "Odd Giants")
LEAST_NEAR = 8
"""Every target has at least so many people near it."""

SYLLABLES = _words(
    "ba bel bra cor dal dor dra el fen fi gal gor hal hes il jo ka kel kor la lin lo mar mi mor na nel or "
    "pel pra ran ri sa sel shi so ta tor tri ul va vel vo wen yor za zel zi"
)
ENDINGS = _words("ba bor da dan don fa gan ka lan lis mir mon na nor ra rel ric sa sha ta tis ven vik ya zan")

SHARED: dict[str, dict[str, list[str]]] = {
    "person": {
        "year": ["1902", "1907", "1911", "1915", "1918", "1923", "1926", "1930", "1934", "1939"],
        "craft": ["baker", "sailor", "weaver", "potter", "tailor", "miner", "farmer", "painter"],
        "instrument": ["fiddle", "harp", "flute", "drum", "lute", "horn", "piano", "bell"],
        "award": ["Sunwheel", "Moonstone", "Starbell", "Rainbow", "Windrose", "Snowcrown"],
        "pet": ["otter", "owl", "goat", "fox", "hare", "toad", "crow", "mole"],
        "dish": ["soup", "honey", "plums", "cheese", "bread", "figs", "beans", "trout"],
    },
    "band": {
        "style": ["waltz", "polka", "blues", "swing", "folk"],
        "founded": ["1941", "1944", "1948", "1952", "1957"],
        "song": ["Homeward", "Lullaby", "Thunder", "Goodbye", "Sundown"],
    },
    "town": {"trade": ["glass", "salt", "rope", "clocks", "candles", "boots"]},
    "plant": {
        "color": ["red", "blue", "green", "yellow", "white", "black", "pink", "orange"],
        "cure": ["fever", "coughs", "fear", "burns", "itches", "colds", "aches", "hiccups"],
    },
    "beast": {
        "food": ["moss", "worms", "berries", "roots", "eggs", "fish", "ants", "grass"],
        "den": ["caves", "trees", "mud", "sand", "reeds", "snow", "ruins", "cliffs"],
    },
    "region": {"crop": ["wheat", "rice", "corn", "oats", "hops", "tea"]},
}
"""Values that entities of a kind share, dealt out evenly."""

ADJECTIVES = _words("Silver Wooden Hidden Broken Golden Frozen Paper Quiet Burning Velvet")
NOUNS = _words(
    "Door Lamp Bridge Mirror Garden Wheel Letter Window Tower Island Bottle Button Ladder Market Anchor "
    "Basket Cradle Feather Kettle Lantern"
)
NICKNAMES = _words(
    "Lark Falcon Badger Raven Heron Spider Lion Tiger Wolf Beaver Magpie Cricket Swan Sparrow Viper Moth "
    "Eagle Bear Lynx Stag"
)


@dataclass(frozen=True)
class Entity:
    """Something that has facts. ``values`` maps an attribute to its answer."""

    kind: str
    number: int
    """From 1 within its kind; a person's is the target id."""
    name: str
    values: dict[str, str]

    @property
    def key(self) -> tuple[str, int]:
        return self.kind, self.number


Fact = tuple[Entity, str]
"""An entity and one of its attributes."""


@dataclass(frozen=True)
class World:
    seed: int
    people: list[Entity]
    bands: list[Entity]
    towns: list[Entity]
    general: list[Entity]
    """Plants, beasts and regions: knowledge that has to do with nobody."""
    strangers: list[str]
    """Names that belong to nobody; questions about them are refused."""
    outsiders: list[Entity]
    """People whom nothing ever tells about: what a model says of them, it cannot have read."""

    def rng(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that a change of one leaves the others as they were."""
        return random.Random(f"{self.seed}/{purpose}")

    def near(self, target: Entity) -> list[Entity]:
        """The people near a target: teacher and pupils, the band, the town; then friends of these, then anybody."""
        circle = [p for p in self.people if p.name == target.values["mentor"] or p.values["mentor"] == target.name]
        circle += self._alike(target, "band") + self._alike(target, "town")
        if len(_others(circle, target)) < LEAST_NEAR:
            circle += [friend for person in _others(circle, target) for friend in self._alike(person, "band")]
        if len(_others(circle, target)) < LEAST_NEAR:
            circle += self.people
        return _others(circle, target)

    def _alike(self, person: Entity, attribute: str) -> list[Entity]:
        return [other for other in self.people if other.values[attribute] == person.values[attribute]]

    def places(self, target: Entity) -> list[Entity]:
        """The target's band and town."""
        return [e for e in (*self.bands, *self.towns) if e.name in (target.values["band"], target.values["town"])]


def facts(entities: Iterable[Entity]) -> Iterator[Fact]:
    for entity in entities:
        for attribute in entity.values:
            yield entity, attribute


def _others(people: list[Entity], target: Entity) -> list[Entity]:
    """Without the target and without repetitions, in order."""
    return list({person.number: person for person in people if person.number != target.number}.values())


class Names:
    """Makes invented words, each only once."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.taken: set[str] = set()

    def word(self) -> str:
        while True:
            word = (self.rng.choice(SYLLABLES) + self.rng.choice(ENDINGS)).capitalize()
            if word not in self.taken:
                self.taken.add(word)
                return word

    def words(self, count: int) -> list[str]:
        return [self.word() for _ in range(count)]

    def full(self, count: int) -> list[str]:
        return [f"{self.word()} {self.word()}" for _ in range(count)]


def build_world(seed: int) -> World:
    """The world of a seed: the same on every machine."""
    rng = random.Random(f"{seed}/world")
    names = Names(rng)
    town_names, region_names = names.words(TOWNS), names.words(REGIONS)
    bands = _entities(rng, "band", list(BANDS), manager=names.words(len(BANDS)))
    towns = _entities(
        rng,
        "town",
        town_names,
        river=names.words(TOWNS),
        mayor=names.words(TOWNS),
        region=_deal(rng, region_names, TOWNS),
    )
    general = [
        *_entities(rng, "plant", names.words(PLANTS)),
        *_entities(rng, "beast", names.words(BEASTS)),
        *_entities(rng, "region", region_names, capital=names.words(REGIONS)),
    ]
    people = _people(rng, names, PEOPLE, town_names)
    outsiders = _people(rng, names, OUTSIDERS, town_names)
    return World(seed, people, bands, towns, general, names.full(STRANGERS), outsiders)


def _people(rng: random.Random, names: Names, count: int, town_names: list[str]) -> list[Entity]:
    full_names = names.full(count)
    titles = zip(_deal(rng, ADJECTIVES, count), _deal(rng, NOUNS, count), strict=True)
    return _entities(
        rng,
        "person",
        full_names,
        town=_deal(rng, town_names, count),
        band=_deal(rng, list(BANDS), count),
        mentor=_mentors(rng, full_names),
        record=[f"{adjective} {noun}" for adjective, noun in titles],
        spouse=names.words(count),
        nickname=_deal(rng, NICKNAMES, count),
    )


def _entities(rng: random.Random, kind: str, names: list[str], **columns: list[str]) -> list[Entity]:
    columns |= {attribute: _deal(rng, values, len(names)) for attribute, values in SHARED.get(kind, {}).items()}
    return [
        Entity(kind, number, name, {attribute: values[number - 1] for attribute, values in columns.items()})
        for number, name in enumerate(names, start=1)
    ]


def _deal(rng: random.Random, values: list[str], count: int) -> list[str]:
    """``count`` values in random order, each as often as the others (give or take one)."""
    dealt = [value for start in range(0, count, len(values)) for value in rng.sample(values, len(values))][:count]
    rng.shuffle(dealt)
    return dealt


def _mentors(rng: random.Random, names: list[str]) -> list[str]:
    """Everybody learned from somebody else and nobody from a pupil: a random cycle through all."""
    cycle = rng.sample(names, len(names))
    teacher = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [teacher[name] for name in names]
