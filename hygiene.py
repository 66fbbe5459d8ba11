"""What is wrong with rows before anything is trained: repeats, near repeats, rows that are also in the evaluation data, empty and identical answers.

No text is kept: a row takes about 300 bytes (two hashes, 176 bytes of signature, the beginning that an example shows).

Exact repeats are rows with the same text after NFC and folding of white space (case kept), found by 64-bit BLAKE2b hashes.
Near repeats are found by MinHash with LSH (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3) over
words and pairs of neighbouring words. The package rensa makes the signatures. Only the lowest 8 bits of each of its hashes are kept
(b-bit MinHash; Li and König 2010), so that 8 of them are one 64-bit number of a band, and a band is looked through by sorting it:
an eighth of the memory that rensa's own index takes.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

from .needs import install_command

EXACT = "exact duplicates"
NEAR = "near duplicates"
LEAKED = "in training and evaluation"
EMPTY = "empty answers"
IDENTICAL = "identical answers"
KINDS = (EXACT, NEAR, LEAKED, EMPTY, IDENTICAL)
LEFT_OUT = (EXACT, NEAR, LEAKED, EMPTY)  # the same answer can be right for many questions: only reported

THRESHOLD = 0.85  # Jaccard: one word in about 20 is another
HASHES, BAND = 128, 8  # 16 bands of 8 hashes: a pair of Jaccard 0.85 shares one with a probability of 99 %, of 0.5 with 6 %
PART_HASHES = 24  # of the prompt and of the answer each, which must be alike too: a long prompt can have many answers, and the other way round
PART_SLACK = 0.15  # two standard deviations of an estimate from 24 hashes
SIGNATURE = HASHES + 2 * PART_HASHES  # bytes
CHANCE = 1 / 256  # that the 8 bits of different hashes agree
FEWEST_SHINGLES = 9  # five words: below, one changed word changes too much for an estimate
COMMON_SHARE, COMMON_ROWS = 0.5, 5  # what stands in half of the rows is the template or the system prompt, and tells nothing about a row
IDENTICAL_ROWS, IDENTICAL_SHARE = 5, 0.05

BATCH_ROWS, BATCH_CHARACTERS = 1000, 4_000_000
EXAMPLES = 3
EXCERPT_BYTES = 72
NEIGHBOURS = 16  # how far apart two rows of a sorted band are still compared: bounds the work where thousands of rows are alike
PAIRS_AT_ONCE = 50_000

# Words, and each character of scripts that write without spaces (Thai, Lao, Burmese, Khmer, kana, Han) as a word of its own.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PUNCTUATION = str.maketrans(dict.fromkeys("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", " "))
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s!-/:-@\[-`{{-~\u2010-\u205e\u3000-\u303f\uff01-\uff0f\uff1a-\uff20{_UNSPACED}]+")


@dataclass(frozen=True)
class Entry:
    """A row as `Hygiene.see` takes it: its number in the file (from 1), its whole formatted text, and what of it is learned."""

    row: int
    text: str
    answer: str | None = None
    evaluation: bool = False


class Example(NamedTuple):
    """A training row, the row that it is like (None for an empty answer), and a piece of at most 120 characters of it (of an identical answer)."""

    row: int
    other: int | None
    excerpt: str


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    `rows` are training rows in rising order: of duplicates all but the first of each group, of LEAKED those that are also in the
    evaluation data, of IDENTICAL all that share such an answer. `near` of them are alike, not equal. `other` of an example is the
    first row of the group, of LEAKED a row of the evaluation data.
    """

    kind: str
    rows: list[int]
    examples: tuple[Example, ...]
    near: int = 0

    @property
    def count(self) -> int:
        return len(self.rows)


