"""Tiny models, tokenizers and data, made here: nothing is downloaded, and every run takes a second or two."""

from __future__ import annotations

SENTENCES = [
    "The fox lives in a den. The owl eats seeds! Who is there? Nobody knows.",
    "### Instruction: say it\n### Response: hello world",
    "USER: hi ASSISTANT: hello",
]


def make_tokenizer(chat_template: str | None = None):
    """A byte-level BPE tokenizer with <s>, </s>, <pad> and the marks of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        SENTENCES * 20,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = chat_template
    return tokenizer


def make_other_tokenizer(kind: str):
    """The other shapes of tokenizers: `tiktoken` (Llama 3, Qwen: a mark takes the new lines behind it), `sentencepiece` (Llama 2: a space
    before the text, no word boundaries, bytes for what is unknown), `metaspace` (T5, Mistral: the same with word boundaries)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    texts = [text + "\n\n" + text + "\n" for text in SENTENCES]
    if kind == "tiktoken":
        core = Tokenizer(models.BPE())
        words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(words), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        bytes_ = [f"<0x{n:02X}>" for n in range(256)]
        special += bytes_
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)  # the merges are learned within words
        core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        alphabet = []
        texts = [text.replace("\n", " ") for text in texts]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(texts * 20, trainer)
    if kind == "sentencepiece":
        core.pre_tokenizer = None
        core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(tokenizer, folder):
    """As a file that transformers 4 reads too: 5 writes names that 4 does not know."""
    import json

    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config), encoding="utf-8")


def make_llama(vocabulary: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def make_gpt2(vocabulary: int):
    """An architecture without q_proj, whose layers are transposed Conv1D."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2))


ROWS = [{"instruction": f"say {n}", "output": f"hello {n} world"} for n in range(40)]
CHATS = [{"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"hello {n}"}]} for n in range(20)]


def mean_loss(model, dataset):
    """A brute-force loss per trained token, without the trainer."""
    import torch
    from training_pro.dataset_tools import Collator

    total, count = 0.0, 0
    with torch.no_grad():
        for row in dataset:
            batch = Collator(0)([row])
            found = model(input_ids=batch["input_ids"]).logits[0, :-1].float()
            labels = batch["labels"][0, 1:]
            total += float(torch.nn.functional.cross_entropy(found, labels, ignore_index=-100, reduction="sum"))
            count += int((labels != -100).sum())
    return total / count
