"""Where the sentences of a text are, for text of any language or of several: prose, dialogue, lists, code.

A sentence ends behind a mark that is followed by space and by what can begin a sentence, at an empty line, and before and behind a line
that stands for itself (an item of a list, a heading, a row of a table, a line of code). Where it is in doubt, it goes on.

The rules are our own because none of 19 segmenters of PyPI was right as often, and the ones nearest take far longer. Measured on 21 November 2026 by
benchmarks/sentences.py in one run: MB/s of English prose; right of the 147 cases of tests/test_sentences.py, which these rules were made for; right of 55 others.
Ours 26.6, 147, 51 (48 at the first look). yasbd-lib 1.0.4: 0.5, 116, 46. sentencesplit 0.1.0: 0.14, 99, 41. sentencex 1.0.32: 144.7, 91, 42, the one to take
where speed counts most. choppa-srx 1.0.0: 0.47, 88, 44. pysbd 0.3.4: 0.22, 86, 35. icu4py 1.2.0: 111.8, 79, 26. blingfire 0.1.8 (of 2021): 18.0, 76, 36.
"""

from __future__ import annotations

import re

# Words written with a dot in English, German, French, Spanish and Italian, and a few of their neighbours; compared in lower case.

# Written with a capital and followed by a name: the dot never ends a sentence.
_TITLES = frozenset(
    """
    mr mrs ms mx dr prof rev hon gen col lt sgt capt cmdr maj cpl pvt adm gov sen rep pres supt insp messrs
    hr fr frl fa dipl ing mag
    m mm mme mmes mlle mlles mgr
    sra srta dra profa gral lic sto sta
    sig sigg dott avv geom rag mons egr gent spett
    dhr mevr
    """.split()
)
# Something always follows.
_GO_ON = frozenset(
    """
    e.g i.e vs viz cf approx incl excl
    z.b d.h bzw evtl ggf inkl exkl zzgl abzgl vgl sog bspw mio mrd geb gest verh insb insbes v.a m.e med phil rer jur
    p.ex env c.-à-d c.à.d av apr
    p.ej ej p.es
    bijv d.w.z
    """.split()
)
# A number follows, or the word is an ordinary one.
_BEFORE_NUMBERS = frozenset(
    """
    no nos nr nrs art arts fig figs eq eqs vol vols ch chap chaps sec secs sect pp para paras pt pts ver app tab ext tel est ed abs
    jan feb mar jun jul aug sep sept oct nov dec okt dez janv févr avr juil déc ene abr ago dic gen mag giu lug ott
    abb bd bde kap str lit anm núm pág págs cap pag pagg min max ca circa
    """.split()
)
# The dot may end a sentence, and does where a word follows that does nothing but begin one. So it is with initials.
_EITHER = frozenset(
    """
    st ste mt ft jr sr esq inc ltd co corp bros llc plc dept univ assn al ave blvd rd sq hwy apt
    prof dott sig bzgl allg kg chr bd boul ud uds vd vds ee uu avda
    """.split()
)
# A German number with a dot behind one of these says which: “das 3. Tor”.
_BEFORE_ORDINALS = frozenset(
    "der die das dem den des am im vom zum beim bis ins zur jeder jede jedem jeden jedes ein eine einem einen einer und".split()
)
_STARTERS = frozenset(
    """
    the he she it they we you i this that these those there here then but and or so if when while what why who where how in on at for from with as by
    after before his her its their our my your however although because since not no yes now once some many most all both each every another today
    yesterday tomorrow later finally meanwhile nobody everyone did does do is are was were has have had
    der die das er sie es wir ihr ich dann aber und oder wenn als wo wie warum wer hier dort ein eine einen einem einer im am auf mit nach nun doch
    danach dieser diese dieses seine ihre niemand alle heute gestern später trotzdem deshalb auch nur
    il elle ils elles nous vous je tu les une cette ces mais puis ensuite alors quand dans pour avec ses leur leurs personne
    él ella ellos ellas yo una este esta esto pero luego entonces después cuando nadie hoy ayer también todos
    lui lei loro noi voi gli questo questa ma poi dopo allora nessuno oggi ieri anche tutti era
    """.split()
)

