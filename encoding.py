"""Texts → token ids, by a tokenizer's fast backend where it has one."""

from __future__ import annotations

from typing import Any


class Encoder:
    """Tokenizes without the tokenizer's own BOS and EOS, uncut and unpadded; the tokenizer is only called, never changed."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.backend = _backend(tokenizer)

    def ids(self, texts: list[str]) -> list[list[int]]:
        if self.backend is None:
            return tokens_of(self.tokenizer, texts)
        if len(texts) == 1:  # a batch is spread over threads, which costs more than a word
            return [self.backend.encode(texts[0], add_special_tokens=False).ids]
        return [found.ids for found in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def ids_and_starts(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """The ids of each text, and the character where each token starts."""
        if self.backend is None:
            return [(ids, self._starts_by_prefix(ids, text)) for ids, text in zip(tokens_of(self.tokenizer, texts), texts, strict=True)]
        return [(found.ids, [start for start, _ in found.offsets]) for found in self.backend.encode_batch(texts, add_special_tokens=False)]

    def _starts_by_prefix(self, ids: list[int], text: str) -> list[int]:
        """By the length of what the ids before a token decode to."""
        decode = self.tokenizer.decode
        return [min(len(decode(ids[:n], clean_up_tokenization_spaces=False)), len(text)) for n in range(len(ids))]


def tokens_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text without the tokenizer's own BOS and EOS, by the tokenizer itself."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _backend(tokenizer: Any) -> Any:
    """The tokenizer's backend of the library `tokenizers`, if it has one."""
    if not getattr(tokenizer, "is_fast", False) or not hasattr(tokenizer, "backend_tokenizer"):
        return None
    backend = tokenizer.backend_tokenizer
    if not hasattr(backend, "encode_batch_fast"):
        return None
    if backend.truncation is not None or backend.padding is not None:  # left from another call; the host may be using it
        backend = type(backend).from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    return backend
