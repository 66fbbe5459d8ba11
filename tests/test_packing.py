"""Packed rows: each block once, none sees another, and the loss is that of the blocks by themselves."""

from itertools import pairwise

import pytest
import torch
from tiny import make_gpt2, make_llama
from training_pro import train_utils
from training_pro.dataset_tools import prepare
from training_pro.packing import (
    FLAT,
    MASK,
    ROWS,
    CannotPack,
    PackedCollator,
    Packing,
    best_fit,
    block_mask,
    block_sizes,
    layout_of,
    noise_by_block,
    padding_share,
)
from training_pro.settings import SettingsError
from training_pro.training_run import DONE

BLOCKS = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}, {"input_ids": [4], "labels": [-100]}]


# Which blocks share a row


def test_best_fit_leaves_the_least_room():
    assert best_fit([6, 5, 3, 2], 8) == [[0, 3], [1, 2]]
    assert best_fit([8, 8], 8) == [[0], [1]]
    assert best_fit([], 8) == []


def test_each_epoch_has_every_block_once_in_as_many_rows_and_another_order():
    lengths = torch.randint(1, 100, (500,), generator=torch.Generator().manual_seed(3)).tolist()
    packing = Packing(lengths, 128, seed=42)
    epochs = [packing.of(0), packing.of(1)]
    for rows in epochs:
        assert sorted(block for row in rows for block in row) == list(range(500))
        assert max(sum(lengths[block] for block in row) for row in rows) <= 128 and len(rows) == len(packing)
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])  # other rows, not only another order of them
    assert epochs[0] == Packing(lengths, 128, seed=42).of(0) != Packing(lengths, 128, seed=7).of(0)
    assert sum(lengths) / 128 <= len(packing) < 1.05 * sum(lengths) / 128


def test_the_share_of_padding():
    assert padding_share([4, 2, 1, 1], 2, [0, 1, 2, 3]) == pytest.approx(0.2)  # 8 of 10
    assert padding_share([4, 2, 1], 2, [1, 2, 0]) == pytest.approx(1 / 8)  # the last batch is smaller
    assert padding_share([], 2, []) == 0


# Batches


def test_rows_are_filled_up_with_a_block_of_their_own():
    batch = PackedCollator(0, ROWS, multiple=4)([BLOCKS[:2], BLOCKS[2:]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, -100, -100], [-100] * 8]
    assert set(batch) == {"input_ids", "position_ids", "labels"}


def test_a_flat_batch_has_the_borders_of_its_blocks():
    batch = PackedCollator(0, FLAT, multiple=4)([BLOCKS[:2], BLOCKS[2:]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 8]
    assert (batch["cu_seq_lens_q"].dtype, batch["max_length_q"], batch["max_length_k"]) == (torch.int32, 3, 3)


def test_the_mask_lets_a_token_see_its_own_block_up_to_itself():
    seen = (block_mask(torch.tensor([[0, 1, 0, 1]]), torch.float32) == 0).int()
    assert seen.tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]
    assert PackedCollator(0, MASK, dtype=torch.bfloat16)([BLOCKS])["attention_mask"].dtype == torch.bfloat16


# The model


def make(kind):
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    if kind == "llama":
        return make_llama(400).eval()
    if kind == "gpt2":
        return make_gpt2(400).eval()
    if kind == "mistral with a window":
        return transformers.MistralForCausalLM(transformers.MistralConfig(**size, sliding_window=16)).eval()
    if kind == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**size)).eval()
    if kind == "gemma3":
        return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**size, head_dim=16, sliding_window=16)).eval()
    if kind == "falcon":
        return transformers.FalconForCausalLM(
            transformers.FalconConfig(vocab_size=400, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
        ).eval()
    return transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=400, hidden_size=64, n_layer=2, n_head=4)).eval()


def losses(model, batch):
    """Mean loss of each stretch of positions that begins with 0, from the logits."""
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits[:, :-1].float()
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], ignore_index=-100, reduction="none")
    found = []
    for row, positions in enumerate(batch["position_ids"]):
        edges = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
        for begin, end in pairwise(edges):
            wanted = batch["labels"][row, begin:end] != -100
            if wanted.any():
                found.append(float(each[row, begin - 1 if begin else 0 : end - 1][wanted if begin else wanted[1:]].mean()))
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral with a window", "qwen2", "gemma3", "falcon"])
def test_the_loss_of_every_block_is_that_of_the_block_by_itself(kind):
    model, chance = make(kind), torch.Generator().manual_seed(5)
    blocks = []
    for size in (40, 9, 23, 31, 2, 17, 28):
        ids = torch.randint(3, 400, (size,), generator=chance).tolist()
        blocks.append({"input_ids": ids, "labels": [-100, *ids[1:]] if size != 23 else [-100] * 12 + ids[12:]})
    with torch.no_grad():
        alone = [
            float(
                torch.nn.functional.cross_entropy(model(torch.tensor([each["input_ids"]])).logits[0, :-1].float(), torch.tensor(each["labels"][1:]))
            )
            for each in blocks
        ]
    layout = layout_of(model, 128)
    for tried in dict.fromkeys([layout, FLAT if layout == ROWS else layout]):  # FLAT's batch without the kernels that it is for
        batch = PackedCollator(0, tried, 8, torch.float32)([blocks[:3], blocks[3:]])
        assert losses(model, batch) == pytest.approx(alone, abs=1e-4)
    if kind in ("llama", "gpt2"):  # the loss that the trainer uses, weighted by tokens
        batch = PackedCollator(0, layout)([blocks])
        count = sum(label != -100 for each in blocks for label in each["labels"])
        whole = sum(loss * sum(label != -100 for label in each["labels"]) for loss, each in zip(alone, blocks, strict=True)) / count
        assert float(model(**batch, use_cache=False).loss) == pytest.approx(whole, abs=1e-4)