_CLOSERS = "\"'”’“‘»«›‹)\\]}」』）】〉》*_"
_OPENERS = "\"'“‘”„‚«»‹›(\\[{¿¡「『（【〈《*_—–-"
_WIDE = "。！？｡．"  # of scripts that put no space behind a sentence
_CJK = "\u3040-\u30ff\u3400-\u9fff"
_SPACE = r"[^\S\n]"  # on a line
_END = r"(?=\n|\Z)"  # of a line
_FACE = r"(?:[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55\ufe0f\u200d]|[:;]-?[()DP](?!\S))"
_MONTHS = "Januar|Jänner|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember|Jan|Feb|Apr|Jun|Jul|Aug|Sept?|Okt|Nov|Dez"

# Four small letters before a dot are a word that ends a sentence, unless they are the last ones of an abbreviation.
_LONG_ONES = "|".join(sorted({word[-4:] for word in _TITLES | _GO_ON | _EITHER if len(word) > 3 and word.isalpha()}))

# A line that is a sentence by itself: heading, fence, row of a table, rule, mark of a chat template.
_LINE = rf"{_SPACE}*(?=\S)(?:\#{{1,6}}{_SPACE}+\S|```|~~~|\||(?:={{3,}}|-{{3,}}|\*{{3,}}|_{{3,}}){_SPACE}*{_END}|<\|)[^\n]*"

# A line that begins a sentence, whatever ended the one before it.
_ITEM = rf"""{_SPACE}*(?=\S)(?:
    [-*+•·‣⁃◦▪●○■□►▶✓✔✅☑❌👉]\ufe0f?\s
  | [–—]\s?[{_OPENERS}]*[A-ZÀ-Þ]                                  # somebody speaks
  | \(?\d{{1,3}}(?:\.\d{{1,3}})*[.)]{_SPACE}+(?!(?:{_MONTHS})\b)\S
  | \(?[a-zA-Z]\){_SPACE}
  | (?:[A-Z][A-Z .]{{1,30}}|User|Assistant|System|Human|Bot|AI|Q|A|Question|Answer|Instruction|Input|Output|Response):(?!\S)
)"""

# A line of code. Three words in a row are prose.
_CODE = rf"""{_SPACE}*(?=\S)(?:
    @[\w.]+(?:\([^\n]*\))?{_END} | //[ /!] | /\* | \*/ | [}}\])] | >>>[ ] | \$[ ][a-z] | \#(?:!|include|define|if|endif|pragma)
  | </?(?:p|div|ul|ol|li|h[1-6]|table|tr|td|th|section|html|head|body|script|style|pre|br|hr)\b
  | (?:for[ ][\w, ]{{1,60}}[ ]in[ ][^\n]+|(?:if|elif|while|with|except|match|case)[ ][^\n]+|else|try|finally):\n(?:{_SPACE}{{2}}|\t)
  | from[ ][\w.]+[ ]import[ ] | import[ ][\w.]+(?:[ ]as[ ]\w+)?;?{_END}
  | (?![^\n]*[a-z]{{2}}[ ][a-z]{{2,}}[ ][a-z]{{2,}})(?:
        (?:async[ ])?(?:def|class|fn|func|function)[ ]\w[^\n]*[:{{(]{_END}
      | (?:\w+[ ]){{0,2}}[\w.]+(?:\[[^\]\n]*\])?(?:[ ][-+*/|&:]?=[ ]|=)[^\s=]
      | [\w.]+\([^\n]*\)[;,]?{_END}
      | (?:return|raise|yield|pass|break|continue|assert)\b[^\n]*[\w)\]"';]{_END}
    )
)"""