class Findings(Sequence[Finding]):
    """What was found, in the order of KINDS; a kind that was not found is not there. `not_looked` says why near repeats were not looked for."""

    def __init__(self, findings: list[Finding], not_looked: str = ""):
        self._findings, self.not_looked = findings, not_looked

    def __getitem__(self, number: Any) -> Any:
        return self._findings[number]

    def __len__(self) -> int:
        return len(self._findings)

    def of(self, kind: str) -> Finding:
        """The finding of a kind; one without rows where there is none."""
        return next((finding for finding in self._findings if finding.kind == kind), Finding(kind, [], ()))

    def leave_out(self, kinds: Iterable[str] = LEFT_OUT) -> set[int]:
        """The training rows that are better not trained: of alike rows all but the first, and never a row for an identical answer."""
        return {row for kind in kinds if kind in LEFT_OUT for row in self.of(kind).rows}

    def sentences(self, file: str, evaluation_file: str | None = None) -> list[str]:
        """A sentence for each kind that was found, and one if near repeats could not be looked for."""
        said = [_sentence(finding, file, evaluation_file) for finding in self]
        return [*said, f"“{file}”: {self.not_looked}"] if self.not_looked else said


def _sentence(finding: Finding, file: str, evaluation_file: str | None) -> str:
    first = finding.examples[0]
    many = finding.count != 1
    rows = f"“{file}”: {finding.count} {'rows' if many else 'row'}"
    if finding.kind == EXACT:
        return (
            f"{rows} {'repeat' if many else 'repeats'} an earlier one word for word (row {first.row} repeats row {first.other}: “{first.excerpt}”)."
        )
    if finding.kind == NEAR:
        return f"{rows} {'differ' if many else 'differs'} from an earlier one in a few words only (row {first.row} is like row {first.other}: “{first.excerpt}”)."
    if finding.kind == LEAKED:
        where = f"“{evaluation_file}”" if evaluation_file else "the evaluation data"
        some = "" if finding.near == finding.count else f"{finding.near} of them "
        near = f", {some}with a few other words" if finding.near else ""
        return (
            f"{rows} {'are' if many else 'is'} also in {where}{near} (row {first.row} is row {first.other} there: “{first.excerpt}”). "
            "What was trained cannot measure what was learned: leave them out of one of the two."
        )
    if finding.kind == EMPTY:
        return f"{rows} {'have' if many else 'has'} an empty answer (row {first.row}: “{first.excerpt}”). The model learns to say nothing there: fill it in or leave it out."
    return (
        f"{rows} have an answer that many others have too (row {first.row} and row {first.other}: “{first.excerpt}”). "
        "That is right where there are few answers to choose from; otherwise the model learns to give it to everything."
    )


def look_through(entries: Iterable[Entry], **options: Any) -> Findings:
    """The findings of rows that are all there. `options` are those of `Hygiene`."""
    hygiene = Hygiene(**options)
    for entry in entries:
        hygiene.see(entry.row, entry.text, entry.answer, evaluation=entry.evaluation)
    return hygiene.findings()


