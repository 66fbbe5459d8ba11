"""The loss over some positions at a time is the model's own, to its gradient."""

import peft
import pytest
import torch
from tiny import make_gpt2, make_llama
from training_pro import chunked_loss as room
from training_pro.chunked_loss import chunked_loss, with_places


def batch_of():
    ids = torch.randint(3, 400, (3, 30), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[0, :20], labels[2] = -100, -100
    return {"input_ids": ids, "labels": labels}


def gradients(model):
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_loss_and_gradients_are_the_models_own(make, monkeypatch):
    monkeypatch.setattr(room, "CHUNK_BYTES", {"cpu": 1, "cuda": 1})  # 16 positions at a time
    model = peft.get_peft_model(make(400), peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.eval()  # no dropout, which would differ between the two
    batch = batch_of()
    model(**batch).loss.backward()
    own, expected = model(**batch).loss, gradients(model)
    losses = chunked_loss(model)
    ready = with_places(batch)
    loss = losses.sum(model, ready) / len(ready["targets"])
    loss.backward()
    assert float(loss) == pytest.approx(float(own), abs=1e-5) and len(ready["targets"]) == 9 + 29 + 1
    found = gradients(model)
    assert set(found) == set(expected) and all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)
    with torch.no_grad():  # and a caller who wants logits gets them
        assert model(batch["input_ids"]).logits.shape == (3, 30, 400)


def test_nothing_is_as_large_as_the_logits():
    """The largest tensor that is made on the way, of a vocabulary that is large beside the model."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            made = function(*arguments, **(named or {}))
            if isinstance(made, torch.Tensor) and made.dim() > 1 and "weight" not in str(function):
                self.size = max(self.size, made.shape[0] * (made.shape[1] if made.dim() > 2 else 1) if made.shape[-1] == 50_000 else 0)
            return made

    model = peft.get_peft_model(make_llama(50_000), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    ids = torch.randint(3, 50_000, (4, 200))
    losses, seen = chunked_loss(model), Largest()
    with seen:
        losses.sum(model, with_places({"input_ids": ids, "labels": ids})).backward()
    assert 0 < seen.size <= (32 << 20) // (4 * 50_000)  # positions; a batch has 800


def test_where_the_models_own_loss_is_used():
    import transformers

    model = make_llama(400)
    assert chunked_loss(model) is None and not model.lm_head._forward_pre_hooks  # its head is trained
    size = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
    capped = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**size, final_logit_softcapping=0.5)).requires_grad_(False)
    assert chunked_loss(capped) is None and not capped.lm_head._forward_pre_hooks
