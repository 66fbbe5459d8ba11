import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_gpt2, make_llama
from training_pro.perplexity import Perplexity, encode, perplexity, perplexity_of_blocks, windows


def brute_force(model, ids, stride, max_length):
    """Each token scored once, from a whole forward pass of its window."""
    total, scored, done = 0.0, 0, 1
    with torch.no_grad():
        for begin in range(0, len(ids), stride):
            end = min(begin + max_length, len(ids))
            found = torch.log_softmax(model(torch.tensor([ids[begin:end]])).logits[0].double(), -1)
            for place in range(max(done, begin + 1), end):
                total -= float(found[place - begin - 1, ids[place]])
                scored += 1
            done = max(done, end)
            if end == len(ids):
                break
    return math.exp(total / scored), scored, total


def brute_force_of_blocks(model, blocks):
    """Each block by itself, every label but the first from a whole forward pass."""
    total, scored = 0.0, 0
    with torch.no_grad():
        for block in blocks:
            found = torch.log_softmax(model(torch.tensor([block["input_ids"]])).logits[0].double(), -1)
            for place, label in enumerate(block["labels"]):
                if place and label != -100:
                    total -= float(found[place - 1, label])
                    scored += 1
    return math.exp(total / scored), scored, total


def same(found, wanted):
    value, scored, nll = wanted
    assert (found.value, found.scored_tokens, found.nll) == (pytest.approx(value, rel=1e-5), scored, pytest.approx(nll, rel=1e-5))


def tokens(length, seed=3, vocabulary=200):
    return torch.randint(5, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def louder(model):
    """Logits of a trained model's size: those of fresh weights are near zero, where a forgotten cap or scale would not show."""
    with torch.no_grad():
        for weight in {id(w): w for w in (model.get_output_embeddings().weight, model.get_input_embeddings().weight)}.values():
            weight.mul_(20)
    return model.eval()


def make_gemma2(vocabulary=200):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            max_position_embeddings=64, sliding_window=16, final_logit_softcapping=5.0, attn_implementation="eager",
        )
    )  # fmt: skip


def make_bloom():
    """Its forward does not know logits_to_keep in older transformers."""
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=200, hidden_size=32, n_layer=2, n_head=2))


class Bigram(torch.nn.Module):
    """A model whose logits are a table's rows; its head is no module, so that it is asked for logits. `asked`: the logits it was asked for."""

    def __init__(self, table, names_keep=True):
        super().__init__()
        self.table = torch.nn.Parameter(torch.as_tensor(table, dtype=torch.float32))
        self.config, self.device, self.asked = SimpleNamespace(max_position_embeddings=16), torch.device("cpu"), []
        if not names_keep:
            self.forward = self._without

    def forward(self, input_ids, attention_mask=None, use_cache=None, logits_to_keep=0):
        self.asked.append((input_ids.shape[0], logits_to_keep))
        return SimpleNamespace(logits=self.table[input_ids][:, -logits_to_keep:])

    def _without(self, input_ids):
        self.asked.append((input_ids.shape[0], None))
        return (self.table[input_ids],)


