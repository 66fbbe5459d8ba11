import random

import pytest
import torch
from training_pro.untouched import Changed, random_state_kept, tensor_cores_used, untouched

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.clone()


def test_what_peft_does_is_undone_to_the_bit(host):
    import peft

    model = host.model
    before, modules = logits(model), {name: type(module) for name, module in model.named_modules()}
    with untouched(model):
        lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        lora.train()
        model.config.use_cache = False
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        model.model.forward = lambda *_, **__: None
        assert any(parameter.requires_grad for parameter in lora.parameters())
    assert torch.equal(logits(model), before)
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert not model.training and not hasattr(model, "peft_config") and model.config.use_cache
    assert not model.is_gradient_checkpointing and not model.get_input_embeddings()._forward_hooks


def test_it_is_undone_after_an_error_too(host):
    before = logits(host.model)
    with pytest.raises(RuntimeError, match="in the middle"), untouched(host.model):
        host.model.lm_head = torch.nn.Linear(64, 3)
        host.model.train()
        raise RuntimeError("in the middle")
    assert torch.equal(logits(host.model), before) and not host.model.training


def test_casts_are_undone_exactly(host):
    host.model.to(torch.bfloat16)
    before = logits(host.model)
    with untouched(host.model):
        for parameter in host.model.parameters():
            parameter.data = parameter.data.to(torch.float32)
    assert host.model.dtype == torch.bfloat16 and torch.equal(logits(host.model), before)


def test_a_weight_that_was_written_to_is_told(host):
    with pytest.raises(Changed, match="embed_tokens"), untouched(host.model), torch.no_grad():
        host.model.model.embed_tokens.weight.add_(1)


def test_requires_grad_and_gradients_are_as_before(host):
    flags = {name: parameter.requires_grad for name, parameter in host.model.named_parameters()}
    with untouched(host.model):
        host.model(IDS, labels=IDS).loss.backward()
        for parameter in host.model.parameters():
            parameter.requires_grad_(False)
    assert {name: parameter.requires_grad for name, parameter in host.model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in host.model.parameters())


def test_the_random_numbers_go_on_where_they_were():
    import numpy

    state = random.getstate(), torch.get_rng_state(), numpy.random.get_state()[1].tolist()
    with random_state_kept():
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)
        torch.rand(3)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1]) and numpy.random.get_state()[1].tolist() == state[2]


def test_an_adapter_that_the_host_took_off_again_leaves_no_trace_in_ours(host, settings):
    """Until peft 0.18 unload() left `peft_config` on the base: the next LoRA was saved with an empty folder of the old one's name beside it."""
    import peft
    from training_pro import train_utils
    from training_pro.training_run import DONE

    host._model = peft.get_peft_model(host.model, peft.LoraConfig(target_modules=["q_proj"]), adapter_name="poet").unload()
    left = host.model.peft_config = {"poet": peft.LoraConfig(target_modules=["q_proj"])}  # as peft 0.18 leaves it
    run = train_utils.train(settings(), host, train_utils.begin(settings(), host))
    assert (
        run.status == DONE
        and not (run.adapter / "poet").exists()
        and not any("checkpoint" not in entry.name and entry.is_dir() for entry in run.adapter.iterdir())
    )
    assert host.model.peft_config == left


@pytest.mark.parametrize("card, meanwhile", [(None, "highest"), ((7, 5), "highest"), ((8, 6), "high"), ((9, 0), "high")])
def test_tensor_cores_are_used_where_there_are_any_and_the_hosts_choice_comes_back(monkeypatch, card, meanwhile):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(ZeroDivisionError), tensor_cores_used():
        assert torch.get_float32_matmul_precision() == meanwhile
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"