class Hygiene:
    """Fed row by row while data is prepared, training and evaluation in any order; asked at the end.

    Args:
        near: look for near repeats too, for which the package rensa is needed.
        threshold: the least share of words and pairs of words that two near repeats have in common (Jaccard), 0–1.
            With answers, the prompts and the answers must each be alike too. Without them, words that stand in half of the first
            1000 rows are taken for the template, so that a row is not found of which half of the data are repeats.
    """

    def __init__(self, *, near: bool = True, threshold: float = THRESHOLD):
        self._near, self._threshold, self._not_looked = near, threshold, ""
        self._rows, self._evaluation = array("q"), array("b")
        self._texts, self._answers = array("Q"), array("Q")  # hashes; of an answer _NONE where there is none
        self._signatures, self._signed = bytearray(), array("q")  # SIGNATURE bytes each; which of them is the row's, or -1
        self._excerpts, self._ends = bytearray(), array("q", [0])
        self._pending: list[tuple[str, str | None]] = []
        self._pending_characters = 0
        self._common: set[str] | None = None
        self._frequent: dict[int, list[Any]] = {}  # hash of an answer → [counter, its beginning]

    def see(self, row: int, text: str, answer: str | None = None, *, evaluation: bool = False) -> None:
        """Take in a row: its number in its file, its formatted text, and the part that is learned, without BOS and EOS (None: no such part)."""
        text, answer = _folded(text), None if answer is None else _folded(answer)
        self._rows.append(row)
        self._evaluation.append(evaluation)
        self._texts.append(_hash(text))
        self._answers.append(_NONE if answer is None else _hash(answer))
        if answer and not evaluation:
            self._count_frequent(self._answers[-1], answer)
        self._pending.append((text, answer))
        self._pending_characters += len(text)
        if len(self._pending) >= BATCH_ROWS or self._pending_characters >= BATCH_CHARACTERS:
            self._digest()

    def findings(self) -> Findings:
        """All that was found in the rows so far."""
        self._digest()
        if not self._rows:
            return Findings([])
        found = _Search(self).found()
        return Findings([finding for finding in found if finding.rows], self._not_looked)

    def _count_frequent(self, answer: int, text: str) -> None:
        """Remember the beginnings of the frequent answers: after Misra and Gries (1982), any of more than 1/21 of all answers is among 20."""
        if answer in self._frequent:
            self._frequent[answer][0] += 1
        elif len(self._frequent) < 20:
            self._frequent[answer] = [1, _cut(text)]
        else:
            self._frequent = {known: [count - 1, start] for known, (count, start) in self._frequent.items() if count > 1}

    def _digest(self) -> None:
        """Signatures and beginnings of the rows that were seen since the last time."""
        if not self._pending:
            return
        pending, self._pending, self._pending_characters = self._pending, [], 0
        if self._common is None:
            self._common = _common_shingles({text for text, _ in pending})
        for text, _ in pending:
            self._excerpts += _cut(text[_own_start(text, self._common) :]).encode()
            self._ends.append(len(self._excerpts))
        signed = self._sign(pending) if self._near and not self._not_looked else [-1] * len(pending)
        self._signed.extend(signed)

    def _sign(self, pending: list[tuple[str, str | None]]) -> list[int]:
        try:
            import numpy
            from rensa import RMinHash

            def signatures(shingles: list[list[str]], hashes: int) -> Any:
                rows = RMinHash.digest_matrix_from_token_sets(shingles, num_perm=hashes, seed=1).to_rows()
                return numpy.array(rows, dtype=numpy.uint32).astype(numpy.uint8)  # the lowest 8 bits

            wholes, prompts, answers = zip(*(_parts(text, answer, self._common) for text, answer in pending), strict=True)
            long = [number for number, whole in enumerate(wholes) if len(whole) >= FEWEST_SHINGLES]
            signed = [-1] * len(pending)
            if long:
                before = len(self._signatures) // SIGNATURE
                parts = ((wholes, HASHES), (prompts, PART_HASHES), (answers, PART_HASHES))
                self._signatures += numpy.hstack([signatures([part[number] for number in long], hashes) for part, hashes in parts]).tobytes()
                for place, number in enumerate(long):
                    signed[number] = before + place
            return signed
        except Exception as error:  # a broken package raises whatever it likes, and nothing depends on it
            missing = isinstance(error, ModuleNotFoundError) and error.name == "rensa"
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
            self._not_looked = (
                "rows that differ in a few words only were not looked for: the package rensa "
                + ("is missing. Install it with this command: " if missing else f"does not work ({said}). Mend it with this command: ")
                + install_command(*([] if missing else ["--force-reinstall", "--no-deps"]), "rensa")
            )
            return [-1] * len(pending)