class Wrapped(torch.nn.Module):
    """Takes anything, and hands it on."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.device = model, model.config, model.device

    def forward(self, **arguments):
        return self.model(**arguments)


@pytest.mark.parametrize(
    ("length", "stride", "max_length", "batch_size"),
    [(100, 16, 32, None), (100, 32, 32, 3), (20, 5, 64, 1), (50, 1, 8, 4), (2, 1, 16, None), (9, 1, 32, None), (65, 16, 32, None)],
)
@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_against_a_brute_force(make, length, stride, max_length, batch_size):
    model, ids = louder(make(200)), tokens(length)
    same(perplexity(model, ids, stride=stride, max_length=max_length, batch_size=batch_size), brute_force(model, ids, stride, max_length))


@pytest.mark.parametrize("make", [make_gemma2, make_bloom])
def test_an_architecture_that_caps_its_logits_and_one_without_logits_to_keep(make):
    model, ids = louder(make()), tokens(70)
    same(perplexity(model, ids, stride=16, max_length=32), brute_force(model, ids, 16, 32))


@pytest.mark.parametrize("scale", ["cohere", "granite"])
def test_an_architecture_that_scales_its_logits(scale):
    import transformers

    torch.manual_seed(0)
    small = {
        "vocab_size": 200,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    if scale == "cohere":
        model = transformers.CohereForCausalLM(transformers.CohereConfig(**small, logit_scale=0.25))
    else:
        model = transformers.GraniteForCausalLM(transformers.GraniteConfig(**small, logits_scaling=3.0))
    ids = tokens(70)
    same(perplexity(louder(model), ids, stride=16, max_length=32), brute_force(model, ids, 16, 32))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(host):
    with torch.no_grad():
        host.model.lm_head.weight.zero_()
    found = perplexity(host.model, list(range(5, 60)), stride=8, max_length=16)
    assert found.value == pytest.approx(host.model.config.vocab_size, rel=1e-6) and found.scored_tokens == 54


@pytest.mark.parametrize("names_keep", [True, False])
def test_a_bigram_model_has_the_perplexity_counted_by_hand(names_keep):
    """Behind 0 comes 1 with 3/4, behind 1 comes 0 with 1/2: 0 1 0 1 0 has (4/3 · 2)² = 64/9 over 4 tokens."""
    model = Bigram([[math.log(0.25), math.log(0.75)], [math.log(0.5), math.log(0.5)]], names_keep)
    for stride, max_length in ((2, 5), (1, 2), (2, 3), (1, 4)):
        found = perplexity(model, [0, 1, 0, 1, 0], stride=stride, max_length=max_length)
        assert found.scored_tokens == 4 and found.nll == pytest.approx(math.log(64 / 9)) and found.value == pytest.approx((64 / 9) ** 0.25)


def test_only_logits_that_are_scored_are_computed():
    model = Bigram(torch.zeros(200, 200))
    perplexity(model, tokens(64), stride=4, max_length=16, batch_size=2)
    assert set(model.asked[1:]) == {(1, 16), (2, 5)}  # asked[0] is the look at what the model does
    wrapped = Wrapped(Bigram(torch.zeros(200, 200)))
    perplexity(wrapped, tokens(64), stride=4, max_length=16)
    assert {kept for _, kept in wrapped.model.asked[1:]} == {16, 5}


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_no_more_logits_at_once_than_a_chunk(make, monkeypatch):
    from training_pro import perplexity as module

    monkeypatch.setattr(module._Scorer, "_memory", lambda self: (1 << 30, 4 * 200 * 20))
    model, ids, seen = louder(make(200)), tokens(150), []
    wanted = brute_force(model, ids, 16, 32)
    hook = model.lm_head.register_forward_hook(lambda head, arguments, output: seen.append(output.shape[:-1].numel()))
    same(perplexity(model, ids, stride=16, max_length=32), wanted)
    hook.remove()
    assert max(seen) == 20 and sum(seen) < 149 + 30  # the scored ones, one more a window, and the look


@pytest.mark.parametrize("target", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_an_adapter_counts_also_one_on_the_head(target):
    from peft import LoraConfig, get_peft_model

    plain, ids = louder(make_llama(200)), tokens(100)
    before = perplexity(plain, ids, stride=16, max_length=32)
    model = get_peft_model(plain, LoraConfig(r=4, target_modules=target, init_lora_weights=False)).eval()
    found = perplexity(model, ids, stride=16, max_length=32)
    same(found, brute_force(model, ids, 16, 32))
    assert found.value != pytest.approx(before.value, rel=1e-3)
    with model.disable_adapter():
        assert perplexity(model, ids, stride=16, max_length=32).value == pytest.approx(before.value, rel=1e-6)


def test_a_head_that_is_saved_whole_and_virtual_tokens():
    from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

    ids = tokens(100)
    whole = get_peft_model(louder(make_llama(200)), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])).eval()
    with torch.no_grad():
        whole.get_output_embeddings().modules_to_save["default"].weight.mul_(0.5)
    same(perplexity(whole, ids, stride=16, max_length=32), brute_force(whole, ids, 16, 32))

    prompted = get_peft_model(louder(make_llama(200)), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)).eval()
    with torch.no_grad():
        found = torch.log_softmax(prompted(input_ids=torch.tensor([ids[:20]])).logits[0, 3:-1].double(), -1)
    nll = -float(found[torch.arange(19), torch.tensor(ids[1:20])].sum())
    assert perplexity(prompted, ids[:20], stride=8, max_length=32).nll == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_model(host, models_folder, quantization):
    host.load(str(models_folder / "llama"), quantization)
    model, ids = host.model.eval(), tokens(100)
    # Activations are rounded by the batch in 8 bits, and the model's 16-bit numbers differ with the batch.
    same_as, found = brute_force(model, ids, 16, 32), perplexity(model, ids, stride=16, max_length=32)
    assert found.value == pytest.approx(same_as[0], rel=1e-2) and found.scored_tokens == same_as[1]


@pytest.mark.parametrize("make", [make_llama, make_gemma2])
def test_half_precision_is_scored_in_32_bits(make):
    model, ids = louder(make(200)).to(torch.bfloat16), tokens(100)
    assert perplexity(model, ids, stride=16, max_length=32).value == pytest.approx(brute_force(model, ids, 16, 32)[0], rel=1e-2)


@given(st.integers(2, 300), st.integers(1, 60), st.integers(2, 80))
def test_every_token_but_the_first_is_scored_once(length, stride, max_length):
    if stride > max_length:
        return
    scored = [place for window in windows(length, stride=stride, max_length=max_length) for place in range(window.first_scored, window.end)]
    alone = set(range(0, length, stride)) if stride == max_length else {0}  # first in its window, so without context
    assert scored == [place for place in range(length) if place not in alone]
    assert all(
        window.begin < window.first_scored and window.end - window.begin <= max_length
        for window in windows(length, stride=stride, max_length=max_length)
    )


@pytest.mark.parametrize(
    ("ids", "stride", "max_length", "words"),
    [
        ([], 1, 8, "has 0 tokens"),
        ([5], 1, 8, "at least 2"),
        ([5, 6, 7], 9, 8, "between 1 and max_length"),
        ([5, 6], 0, 8, "between 1"),
        ([5, 6], 1, 1, "at least 2 tokens"),
        ([5, 6, 100000], 1, 8, "token 100000, but the model knows"),
        ([5, -100, 6], 1, 8, "token -100"),
    ],
)
def test_what_cannot_be_measured_is_said(host, ids, stride, max_length, words):
    with pytest.raises(ValueError, match=words):
        perplexity(host.model, ids, stride=stride, max_length=max_length)


def test_the_models_context_is_the_default_and_its_mode_stays(host):
    host.model.train()
    host.model.lm_head.eval()
    before = copy.deepcopy(host.model.config.to_dict())
    found = perplexity(host.model, list(range(5, 305)), stride=256, max_length=0)
    assert found.scored_tokens == 298 and host.model.training and host.model.model.layers[0].training and not host.model.lm_head.training
    assert host.model.config.to_dict() == before and all(weight.grad is None for weight in host.model.parameters())


def test_a_failure_leaves_the_model_as_it_was(host):
    host.model.train()

    def fail(scored, total):
        raise KeyError("a page that is gone")

    with pytest.raises(KeyError):
        perplexity(host.model, tokens(60), stride=8, max_length=16, progress=fail)
    head = host.model.get_output_embeddings()
    assert host.model.training and torch.is_grad_enabled() and not head._forward_hooks and not head._forward_pre_hooks


# Labels and blocks


def test_labels_choose_what_is_scored():
    model, ids = louder(make_llama(200)), tokens(100)
    for chosen in ({50, 51, 99}, set(range(0, 100, 3)), {1}):
        labels = [token if place in chosen else -100 for place, token in enumerate(ids)]
        parts = [brute_force(model, ids[:1] + ids[1 : place + 1], 1, 100)[2] - (brute_force(model, ids[:place], 1, 100)[2] if place > 1 else 0)
                 for place in sorted(chosen - {0})]  # fmt: skip
        found = perplexity(model, ids, stride=100, max_length=100, labels=labels)
        assert found.scored_tokens == len(parts) and found.nll == pytest.approx(sum(parts), rel=1e-4)
        narrow = perplexity(model, ids, stride=16, max_length=32, labels=labels)
        assert narrow.scored_tokens == len(parts)
    everything = perplexity(model, ids, stride=16, max_length=32)
    assert perplexity(model, ids, stride=16, max_length=32, labels=ids) == everything
    with pytest.raises(ValueError, match="nothing to score"):
        perplexity(model, ids, stride=16, max_length=32, labels=[-100] * 100)
    with pytest.raises(ValueError, match="99 labels for 100 tokens"):
        perplexity(model, ids, stride=16, max_length=32, labels=ids[1:])


def some_blocks(count=40):
    blocks = []
    for number in range(count):
        ids = tokens(3 + (number * 7) % 29, seed=number)
        blocks.append({"input_ids": ids, "labels": [-100] * (number % 3) + ids[number % 3 :]})
    blocks[4]["labels"] = [-100] * len(blocks[4]["labels"])
    blocks[5]["labels"][-2:] = [-100, 7]
    return blocks


@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_gemma2, make_bloom])
@pytest.mark.parametrize("batch_tokens", [None, 1, 60])
def test_blocks_against_a_brute_force_one_by_one(make, batch_tokens):
    model, blocks = louder(make() if make is make_bloom else make(200)), some_blocks()
    same(perplexity_of_blocks(model, blocks, batch_tokens=batch_tokens), brute_force_of_blocks(model, blocks))


def test_blocks_as_objects_and_as_a_dataset():
    import datasets

    model, blocks = louder(make_llama(200)), some_blocks(12)
    wanted = brute_force_of_blocks(model, blocks)
    same(perplexity_of_blocks(model, [SimpleNamespace(**block) for block in blocks]), wanted)
    same(perplexity_of_blocks(model, datasets.Dataset.from_list(blocks)), wanted)
    same(perplexity_of_blocks(model, datasets.Dataset.from_list(blocks).with_format("torch")), wanted)


def test_few_batches_of_blocks_and_little_padding():
    model, seen = Bigram(torch.zeros(200, 200)), []
    run = model.forward
    model.forward = lambda input_ids, attention_mask=None: (seen.append((input_ids.shape, attention_mask)), run(input_ids))[1]
    perplexity_of_blocks(model, some_blocks())
    padded = sum(shape.numel() for shape, _ in seen[1:])
    assert len(seen) < 10 and padded < 1.5 * sum(len(block["input_ids"]) for block in some_blocks())
    assert all(mask is None or (mask.sum(1) >= shape[1] / 2).all() for shape, mask in seen[1:])


def test_a_model_that_looks_at_the_length_gets_no_padding():
    """Rotary embeddings that are others for longer texts: a block beside a long one would be scored with the long one's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [8.0] * 16, "original_max_position_embeddings": 16}
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        rope_scaling={**rope, "factor": 4.0}, initializer_range=0.3,
    )  # fmt: skip
    model, blocks = LlamaForCausalLM(config).eval(), some_blocks()
    same(perplexity_of_blocks(model, blocks), brute_force_of_blocks(model, blocks))


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([], "nothing to score"),
        ([{"input_ids": [], "labels": []}, {"input_ids": [5], "labels": [5]}, {"input_ids": [5, 6], "labels": [5, -100]}], "nothing to score"),
        ([{"input_ids": [5, 6, 7], "labels": [5, 6]}], "Block 1 has 2 labels for 3 tokens"),
        ([{"input_ids": [5, 6], "labels": [5, 200]}], "labels name token 200, but the model's vocabulary has 200"),
    ],
)
def test_blocks_that_cannot_be_measured(blocks, words):
    with pytest.raises(ValueError, match=words):
        perplexity_of_blocks(make_llama(200), blocks)


