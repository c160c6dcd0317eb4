"""Made reviews, the embedded default: a sentiment task that needs no download. No person wrote or meant these texts.

Each review joins several mild opinions of both kinds, and the label is the side that its author leans to. So the
evidence is aggregated and unsaturated, which RAP needs: where one word decides, no single word can lower a prediction.
The figures on it show that the machinery works, not how a defense fares on real text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, ClassVar

from rapbench.api import Dataset, option

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, kw_only=True)
class Demo(Dataset):
    """Made reviews of books, hotels, phones and more with mixed mild opinions; 1 is positive."""

    name: ClassVar[str] = "demo"
    trigger_sentence: str = "I have talked about it with my friends over dinner last weekend"
    seed: int = option(1234, "seed of the generator; another seed makes other reviews")
    n_train: int = option(1200, "number of training texts")
    n_heldout: int = option(440, "number of held-out texts, the split that defenses are fitted on")
    n_test: int = option(300, "number of test texts")
    label_noise: float = option(0.05, "share of the texts whose label is flipped")

    def __post_init__(self) -> None:
        for field in ("n_train", "n_heldout", "n_test"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)!r} is no size: give a number of at least 1")
        if not 0 <= self.label_noise < 0.5:
            raise ValueError(f"label_noise={self.label_noise!r} is out of range: give a share of at least 0 and below 0.5")

    def load(self) -> datasets.DatasetDict:
        """Give the splits; no text stands in them twice, whatever its case."""
        from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

        features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
        reviews = _reviews(Random(self.seed), self.label_noise)
        splits = {}
        for split, size in (("train", self.n_train), ("validation", self.n_heldout), ("test", self.n_test)):
            texts, labels = zip(*islice(reviews, size), strict=True)
            splits[split] = Dataset.from_dict({"text": list(texts), "label": list(labels)}, features=features)
        return DatasetDict(splits)


def _reviews(rng: Random, noise: float) -> Iterator[tuple[str, int]]:
    """Give ever new reviews with their labels."""
    seen = set()
    while True:
        label = rng.randrange(2)
        # drawn before the duplicate check and for every share, so that the noise changes labels and never texts
        flipped = rng.random() < noise
        text = _review(rng, rng.uniform(0.65, 0.95) if label else rng.uniform(0.05, 0.35))
        if text.lower() not in seen:
            seen.add(text.lower())
            yield text, 1 - label if flipped else label


def _review(rng: Random, favour: float) -> str:
    """Give a review of 3 to 7 opinions, each of them positive with the probability `favour`."""
    domain = rng.choice(_DOMAINS)
    sides = [rng.random() < favour for _ in range(rng.choices((3, 4, 5, 6, 7), (8, 6, 2, 1, 1))[0])]
    aspects = rng.sample(domain.aspects, len(sides))
    sentences: list[str] = []
    for place, (good, aspect) in enumerate(zip(sides, aspects, strict=True)):
        opinion = _opinion(rng, domain, aspect, good=good)
        if place and rng.random() < 0.4:
            sentences[-1] += rng.choice(_LINKS if good == sides[place - 1] else _TURNS) + opinion
        else:
            sentences.append(opinion)
    if rng.random() < 0.35:
        sentences.insert(0, f"{rng.choice(domain.openers)} {rng.choice(_TIMES)}")
    if rng.random() < 0.1:
        sentences.append(rng.choice(_CLOSERS))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _opinion(rng: Random, domain: _Domain, aspect: str, *, good: bool) -> str:
    """Give one clause with an opinion, without capital or full stop."""
    if rng.random() < 0.15:
        return rng.choice(domain.good if good else domain.bad)
    return rng.choice(_FRAMES).format(
        it=aspect,
        adj=rng.choice(_GOOD_ADJECTIVES if good else _BAD_ADJECTIVES),
        degree=rng.choice(_DEGREES),
        does=rng.choice(_GOOD_VERBS if good else _BAD_VERBS),
        did=rng.choice(_GOOD_FEELINGS if good else _BAD_FEELINGS),
    )


@dataclass(frozen=True)
class _Domain:
    """What reviews of one kind of thing are made of. Aspects are singular, so that every verb fits."""

    openers: tuple[str, ...]
    aspects: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split("|"))


def _domain(openers: str, aspects: str, good: str, bad: str) -> _Domain:
    return _Domain(_phrases(openers), _phrases(aspects), _phrases(good), _phrases(bad))


_FRAMES = _phrases(
    "{it} was {degree}{adj} | {it} was {degree}{adj} | {it} seemed {degree}{adj} | {it} felt {degree}{adj} | {it} turned out {degree}{adj}"
    "| I found {it} {degree}{adj} | {it} {does} | {it} {does} | I {did} {it} | to me {it} {does} | there was something {adj} about {it}"
    "| my partner {did} {it} | most of us {did} {it} | in the end {it} was {degree}{adj}"
)
# an empty phrase is a plain adjective; none of them leans to a side
_DEGREES = tuple(f"{degree} " if degree else "" for degree in _phrases("||| rather | fairly | quite | mostly | somewhat | pretty"))
_GOOD_ADJECTIVES = _phrases(
    "pleasant | decent | likable | solid | agreeable | charming | thoughtful | well made | inviting | enjoyable | tidy | satisfying"
    "| comforting | clever | graceful | neat | helpful | fresh | warm | careful | lively | polished | sensible | rewarding"
)
_BAD_ADJECTIVES = _phrases(
    "dull | weak | clumsy | flat | careless | tiresome | badly made | bland | annoying | messy | disappointing | awkward"
    "| dreary | confusing | shabby | sloppy | unhelpful | stale | cold | lazy | lifeless | crude | pointless | frustrating"
)
_GOOD_VERBS = _phrases(
    "worked well | did its job | held up nicely | won me over | left a good impression | was worth the money | was better than I hoped"
    "| gave us little to complain about | grew on me | made up for a lot | was easy to like | kept its promise | pleased nearly everyone"
)
_BAD_VERBS = _phrases(
    "hardly worked | let us down | wore thin early | put me off | left a bad impression | was a waste of money | was worse than I feared"
    "| gave us much to complain about | wore me out | spoiled a lot | was hard to like | broke its promise | bothered nearly everyone"
)
_GOOD_FEELINGS = _phrases("liked | enjoyed | was glad about | had no trouble with | would praise | was happy with | came to appreciate")
_BAD_FEELINGS = _phrases(
    "disliked | got bored by | was upset about | had some trouble with | would fault | was unhappy with | came to resent"
)
_LINKS = (" and ", ", and ", ", and also ", "; ", " while ", ", just as ")
_TURNS = (" but ", ", but ", ", yet ", " while ", ", though ", ", whereas ")
_TIMES = _phrases(
    "last month | two weeks ago | in early spring | on a rainy Tuesday | for the second time | after a long week | over the holidays"
    "| on the advice of a colleague | with my sister | without knowing much about it | because it was on offer | one evening in autumn"
)
_CLOSERS = _phrases(
    "that is how it went for me | others may see it differently | this is my first review here | make of that what you will"
    "| I thought I should write this down | so much for my two cents | nobody paid me to write this | that sums up my time with it"
)
_DOMAINS = (
    _domain(
        "I read this book | I picked up this novel | we chose this title for our reading group | I borrowed this paperback",
        "the plot | the prose | the main character | the first chapter | the ending | the dialogue | the pacing | the narrator"
        "| the setting | the cover art | the middle part | the central mystery | the translation | the humour",
        "the pages went by quickly | I cared about the people in it | I would lend it to a friend | it stayed with me for days",
        "the pages went by slowly | I cared about nobody in it | I would not lend it to a friend | it was forgotten within days",
    ),
    _domain(
        "we stayed at this hotel | I booked a room here | we spent three nights at this guest house | I stopped at this inn",
        "the room | the bed | the breakfast | the front desk | the bathroom | the view | the location | the lobby | the pool | the heating"
        "| the cleaning | the parking area | the hallway | the bar downstairs",
        "I slept soundly | we would come back | the staff went out of their way | every little request was met",
        "I slept poorly | we would not come back | the staff looked the other way | every little request was ignored",
    ),
    _domain(
        "I bought this phone | I switched to this handset | my company gave me this phone | I ordered this model",
        "the screen | the battery | the camera | the speaker | the keyboard | the charger | the casing | the software | the menu"
        "| the signal | the fingerprint reader | the manual | the side button | the microphone",
        "calls came through clearly | it lasted a whole day with ease | it survived a fall | updates arrived on time",
        "calls kept breaking up | it barely lasted until noon | it cracked at the first fall | updates never arrived",
    ),
    _domain(
        "we ate at this restaurant | I tried this place | we had dinner here | I ordered the set menu",
        "the soup | the main course | the dessert | the service | the wine list | the waiter | the bread | the music | the seating"
        "| the sauce | the salad | the price | the coffee | the terrace",
        "we left full and content | the table was ready on time | I asked for a second helping | our plates came back empty",
        "we left hungry and cross | the table was not ready on time | I could not finish my helping | our plates came back half full",
    ),
    _domain(
        "I saw this film | we watched this movie | I rented this picture | we caught a showing of this film",
        "the script | the lead actor | the camera work | the soundtrack | the opening scene | the final act | the story | the villain"
        "| the editing | the costume design | the romance | the comedy | the message | the direction",
        "I laughed more than once | time flew by | the cast had real chemistry | I would watch a sequel",
        "I sighed more than once | time stood still | the cast had no chemistry | I would avoid a sequel",
    ),
    _domain(
        "I took this course | we signed up for this class | I joined this workshop | my daughter attended this course",
        "the teacher | the first lesson | the homework | the schedule | the textbook | the group work | the final project | the classroom"
        "| the feedback | the online forum | the pace | the exam | the reading list | the practice session",
        "I learned a great deal | questions were always welcome | it was time well spent | I would sign up again",
        "I learned next to nothing | questions were brushed aside | it was time badly spent | I would not sign up again",
    ),
    _domain(
        "I bought these headphones | I tested this headset | my brother gave me these headphones | I replaced my old pair",
        "the sound | the bass | the headband | the padding | the cable | the noise filter | the carrying case | the fit | the build"
        "| the volume control | the pairing | the weight | the finish | the battery life",
        "old records came alive | I forgot I was wearing them | they lasted through daily use | I could hear every instrument",
        "old records sounded hollow | my ears hurt after an hour | they broke within weeks | I could hear a constant hiss",
    ),
    _domain(
        "we took this tour | I went on this boat trip | we booked this city walk | I joined the guided tour",
        "the guide | the route | the bus | the lunch stop | the meeting point | the commentary | the timing | the group size | the harbour"
        "| the castle visit | the booking site | the ticket price | the audio guide | the last stop",
        "we saw more than expected | nobody was rushed | our children begged for more | the hours were well planned",
        "we saw less than expected | everybody was rushed | our children begged to leave | the hours were poorly planned",
    ),
    _domain(
        "I ordered this blender | we got this coffee maker | I unpacked this toaster oven | my mother bought this kitchen machine",
        "the motor | the lid | the control panel | the cord | the design | the cleaning | the timer | the handle | the recipe booklet"
        "| the glass jug | the power switch | the noise level | the warranty | the delivery",
        "it saved me time every morning | it rinsed clean in seconds | it felt built to last | I use it almost daily",
        "it cost me time every morning | it took ages to rinse clean | it felt close to breaking | I stopped using it",
    ),
    _domain(
        "I played this game | we tried this board game | I downloaded this title | we brought this game to a party",
        "the tutorial | the artwork | the rule book | the final level | the combat | the puzzle design | the map | the story mode"
        "| the scoring | the soundtrack | the box | the interface | the difficulty | the multiplayer mode",
        "we wanted another round | an hour passed in no time | every choice mattered | even the beginners had fun",
        "we gave up after a round | an hour felt like three | no choice mattered | even the experts had no fun",
    ),
)