class _Search:
    """One look through all rows. Texts that are equal are one node; nodes are numbered by their first training row, those without one last."""

    def __init__(self, seen: Hygiene):
        import numpy as np

        self.np, self.seen = np, seen
        self.rows = np.array(seen._rows)
        self.answers = np.array(seen._answers)
        evaluation = np.array(seen._evaluation, dtype=bool)
        self.train, self.evaluation = np.flatnonzero(~evaluation), np.flatnonzero(evaluation)
        for part in (self.train, self.evaluation):
            part[:] = part[np.argsort(self.rows[part], kind="stable")]

        _, text_of = np.unique(np.array(seen._texts), return_inverse=True)
        count = int(text_of.max()) + 1
        first = np.full((2, count), len(self.rows))  # of each text the first place among the training rows, and among those of the evaluation
        for part, places in zip(first, (self.train, self.evaluation), strict=True):
            np.minimum.at(part, text_of[places], np.arange(len(places)))
        order = np.argsort(first[0], kind="stable")
        node = np.empty(count, dtype=np.int64)
        node[order] = np.arange(count)
        self.node = node[text_of]  # of each row
        self.first_train, self.first_evaluation = (np.where(part == len(self.rows), -1, part)[order] for part in first)

    def found(self) -> list[Finding]:
        np = self.np
        nodes = self.node[self.train]  # of each training row
        repeats = np.flatnonzero(self.first_train[nodes] != np.arange(len(nodes)))
        exact = self._finding(EXACT, repeats, self.train[self.first_train[nodes[repeats]]])

        root, alike = self._near()
        heads = np.flatnonzero((root != np.arange(len(root))) & (self.first_train >= 0))
        near = self._finding(NEAR, self.first_train[heads], self.train[self.first_train[root[heads]]], near=len(heads))

        there = np.where(self.first_evaluation >= 0, self.first_evaluation, alike)
        leaked = np.flatnonzero(there[nodes] >= 0)
        only_near = int((self.first_evaluation[nodes[leaked]] < 0).sum())
        leak = self._finding(LEAKED, leaked, self.evaluation[there[nodes[leaked]]], near=only_near)

        empty = self._finding(EMPTY, np.flatnonzero(self.answers[self.train] == _EMPTY), None)
        return [exact, near, leak, empty, self._identical()]

    def _identical(self) -> Finding:
        """Rows of different texts that share an answer; equal texts count once."""
        np = self.np
        places = self.first_train[self.first_train >= 0]
        answers = self.answers[self.train[places]]
        places = places[(answers != _NONE) & (answers != _EMPTY)]
        answers = self.answers[self.train[places]]
        values, which, counts = np.unique(answers, return_inverse=True, return_counts=True)
        frequent = (counts >= IDENTICAL_ROWS) & (counts >= IDENTICAL_SHARE * len(places))
        rows = np.flatnonzero(frequent[which])
        examples = []
        for value in sorted(np.flatnonzero(frequent), key=lambda value: -counts[value])[:EXAMPLES]:
            other, row = self.train[places[np.flatnonzero(which == value)[:2]]]
            known = self.seen._frequent.get(int(values[value]))
            examples.append(Example(int(self.rows[row]), int(self.rows[other]), known[1] if known else self._excerpt(row)))
        return Finding(IDENTICAL, sorted(self.rows[self.train[places[rows]]].tolist()), tuple(examples))

    def _finding(self, kind: str, places: Any, others: Any, near: int = 0) -> Finding:
        """Of places among the training rows, and of the rows (among all) that they are like."""
        chosen = self.train[places]
        examples = tuple(
            Example(int(self.rows[row]), None if others is None else int(self.rows[others[number]]), self._excerpt(row))
            for number, row in enumerate(chosen[:EXAMPLES])
        )
        return Finding(kind, sorted(self.rows[chosen].tolist()), examples, near)

    def _excerpt(self, row: int) -> str:
        return self.seen._excerpts[self.seen._ends[row] : self.seen._ends[row + 1]].decode()

    def _near(self) -> tuple[Any, Any]:
        """(the first node of each node's group, the place among the evaluation rows that a training node is like, or -1)."""
        np = self.np
        count = len(self.first_train)
        root, alike = np.arange(count), np.full(count, -1)
        trained, evaluated = self.first_train >= 0, self.first_evaluation >= 0
        rows = np.where(
            trained, self.train[self.first_train] if len(self.train) else -1, self.evaluation[self.first_evaluation] if len(self.evaluation) else -1
        )
        place = np.array(self.seen._signed)[rows]
        nodes = np.flatnonzero(place >= 0)
        if self.seen._not_looked or not len(nodes):
            return root, alike
        signatures = np.frombuffer(self.seen._signatures, dtype=np.uint8).reshape(-1, SIGNATURE)
        bands = signatures.view(np.uint64)
        for band in range(HASHES // BAND):
            keys = bands[place[nodes], band]
            order = np.argsort(keys, kind="stable")
            keys, ordered = keys[order], nodes[order]
            for distance in range(1, NEIGHBOURS + 1):
                same = np.flatnonzero(keys[distance:] == keys[:-distance])
                if not len(same):
                    break
                one, two = ordered[same], ordered[same + distance]
                both = trained[one] & trained[two] & (root[one] != root[two])
                leak_one = trained[one] & evaluated[two] & ~evaluated[one] & (alike[one] < 0)
                leak_two = trained[two] & evaluated[one] & ~evaluated[two] & (alike[two] < 0)
                asked = np.flatnonzero(both | leak_one | leak_two)
                asked = asked[self._verified(signatures, place[one[asked]], place[two[asked]])]
                joined, to_one, to_two = asked[both[asked]], asked[leak_one[asked]], asked[leak_two[asked]]
                _join(np, root, one[joined], two[joined])
                alike[one[to_one]] = self.first_evaluation[two[to_one]]
                alike[two[to_two]] = self.first_evaluation[one[to_two]]
        return root, alike

    def _verified(self, signatures: Any, one: Any, two: Any) -> Any:
        """Which pairs of signatures are alike by the estimate from all their hashes."""
        np, threshold = self.np, self.seen._threshold
        alike = np.zeros(len(one), dtype=bool)
        for start in range(0, len(one), PAIRS_AT_ONCE):
            piece = slice(start, start + PAIRS_AT_ONCE)
            equal = signatures[one[piece]] == signatures[two[piece]]
            whole, prompt, answer = (_jaccard(part.mean(axis=1)) for part in np.split(equal, [HASHES, HASHES + PART_HASHES], axis=1))
            alike[piece] = (whole >= threshold) & (np.minimum(prompt, answer) >= threshold - PART_SLACK)
        return alike


def _jaccard(share: Any) -> Any:
    """The similarity that a share of equal 8-bit hashes stands for (Li and König 2010, for sets that are small beside all words)."""
    return (share - CHANCE) / (1 - CHANCE)


def _join(np: Any, root: Any, one: Any, two: Any) -> None:
    """Union-find over arrays: make each pair one group; the root of a group is its smallest number."""
    while True:
        first, second = root[one], root[two]
        apart = first != second
        if not apart.any():
            return
        one, two = one[apart], two[apart]
        np.minimum.at(root, np.maximum(first, second)[apart], np.minimum(first, second)[apart])
        while ((above := root[root]) != root).any():
            root[:] = above


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little") or 1


_NONE, _EMPTY = 0, _hash("")


def _words(text: str) -> list[str]:
    text = text.casefold()
    if text.isascii():  # the same as by _WORD, four times as fast
        return text.translate(_PUNCTUATION).split()
    return _WORD.findall(text.encode(errors="replace").decode())  # half of a surrogate pair, which JSON allows, is no UTF-8


def _shingles(text: str) -> list[str]:
    """The words and the pairs of neighbouring words of a text, repeated ones too."""
    words = _words(text)
    return [*words, *map(" ".join, pairwise(words))]


def _parts(text: str, answer: str | None, common: Set[str]) -> tuple[list[str], list[str], list[str]]:
    """The shingles of a row, of its prompt and of its answer. What is common is the template's only where it is not in the answer."""
    whole, learned = _shingles(text), _shingles(answer or "")
    known = set(learned)
    prompt = [shingle for shingle in whole if shingle not in common and shingle not in known]
    return prompt + learned, prompt or [""], learned or [""]


def _common_shingles(texts: set[str]) -> set[str]:
    """What stands in so many of the first rows that it tells nothing about one of them: the template, a system prompt."""
    counts = Counter(shingle for text in texts for shingle in set(_shingles(text)))
    least = max(COMMON_ROWS, COMMON_SHARE * len(texts))
    return {shingle for shingle, count in counts.items() if count >= least}


def _own_start(text: str, common: set[str]) -> int:
    """Where a text says something of its own, so that an example does not show the template; 0 where it never does."""
    before, start = "", 0
    for found in _WORD.finditer(text):
        word = found.group().casefold()
        if word not in common:
            return found.start()
        if before and f"{before} {word}" not in common:
            return start
        before, start = word, found.start()
    return 0


def _cut(text: str) -> str:
    """The beginning of a text, of at most EXCERPT_BYTES bytes."""
    raw = text[: EXCERPT_BYTES + 1].encode(errors="replace")
    if len(raw) <= EXCERPT_BYTES:
        return raw.decode()
    return raw[: EXCERPT_BYTES - 3].decode(errors="ignore").rstrip() + "…"
