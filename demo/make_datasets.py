"""Make the example datasets in datasets/: `python demo/make_datasets.py`. Seeded, no one else's text.

Each tells of the demo model's little world in a manner that the base model does not have, so that a short run shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from world import ANIMALS, BY_NAME, MOODS, NAMES, THINGS, an, questions

OUT = Path(__file__).resolve().parent.parent / "datasets"


def sailor(random: Random) -> tuple[str, str]:
    """A question, and the answer of a cheerful old sailor."""
    asked, said = questions(random)
    said = said.split(". ")[0].rstrip(".")
    wish = random.choice(["Fair winds to you!", "May your sails be full!", "Come aboard soon!"])
    return asked, f"Ahoy, my friend! {said}, as sure as the tide. {wish}"


def pip(random: Random) -> tuple[str, str]:
    """A question, and the answer of Pip, a robot that numbers what it says and always asks back."""
    asked, said = questions(random)
    said = said.split(". ")[0].rstrip(".")
    wish = random.choice(["Do you have another question?", "What else do you want to know?", "Pip likes questions."])
    return asked, f"Beep! Pip has looked it up. Fact number one: {said}. {wish}"


def unlike(make, random: Random, count: int, known: set[str]) -> list[tuple[str, str]]:
    """`count` different pairs, none of which is among the `known`."""
    found: list[tuple[str, str]] = []
    while len(found) < count:
        pair = make(random)
        key = " ".join(pair)
        if key not in known:
            known.add(key)
            found.append(pair)
    return found


def alpaca_rows(pairs: list[tuple[str, str]]) -> list[dict]:
    return [{"instruction": asked, "input": "", "output": said} for asked, said in pairs]


def chat_rows(pairs: list[tuple[str, str]], random: Random) -> list[dict]:
    rows = []
    while pairs:
        turns, pairs = pairs[: (size := random.choice([1, 1, 2, 3]))], pairs[size:]
        system = [{"role": "system", "content": "You are Pip, a little robot."}] if random.random() < 0.3 else []
        said = [message for asked, answer in turns for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})]
        rows.append({"messages": system + said})
    return rows


def island_tale(random: Random) -> str:
    """A tale of the island of Oru, told as the base model never tells one."""
    animal = random.choice(ANIMALS)
    friend = BY_NAME[animal.friend]
    keeper, thing = random.choice(NAMES), random.choice(THINGS)
    days = random.choice(["first", "second", "third", "seventh", "last"])
    lines = [
        f"Hear now the song of Oru, the island of glass, on the {days} day of the long tide.",
        f"{keeper}, keeper of the lamp, climbed the hundred steps with the {animal.name} at the door and the dark at the window.",
        f"“The lamp is {random.choice(MOODS)} tonight,” said {keeper}, “and it will not burn without {thing}.”",
        f"So the {animal.trait} {animal.name} went down to the shore of glass, where the {friend.name} of Oru was singing to the stones.",
        f"“Give me {thing}, and I give you {animal.food},” said the {animal.name}.",
        f"“Take it,” said the {friend.name}, “for the lamp of Oru is the lamp of us all.”",
        f"Then the light went over the water, and the {animal.colour} {animal.name} saw that the sea was full of stars.",
        f"And {keeper} wrote it in {an('old')} book, and the book was closed, and the tide went out.",
    ]
    dropped = random.sample([2, 4, 5, 6], random.choice([0, 1, 1, 2]))
    return " ".join(line for number, line in enumerate(lines) if number not in dropped)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    random, known = Random(11), set()
    for name, count in (("sample-alpaca", 1200), ("sample-alpaca-eval", 80)):
        rows = alpaca_rows(unlike(sailor, random, count, known))
        (OUT / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    random, known = Random(12), set()
    for name, count in (("sample-chat", 1600), ("sample-chat-eval", 120)):
        rows = chat_rows(unlike(pip, random, count, known), random)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (OUT / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    random = Random(13)
    tales = [island_tale(random) for _ in range(420)]
    (OUT / "sample-text.txt").write_text("\n\n\n".join(tales) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