def test_a_model_that_lets_blocks_see_each_other_is_refused():
    model = make("bloom").train()
    with pytest.raises(CannotPack, match=r"BloomForCausalLM with eager attention does not keep blocks of one row apart \(by positions: a block sees"):
        layout_of(model, 128)
    assert model.training


def test_noise_is_measured_by_the_block_and_only_in_training():
    assert block_sizes(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])).tolist() == [[3, 3, 3, 2, 2], [1, 4, 4, 4, 4]]
    model = make_llama(400).train()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda *passed: seen.append(passed[-1].detach()), prepend=True)
    noise_by_block(model, 5.0)
    model.model.layers[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach()))
    ids, positions = torch.randint(3, 400, (1, 104)), torch.tensor([[*range(100), *range(4)]])
    model(input_ids=ids, position_ids=positions, use_cache=False)
    noise = (seen[1] - seen[0]).abs()[0]
    assert noise[:100].max() <= 5 / (100 * 64) ** 0.5 < noise[100:].max() <= 5 / (4 * 64) ** 0.5
    model.eval()(input_ids=ids, position_ids=positions)
    assert torch.equal(seen[2], seen[3])


# Runs


def run_of(settings, host):
    return train_utils.train(settings, host, train_utils.begin(settings, host))


def test_a_packed_run_logs_the_mean_over_the_tokens_of_each_optimizer_step(host, settings):
    still = {"learning_rate": "1e-12", "lora_dropout": 0, "cutoff_len": 64, "micro_batch_size": 2, "eval_dataset": "held", "eval_steps": 100}
    plain = run_of(settings(lora_name="plain", **still), host)
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    chosen = settings(packing=True, grad_accumulation=2, group_by_length=True, **still)
    prepared = prepare(chosen, host.tokenizer, host)
    run = run_of(chosen, host)
    assert run.status == DONE, run.message
    assert all(torch.equal(value, before[name]) for name, value in host.model.state_dict().items()) and host.model.config.use_cache

    rows = prepared.packing.of(0)
    assert run.report.packed_rows == len(rows) < 20 and run.total_steps == run.report.steps_per_epoch == -(-len(rows) // 2)
    assert any("changes nothing with Packing" in notice for notice in run.notices)
    expected = []
    for first in range(0, len(rows), 4):
        total = count = 0
        for block in (block for row in rows[first : first + 4] for block in row):
            ids, labels = (torch.tensor([prepared.train[block][name]]) for name in ("input_ids", "labels"))
            logits = host.model(ids).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum"))
            count += int((labels[0, 1:] != -100).sum())
        expected.append(total / count)
    assert [entry["loss"] for entry in run.graph()] == pytest.approx(expected, abs=1e-4)
    assert run.eval_loss == pytest.approx(plain.eval_loss, abs=1e-5)


def test_packed_runs_learn_with_noise_and_are_refused_with_the_reason(host, settings, models_folder):
    run = run_of(settings(packing=True, neft_noise_alpha=5, epochs=6, cutoff_len=64, learning_rate="2e-2"), host)
    assert run.status == DONE and run.graph()[-1]["loss"] < run.graph()[0]["loss"] * 0.98, run.message
    host._model = make("bloom")
    host._model.config._name_or_path = str(models_folder / "llama")
    with pytest.raises(SettingsError, match=r"Packing cannot be used here: BloomForCausalLM .* Untick it"):
        train_utils.begin(settings(lora_name="two", packing=True, training_projection="all-linear"), host)


def test_a_run_learns_the_same_in_every_layout(host, settings, monkeypatch):
    """FlashAttention needs a card; its batches, one row with the borders, are trained here by the attention that is here."""
    graphs = []
    for layout in (ROWS, FLAT, MASK):
        monkeypatch.setattr(train_utils, "layout_of", lambda model, capacity, layout=layout: layout)
        chosen = settings(lora_name=layout, packing=True, cutoff_len=64, lora_dropout=0, micro_batch_size=2, use_grad_checkpoint=layout == ROWS)
        run = run_of(chosen, host)
        assert run.status == DONE, run.message
        graphs.append([entry["loss"] for entry in run.graph()])
    assert len(graphs[0]) == -(-run.report.packed_rows // 2)
    assert graphs[1] == pytest.approx(graphs[0], abs=1e-4) and graphs[2] == pytest.approx(graphs[0], abs=1e-4)
