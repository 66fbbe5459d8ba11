"""Text and rows for the benchmarks, from what every Python has: the help topics of `pydoc` and the docstrings of its library."""

from __future__ import annotations

import ast
import random
import sysconfig
from functools import cache
from pathlib import Path


@cache
def paragraphs() -> list[str]:
    from pydoc_data import topics

    texts = list(topics.topics.values())
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) + sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (said := ast.get_docstring(node)):
                texts.append(said)
    return [part for text in texts for part in text.split("\n\n") if part.strip()]


def text(size: int, seed: int = 1) -> str:
    """About `size` characters: paragraphs in an order drawn by chance, with a hard cut after each fiftieth."""
    chance = random.Random(seed)
    found, done = [], 0
    while done < size:
        part = chance.choice(paragraphs())
        found += [part, "\n\n\n" if len(found) % 100 == 98 else "\n\n"]
        done += len(part) + 2
    return "".join(found)


def rows(count: int, seed: int = 1) -> list[dict[str, str]]:
    """Instruction rows of about 300 characters, with a long tail."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        words = " ".join(word for _ in range(1 + chance.randrange(3)) for word in chance.choice(paragraphs()).split()[:40])
        found.append(
            {"instruction": f"Question {number}: {words[:60]}?", "input": "", "output": words[: int(chance.lognormvariate(5.2, 0.6))] or "Yes."}
        )
    return found


def tokenizer(size: int = 32_000):
    """A byte-level BPE tokenizer of so many words, learned from these texts; kept beside the benchmarks' other results."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    kept = Path(__file__).with_name("results") / f"tokenizer-{size}.json"
    if not kept.exists():
        core = Tokenizer(models.BPE())
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core.train_from_iterator(
            paragraphs(), trainers.BpeTrainer(vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet)
        )
        kept.parent.mkdir(exist_ok=True)
        core.save(str(kept))
    return PreTrainedTokenizerFast(tokenizer_file=str(kept), bos_token="<s>", eos_token="</s>", pad_token="<pad>")