# Every place where a sentence may end. The first character is looked for on its own, which `re` does fastest, and says which branch to take.
# A run of marks is taken whole also where it ends nothing: begun anew at each of its marks, a long one would cost its square.
_PLACE = re.compile(
    rf"""
    [\n.!?…‽؟۔।॥։።။{_WIDE}]
    (?: (?: (?<=[!?]) | (?<=[a-z]{{4}}\.)(?<!(?:{_LONG_ONES})\.)["”]? )
            (?=[ \n]["“]?(?:[A-Z][a-z]|[AIO][ '’]))(?P<plain>)  # most of prose, and nothing more to look at
      | (?<=\n)
            (?: \s*(?=\n)(?P<gap>)                        # an empty line
              | (?P<line>{_LINE})
              | (?=(?:{_ITEM})|(?:{_CODE}))(?P<item>)
              | (?: (?<=[{{}}]\n) | (?<=[)\]"'];\n) | (?<=[:(\[]\n)(?=(?:{_SPACE}{{2}}|\t){_SPACE}*\S) )(?P<code>) )
      | (?<=[{_WIDE}]) [{_WIDE}!?…]*
            (?: (?<=．)(?=\d)                             # a decimal
              | (?<=[！？])[）)\]】》〉](?=[^\s{_WIDE}])    # 他（真的吗？）走了。
              | [{_CLOSERS}]+ (?: (?=と|って)              # 「はい。」と言った。
                                | (?=[^\s，。！？]{{0,8}}(?:[说說问問喊叫答]|(?<!知)道)[道着]?[，。！,]) )
              | [{_CLOSERS}]*(?P<wide>) )
      | (?<!\n)(?!\w) [.!?…‽؟۔।॥։።။]* (?:[ \u00a0][.!?…]+(?!\S))*
            (?P<closers>(?:[{_CLOSERS}]|\[\d{{1,3}}\]|[¹²³⁰-⁹])*) (?:[ \u00a0\u202f][»›](?![^\s.,;:!?…)]))? (?:{_SPACE}*{_FACE})*
            (?: (?= (?P<space>\s+) (?:[{_OPENERS}]+\s*)? (?P<next>[^\sa-z,;:%)\]}}{_OPENERS}]|[a-z](?=[A-Z])) )
              | (?<=[!?])(?=[{_CJK}])(?P<joined_behind>) )?
      | (?<=[!?])(?=[{_CJK}])(?P<joined>)                # 真的吗?我不信!
    )
    """,
    re.VERBOSE,
)
_BEHIND_MARK = frozenset({"wide", "joined", "joined_behind"})
_AT_NEWLINE = frozenset({"gap", "line", "item", "code"})
_FIRST_LINE = re.compile(_LINE, re.VERBOSE)
_SPACES = re.compile(r"\s*")

# What the closer look at a mark needs.
_LOOK_BACK = 40  # characters: more than the longest abbreviation and what tells of it
_FIRST_WORD = re.compile(r"\w{1,12}\b(?!\.)")
_LAST_WORD = re.compile(r"(?:.*[\s—–(\[/{\"'’“‘„”«‹¿¡*_])?(.*)", re.DOTALL)
_INITIALS = re.compile(r"[^\W\d_]|(?:[^\W\d_]{1,2}\.-?)+[^\W\d_]{1,3}")  # J or U.S or Ph.D or J.-C, without the last dot
_NUMBERED = re.compile(r"\d{1,3}(?:\.\d{1,3})*|[a-zA-Z]|[IVXLC]+")
_SPACED = ("z.b", "d.h", "m.e", "v.a", "i.e", "e.g", "p.ex", "parex", "p.ej", "peres", "ades", "c.àd")  # something follows: “z. B.”
_SPACED_ENDS = frozenset("b h e a g ex ej es d".split())
_NUMBER = re.compile(r"[\d#§]|[IVXLC]{2,}\b|[VX]\b")
_MONTH = re.compile(rf"(?:{_MONTHS})\b")
_I = re.compile(r"I\b")
_KNOWN = _TITLES | _GO_ON | _BEFORE_NUMBERS | _EITHER | {"ex", "es"}
_SAID = re.compile(
    r"""
    (?!(?:He|She|They|We|You|It|The|Then|And|But|So)\b)
    (?:I|(?:(?:Mr|Mrs|Ms|Dr)\.\s)?[A-ZÀ-Þ][\w'’-]*(?:\s[A-ZÀ-Þ][\w'’-]*)?)
    \s(?:said|asked|cried|replied|shouted|whispered|answered|yelled|called|muttered|murmured|screamed|exclaimed|added|repeated|demanded)\b
    """,
    re.VERBOSE,
)