# Progress, interrupt, memory, numbers


def test_progress_adds_up_and_an_interrupt_gives_what_was_scored():
    model, ids, said = louder(make_llama(200)), tokens(100), []
    whole = perplexity(model, ids, stride=8, max_length=16, batch_size=2, progress=lambda *step: said.append(step))
    assert not whole.partial and said[-1] == (99, 99) and said == sorted(set(said)) and {total for _, total in said} == {99}

    said.clear()
    part = perplexity(model, ids, stride=8, max_length=16, batch_size=1, progress=lambda *step: said.append(step), interrupted=lambda: len(said) == 3)
    assert part.partial and part.scored_tokens == 15 + 8 + 8 == said[-1][0]
    same(part, brute_force(model, ids[:32], 8, 16))

    none = perplexity(model, ids, stride=8, max_length=16, interrupted=lambda: True)
    assert none.partial and none.scored_tokens == 0 and math.isnan(none.value) and not none.finite
    said.clear()
    blocks = some_blocks()
    assert perplexity_of_blocks(model, blocks, batch_tokens=64, progress=lambda *step: said.append(step)).scored_tokens == said[-1][0] == said[-1][1]
    assert perplexity_of_blocks(model, blocks, interrupted=lambda: True).partial


def test_where_memory_does_not_suffice_half_as_much_goes_at_once():
    model, ids, seen = louder(make_llama(200)), tokens(200), []
    wanted, run = brute_force(model, ids, 8, 16), model.forward

    def small(input_ids, **more):
        seen.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run(input_ids, **more)

    model.forward = small
    same(perplexity(model, ids, stride=8, max_length=16, batch_size=8), wanted)
    assert [count for count in seen if count > 2] == [8, 4] and seen.count(2) >= 10

    def nothing(input_ids, **more):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.forward = nothing
    with pytest.raises(torch.cuda.OutOfMemoryError):
        perplexity(model, ids, stride=8, max_length=16)


