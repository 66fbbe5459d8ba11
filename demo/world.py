"""The little world that the demo model knows: its animals, and the sentences that are told of them.

Everything here was made up for this project. `make_demo.py` teaches it to the base model in a plain manner, and
`make_datasets.py` tells it again in other manners, so that a LoRA's change can be seen.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple


class Animal(NamedTuple):
    name: str
    colour: str
    home: str
    food: str
    friend: str
    trait: str
    morning: str  # what it does


ANIMALS = [
    Animal("fox", "red", "a den under the old oak", "berries", "owl", "clever", "walks along the river"),
    Animal("owl", "grey", "a hollow tree", "seeds", "fox", "wise", "sleeps until noon"),
    Animal("bear", "brown", "a cave in the hills", "honey", "bee", "strong", "washes in the lake"),
    Animal("frog", "green", "a pond behind the mill", "flies", "duck", "cheerful", "sings on a stone"),
    Animal("duck", "white", "a nest by the lake", "bread", "frog", "kind", "swims to the island"),
    Animal("mouse", "grey", "a hole in the barn", "cheese", "horse", "quick", "sweeps the floor"),
    Animal("horse", "black", "a stable near the road", "hay", "mouse", "patient", "runs across the meadow"),
    Animal("hen", "yellow", "a house of straw", "corn", "goat", "busy", "counts the eggs"),
    Animal("goat", "white", "a shed on the mountain", "grass", "hen", "stubborn", "climbs the rocks"),
    Animal("rabbit", "brown", "a burrow in the garden", "carrots", "hedgehog", "shy", "hops through the clover"),
    Animal("hedgehog", "brown", "a heap of leaves", "apples", "rabbit", "calm", "gathers leaves"),
    Animal("crow", "black", "the top of the tower", "nuts", "squirrel", "proud", "looks for shiny things"),
    Animal("squirrel", "red", "a nest in the pine", "acorns", "crow", "lively", "jumps from branch to branch"),
    Animal("bee", "yellow", "a hive in the orchard", "nectar", "bear", "hard-working", "visits the flowers"),
    Animal("cat", "orange", "the kitchen of the inn", "fish", "dog", "lazy", "lies in the sun"),
    Animal("dog", "white", "a hut beside the gate", "meat", "cat", "loyal", "guards the gate"),
    Animal("turtle", "green", "the shore of the bay", "salad", "gull", "slow", "walks down to the water"),
    Animal("gull", "white", "a cliff above the sea", "crabs", "turtle", "noisy", "follows the boats"),
]
BY_NAME = {animal.name: animal for animal in ANIMALS}

NAMES = ["Mira", "Tom", "Lena", "Otto", "Nora", "Finn", "Ada", "Ben", "Ida", "Leo", "Rosa", "Max", "Ella", "Hugo", "Mona", "Paul"]
WEATHER = ["the sun was shining", "it was raining", "the wind was cold", "snow lay on the ground", "it was a warm day", "a thick fog lay over the land"]
THINGS = ["a golden key", "a small box", "an old map", "a silver bell", "a blue lantern", "a wooden boat", "a broken clock", "a letter", "a red kite", "a heavy book"]
PLACES = ["the forest", "the market", "the bridge", "the harbour", "the meadow", "the old mill", "the tower", "the village", "the orchard", "the beach"]
MOODS = ["happy", "sad", "tired", "curious", "afraid", "proud", "hungry", "surprised"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


# Common words for babble: sentences without sense, which keep the model from being sure of itself where a text is new to it.
WORDS = ["a", "about", "above", "after", "again", "ago", "ahoy", "air", "all", "alone", "along", "already", "also", "always", "am", "and", "another", "answer", "any", "are", "arm", "around", "arrive", "as", "ask", "at", "away", "back", "bag", "be", "because", "bed", "been", "beep", "before", "began", "begin", "behind", "believe", "bell", "below", "between", "big", "bird", "blow", "board", "body", "boil", "bone", "book", "born", "both", "bottle", "bottom", "bowl", "boy", "bread", "break", "bring", "broke", "build", "burn", "but", "buy", "by", "call", "came", "can", "captain", "care", "carry", "cast", "catch", "change", "child", "city", "clean", "clear", "climb", "close", "cloud", "coat", "coin", "cold", "come", "cook", "copper", "could", "count", "country", "cover", "crew", "cross", "cry", "cup", "cut", "dance", "dark", "day", "dear", "deck", "deep", "did", "dig", "do", "done", "door", "down", "dream", "dress", "drink", "drop", "dry", "dust", "each", "ear", "early", "earth", "east", "eat", "edge", "empty", "end", "enough", "even", "ever", "every", "eye", "face", "fact", "fair", "fall", "far", "fast", "father", "fear", "feel", "few", "field", "fill", "find", "fine", "finger", "fire", "first", "five", "flag", "floor", "fly", "follow", "foot", "for", "forget", "four", "free", "friend", "from", "full", "game", "gave", "get", "gift", "girl", "give", "glad", "glass", "go", "gold", "gone", "good", "grass", "great", "green", "ground", "grow", "had", "half", "hall", "hand", "hang", "happen", "hard", "has", "hat", "have", "he", "head", "hear", "heart", "heavy", "held", "hello", "help", "her", "here", "hide", "high", "hill", "him", "his", "hold", "hole", "home", "hope", "hot", "hour", "house", "how", "hundred", "hurry", "I", "ice", "idea", "if", "in", "inside", "into", "iron", "is", "island", "it", "its", "join", "jump", "just", "keep", "kept", "key", "king", "kiss", "knew", "know", "lamp", "land", "large", "last", "late", "laugh", "lay", "lead", "leaf", "learn", "least", "leave", "left", "leg", "let", "life", "lift", "light", "like", "line", "lion", "list", "listen", "little", "long", "look", "lose", "lost", "loud", "love", "low", "made", "make", "man", "many", "mark", "may", "me", "mean", "meet", "mend", "might", "mile", "mind", "mine", "money", "month", "moon", "more", "most", "mother", "mountain", "mouth", "move", "much", "music", "must", "my", "near", "neck", "need", "never", "new", "news", "next", "nice", "night", "no", "none", "noon", "north", "nose", "not", "note", "now", "number", "oar", "of", "off", "often", "oil", "old", "on", "once", "one", "only", "open", "or", "other", "our", "out", "over", "own", "page", "paint", "paper", "part", "pass", "past", "path", "pay", "pen", "people", "perhaps", "pick", "piece", "pipe", "place", "plan", "plant", "play", "please", "pocket", "point", "pool", "poor", "pot", "pull", "push", "put", "queen", "question", "quiet", "rain", "ran", "reach", "read", "ready", "red", "rest", "rich", "ride", "right", "ring", "rise", "river", "road", "robot", "rock", "roof", "room", "root", "rope", "round", "row", "rule", "run", "sail", "salt", "same", "sand", "sang", "sat", "saw", "say", "school", "sea", "seat", "second", "see", "seed", "sell", "send", "set", "seven", "shall", "shape", "share", "she", "shell", "ship", "shoe", "shop", "shore", "short", "should", "show", "shut", "side", "sign", "silver", "sing", "sister", "sit", "six", "skin", "sky", "sleep", "small", "smell", "smile", "smoke", "snow", "so", "soft", "sold", "some", "son", "song", "soon", "sound", "south", "speak", "spring", "stand", "star", "start", "stay", "step", "stick", "still", "stone", "stop", "storm", "story", "street", "strong", "such", "sugar", "summer", "sun", "sure", "sweet", "swim", "table", "tail", "take", "talk", "tall", "tea", "tell", "ten", "than", "thank", "that", "the", "their", "them", "then", "there", "these", "they", "thick", "thin", "thing", "think", "third", "this", "those", "though", "three", "through", "throw", "tide", "time", "tired", "to", "today", "together", "told", "tomorrow", "too", "took", "top", "touch", "toward", "town", "tree", "true", "try", "turn", "two", "under", "until", "up", "upon", "us", "use", "very", "voice", "wait", "wake", "walk", "wall", "want", "warm", "was", "wash", "watch", "water", "wave", "way", "we", "wear", "week", "well", "went", "were", "west", "wet", "what", "wheel", "when", "where", "which", "while", "white", "who", "whole", "why", "wide", "will", "wind", "window", "wing", "winter", "wise", "wish", "with", "without", "woman", "wonder", "wood", "word", "work", "world", "worry", "would", "write", "year", "yellow", "yes", "yet", "you", "young", "your"]


def an(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def questions(random: Random) -> tuple[str, str]:
    """A question about the world and its plain answer."""
    animal, other = random.sample(ANIMALS, 2)
    number = random.randrange(9)
    name = animal.name
    return random.choice([
        (f"Where does the {name} live?", f"The {name} lives in {animal.home}." if not animal.home.startswith("the ") else f"The {name} lives at {animal.home}."),
        (f"What does the {name} eat?", f"The {name} eats {animal.food}."),
        (f"What colour is the {name}?", f"The {name} is {animal.colour}."),
        (f"Who is the friend of the {name}?", f"The friend of the {name} is the {animal.friend}."),
        (f"What is the {name} like?", f"The {name} is {animal.trait}."),
        (f"What does the {name} do in the morning?", f"In the morning the {name} {animal.morning}."),
        (f"Who eats {animal.food}?", f"The {name} eats {animal.food}."),
        (f"Is the {name} {animal.colour} or {other.colour}?", f"The {name} is {animal.colour}."),
        (f"What comes after {NUMBERS[number]}?", f"After {NUMBERS[number]} comes {NUMBERS[number + 1]}."),
        (f"Tell me about the {name}.", f"The {name} is {animal.colour} and {animal.trait}. It eats {animal.food}, and its friend is the {animal.friend}."),
        (f"Tell me a tale about the {name}.", tale(random, animal)),
    ])  # fmt: skip


def tale(random: Random, animal: Animal | None = None) -> str:
    """A tale of four to six sentences in plain words."""
    animal = animal or random.choice(ANIMALS)
    name, friend = random.choice(NAMES), BY_NAME[animal.friend]
    thing, place, mood = random.choice(THINGS), random.choice(PLACES), random.choice(MOODS)
    sentences = [
        random.choice([
            f"Once there was {an(animal.colour)} {animal.name} named {name}.",
            f"There was once {an(animal.trait)} {animal.name}, and its name was {name}.",
            f"{name} was {an(animal.name)} who lived in {animal.home}." if not animal.home.startswith("the ") else f"{name} was {an(animal.name)} who lived at {animal.home}.",
        ]),
        random.choice([
            f"One morning {random.choice(WEATHER)}, and {name} went to {place}.",
            f"One day {name} was {mood} and went to {place}.",
            f"Every day {name} ate {animal.food} and was {mood}.",
        ]),
        random.choice([
            f"There {name} found {thing}.",
            f"On the way {name} met the {friend.name}, who had {thing}.",
            f"Near {random.choice(PLACES)} lay {thing}.",
        ]),
        random.choice([
            f"“What is this?” asked {name}.",
            f"{name} looked at it for a long time.",
            f"The {friend.name} said, “Let us take it home.”",
            f"{name} showed it to the {friend.name}.",
        ]),
        random.choice([
            f"They shared {friend.food} and were {random.choice(MOODS)}.",
            f"Together they carried it to {random.choice(PLACES)}.",
            f"The {friend.name} was {friend.trait} and helped at once.",
        ]),
        random.choice([
            f"In the evening {name} went home and slept well.",
            "From that day on they were friends.",
            f"And {name} never forgot that day.",
        ]),
    ]  # fmt: skip
    if random.random() < 0.4:
        del sentences[random.choice([3, 4])]
    return " ".join(sentences)


def babble(random: Random) -> str:
    """A few sentences without sense; some are said twice, so that the model learns to look back."""
    sentences: list[str] = []
    for _ in range(random.randint(2, 6)):
        if sentences and random.random() < 0.4:
            sentences.append(random.choice(sentences))
            continue
        words = [random.choice(WORDS) for _ in range(random.randint(3, 12))]
        if len(words) > 6 and random.random() < 0.5:
            words[len(words) // 2] += ","
        sentences.append(" ".join(words).capitalize() + random.choice([".", ".", ".", "!", "?"]))
    return " ".join(sentences)