def sentence_spans(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """(start, end) of each sentence of `text[start:end]`, in order, without the white space between them.

    Every other character is in exactly one of them. No sentence goes over an empty line and nothing behind one decides what is before it,
    so that a long text can be taken in windows that end with one. The time taken grows with the length of the text, whatever it holds.
    """
    spans: list[tuple[int, int]] = []
    begin = _SPACES.match(text, start, end).end()  # of the sentence: never white space
    if line := _FIRST_LINE.match(text, start, end):
        start = line.end()
        begin = _add(spans, text, begin, start, end)
    for match in _PLACE.finditer(text, start, end):
        kind = match.lastgroup
        if kind == "plain":
            place = match.end()
            spans.append((begin, place))
            begin = place + 1
        elif kind == "next":
            if _ends_sentence(text, begin, match, end):
                spans.append((begin, match.end()))
                begin = match.end("space")
        elif kind in _AT_NEWLINE:
            begin = _add(spans, text, begin, match.start(), end)
            if kind == "line":
                begin = _add(spans, text, begin, match.end(), end)
        elif kind in _BEHIND_MARK:
            place = match.end()
            spans.append((begin, place))
            begin = _SPACES.match(text, place, end).end()
    _add(spans, text, begin, end, end)
    return spans


def _add(spans: list[tuple[int, int]], text: str, begin: int, place: int, end: int) -> int:
    """Add what stands before `place`, if anything does, and return where the next sentence begins."""
    if begin < place:
        spans.append((begin, begin + len(text[begin:place].rstrip())))
        begin = _SPACES.match(text, place, end).end()
    return begin


def _ends_sentence(text: str, begin: int, match: re.Match[str], end: int) -> bool:
    """Whether a mark does that has space behind it and no small letter of ASCII."""
    first, after = match.start(), match.start("next")
    following, closers = text[after], match["closers"]
    if not following.isascii() and following.islower():
        return False
    if text[first] != "." or match.start("closers") - first > 1:
        if text[first] in ".…" and _I.match(text, after, end):
            return False  # “Well… I don't know”: a capital in any case
        return not closers or not _SAID.match(text, after, end)
    head = max(begin, first - _LOOK_BACK)
    before = text[head:first]
    word = before.rpartition(" ")[2]
    if len(word) > 1 and word.isalpha() and not word.isupper() and word.lower() not in _KNOWN and word[-3:] != "str":
        return True
    word = _LAST_WORD.fullmatch(before)[1]
    return not word or not _goes_on(text, before, word, head == begin, after, end)


def _goes_on(text: str, before: str, word: str, is_start: bool, after: int, end: int) -> bool:
    """Whether a sentence goes on behind a dot and a space: for what stands `before` the dot, of which `word` is the last, and `after` the space."""
    lower = word.lower()
    if (
        lower in _GO_ON
        or (lower in _TITLES and word[0].isupper())
        or (lower in _SPACED_ENDS and "".join(before[-8:].split()).lower().endswith(_SPACED))
    ):
        return True
    rest = before[: len(before) - len(word)]
    if _NUMBERED.fullmatch(word) and _begins_line(rest, is_start):
        return True  # the number of an item
    if word.isdecimal():
        if _MONTH.match(text, after, end):
            return len(word) < 3
        last = rest.split()[-1:]
        says_which = len(word) < 4 and last != [] and last[0].lower() in _BEFORE_ORDINALS and not rest.endswith("I am ")
        return says_which and not _only_begins(text, after, end)
    if (lower in _BEFORE_NUMBERS or lower.endswith("str")) and _NUMBER.match(text, after, end):
        return True
    if lower in _EITHER or (lower != word.upper() and _INITIALS.fullmatch(word)):
        return not _only_begins(text, after, end)
    return False


def _only_begins(text: str, after: int, end: int) -> bool:
    word = _FIRST_WORD.match(text, after, end)
    return word is not None and word[0].lower() in _STARTERS


def _begins_line(rest: str, is_start: bool) -> bool:
    rest = rest.rstrip(" \t(")
    return rest.endswith("\n") or (is_start and not rest)