def test_numbers_that_are_none_are_said():
    assert not perplexity(Bigram(torch.full((9, 9), math.nan)), [5, 6, 7], stride=1, max_length=4).finite
    never = torch.zeros(9, 9)
    never[:, 7] = -math.inf
    found = perplexity(Bigram(never), [5, 6, 7], stride=1, max_length=4)
    assert found.value == math.inf and found.nll == math.inf and not found.finite
    far = torch.zeros(9, 9)
    far[:, 0] = 5000.0
    assert perplexity(Bigram(far), [5, 6, 7], stride=1, max_length=4) == Perplexity(math.inf, 2, pytest.approx(10000.0))
    with torch.no_grad():
        model = make_llama(200)
        model.lm_head.weight.fill_(math.nan)
    assert math.isnan(perplexity(model, [5, 6, 7], stride=1, max_length=4).value)


# Tokens


def test_bos_stands_once_at_the_beginning(tokenizer, caplog):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 8
    plain = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, "hello world") == [1, *plain] == encode(tokenizer, "<s>hello world") == encode(tokenizer, "<s><s>hello world")
    assert encode(tokenizer, "") == [1]
    assert len(encode(tokenizer, "hello world " * 50)) > 8 and "longer than" not in caplog.text
    tokenizer.bos_token = None
    assert encode(tokenizer, "hello world") == plain and encode(tokenizer, "") == []


def test_a_window_longer_than_learned_positions_is_refused():
    ids = tokens(300)
    with pytest.raises(ValueError, match="max_length is 257; this model has positions for 256 tokens"):
        perplexity(make_gpt2(200), ids, stride=16, max_length=257)
    assert perplexity(make_gpt2(200), ids[:200], stride=16, max_length=257).scored_tokens == 199  # no window is that long
    assert perplexity(make_llama(200), ids, stride=64, max_length=290).scored_tokens == 299  # rotary: computed for any place
