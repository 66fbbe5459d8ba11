"""Make the embedded demo base model: `python demo/make_demo.py [--steps 2600]`.

The text comes from the little grammar in world.py, in three dresses: tales, chats in the model's own template, and the alpaca
format. A byte-level BPE tokenizer is trained on it, then a Llama of about a million parameters from random weights. The result
goes to demo/model. Seeded; 14 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from world import babble, questions, tale

HERE = Path(__file__).resolve().parent
VOCABULARY, CONTEXT = 1536, 512
WINDOW, BATCH, RATE = 256, 16, 2e-3
BOS, EOS, PAD, START, END = "<|begin|>", "<|end_of_text|>", "<|pad|>", "<|turn|>", "<|end_of_turn|>"

# ChatML's shape: each message is a turn, and what was said before never changes when more follows.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end_of_turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
ALPACA = json.loads((HERE.parent / "formats" / "alpaca-format.json").read_text(encoding="utf-8"))["instruction,output"]


def documents(random: Random):
    """Texts without end: a third chats, a third alpaca, the rest tales and babble; some questions are babble too."""

    def asked_and_said() -> tuple[str, str]:
        return (babble(random), babble(random)) if random.random() < 0.08 else questions(random)

    while True:
        kind = random.random()
        if kind < 0.18:
            yield f"{BOS}{tale(random)}{EOS}"
        elif kind < 0.36:
            yield f"{BOS}{babble(random)}{EOS}"
        elif kind < 0.68:
            system = f"{START}system\nYou answer questions about the animals.{END}\n" if random.random() < 0.2 else ""
            turns = [asked_and_said() for _ in range(random.choice([1, 1, 2, 3]))]
            yield BOS + system + "".join(f"{START}user\n{asked}{END}\n{START}assistant\n{said}{END}\n" for asked, said in turns) + EOS
        else:
            asked, said = asked_and_said()
            yield BOS + ALPACA.replace("%instruction%", asked).replace("%output%", said) + EOS


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, BOS, EOS, START, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, additional_special_tokens=[START, END],
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    # Widths are multiples of 64, so that the 4-bit blocks of BitsAndBytes fit.
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, stream: torch.Tensor, steps: int) -> None:
    """AdamW with warmup and a cosine, on random windows of the token stream."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    model.train()
    began = time.time()
    for step in range(steps):
        share = min(step / 100, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        starts = torch.randint(len(stream) - WINDOW, (BATCH,), generator=generator)
        batch = torch.stack([stream[start : start + WINDOW] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5} loss {loss.item():.4f} {time.time() - began:6.0f} s", flush=True)


def samples(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.eval()
    asked = [BOS + "Once", BOS + ALPACA.replace("%instruction%", "Where does the fox live?").replace("%output%", "")]
    asked.append(
        tokenizer.apply_chat_template([{"role": "user", "content": "Tell me a tale about the owl."}], tokenize=False, add_generation_prompt=True)
    )
    for text in asked:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=90, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        print(repr(tokenizer.decode(out[0, ids.shape[1] :])), flush=True)


def readable_by_older_transformers(path: Path) -> None:
    """transformers 5 writes names that 4 does not know; both read the older ones."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["additional_special_tokens"] = config.pop("extra_special_tokens", [START, END])
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=HERE / "model")
    options = parser.parse_args()

    torch.manual_seed(0)
    random = Random(0)
    source = documents(random)
    texts = [next(source) for _ in range(options.documents)]
    tokenizer = make_tokenizer(texts[:10_000])
    stream = torch.tensor([token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids])
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} tokens", flush=True)
    train(model, stream, options.steps)
    samples(model, tokenizer)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.half().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    readable_by_older_transformers(options.out / "tokenizer_config.json")
    print(f"{sum(file.stat().st_size for file in options.out.iterdir()) / 2**20:.2f} MB in {options.out.name}")


if __name__ == "__main__":
    main()
