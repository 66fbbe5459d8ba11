"""Liger's kernels and compiled layers: used where they are chosen, refused with a reason, and gone afterwards."""

import sys
from importlib.machinery import ModuleSpec
from types import MethodType, ModuleType

import pytest
import torch
from training_pro import step_kernels, train_utils
from training_pro.settings import SettingsError
from training_pro.step_kernels import compile_layers, functions_kept, liger_problem, repeated_layers
from training_pro.training_run import DONE
from training_pro.untouched import untouched


def run_of(settings, host):
    return train_utils.train(settings, host, train_utils.begin(settings, host))


@pytest.fixture
def liger(monkeypatch):
    """A stand-in for the package (it needs Triton and a card) that replaces what the real one does: a function and a class in the model's
    code, a function of torch, and methods of the model's own layers. `used` has the names of what was called."""
    import transformers.integrations
    import transformers.trainer

    used = []
    package, inner, patch = (ModuleType(name) for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch"))
    package.__spec__, package.__path__ = ModuleSpec("liger_kernel", None), []

    def apply(model, **chosen):
        code = sys.modules[type(model).__module__]
        rotate, norm, cross_entropy = code.apply_rotary_pos_emb, code.LlamaRMSNorm, torch.nn.functional.cross_entropy
        code.apply_rotary_pos_emb = lambda *given, **named: (used.append("rotary"), rotate(*given, **named))[1]
        code.LlamaRMSNorm = type("LigerRMSNorm", (norm,), {})
        torch.nn.functional.cross_entropy = lambda *given, **named: (used.append("loss"), cross_entropy(*given, **named))[1]
        forward = code.LlamaMLP.forward
        code.LlamaMLP.forward = lambda self, x: (used.append("class"), forward(self, x))[1]
        for layer in model.model.layers:
            layer.mlp.forward = MethodType(lambda self, x: (used.append("gate"), type(self).forward(self, x))[1], layer.mlp)

    inner._apply_liger_kernel_to_instance, patch.MODEL_TYPE_TO_APPLY_LIGER_FN = apply, {"llama": apply}
    for module in (package, inner, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for place in (sys.modules.get("transformers.integrations.liger"), transformers.trainer):
        if hasattr(place, "is_liger_kernel_available"):
            monkeypatch.setattr(place, "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(step_kernels, "LIGER_DEVICES", ("cpu",))
    return used


def replaced_by_liger(model):
    code = sys.modules[type(model).__module__]
    own = [layer.mlp.forward.__func__ for layer in model.model.layers]
    return [code.apply_rotary_pos_emb, code.LlamaRMSNorm, code.LlamaMLP.forward, torch.nn.functional.cross_entropy, *own]


def test_liger_computes_a_run_and_leaves_nothing_behind(host, settings, liger):
    before = replaced_by_liger(host.model)
    run = run_of(settings(use_liger_kernel=True, epochs=0.3), host)
    assert run.status == DONE, run.message
    assert {"rotary", "loss", "class", "gate"} <= set(liger)
    assert replaced_by_liger(host.model) == before
    with pytest.raises(RuntimeError), functions_kept(host.model), untouched(host.model):
        sys.modules["liger_kernel.transformers"]._apply_liger_kernel_to_instance(model=host.model)
        assert replaced_by_liger(host.model) != before
        raise RuntimeError
    assert replaced_by_liger(host.model) == before


def test_why_liger_cannot_be_used(host, settings, liger, monkeypatch):
    assert liger_problem(host.model) is None
    monkeypatch.setattr(sys.modules["liger_kernel.transformers.monkey_patch"], "MODEL_TYPE_TO_APPLY_LIGER_FN", {})
    assert liger_problem(host.model) == "Liger kernels: the installed liger-kernel has none for LlamaForCausalLM. Untick it."
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    assert "Liger kernels cannot be loaded" in liger_problem(host.model)
    monkeypatch.setattr(step_kernels.importlib.util, "find_spec", lambda name: None)
    assert "pip install liger-kernel" in liger_problem(host.model)
    monkeypatch.setattr(step_kernels, "LIGER_DEVICES", ("cuda",))
    with pytest.raises(SettingsError, match=r"Liger kernels run on a graphics card, and the model is on cpu. Untick Liger kernels."):
        train_utils.begin(settings(use_liger_kernel=True), host)


def test_compiled_layers_learn_the_same_and_are_gone_afterwards(host, settings, monkeypatch):
    compiled = []
    monkeypatch.setattr(step_kernels, "BACKEND", lambda graph, inputs: (compiled.append(graph), graph.forward)[1])
    plain = run_of(settings(lora_name="plain", epochs=1, use_grad_checkpoint=True, lora_dropout=0), host)
    run = run_of(settings(lora_name="compiled", epochs=1, use_grad_checkpoint=True, lora_dropout=0, torch_compile=True), host)
    assert (plain.status, run.status) == (DONE, DONE) and compiled and not any("compiled" in notice for notice in run.notices), run.notices
    losses = [[entry["loss"] for entry in each.history if "loss" in entry] for each in (plain, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert all(module._compiled_call_impl is None for module in host.model.modules())
    assert not torch._dynamo.config.suppress_errors


def test_what_cannot_be_compiled_runs_as_it_is(host, settings, monkeypatch):
    def fails(graph, inputs):
        raise OSError("no C++ compiler was found\nand more")

    monkeypatch.setattr(step_kernels, "BACKEND", fails)
    plain, run = (run_of(settings(lora_name=name, epochs=0.5, torch_compile=name == "compiled"), host) for name in ("plain", "compiled"))
    assert run.status == DONE, run.message
    assert any("could not be compiled here" in notice and "no C++ compiler was found" in notice for notice in run.notices), run.notices
    weights = [(each.adapter / "adapter_model.safetensors").read_bytes() for each in (plain, run)]
    assert weights[0] == weights[1]


def test_a_failure_in_mid_run_is_no_failure_of_the_run(host, settings, monkeypatch):
    asked = []

    def fails_later(graph, inputs):
        asked.append(1)
        if len(asked) > 2:
            raise OSError("the compiler was removed")
        return graph.forward

    monkeypatch.setattr(step_kernels, "BACKEND", fails_later)
    compile_layers_first = step_kernels.compile_layers

    def compiled_then_forgotten(*given):
        why = compile_layers_first(*given)
        torch._dynamo.reset()  # so that the run itself has to compile again
        asked.extend([1, 1])
        return why

    monkeypatch.setattr("training_pro.trainer.compile_layers", compiled_then_forgotten)
    assert run_of(settings(torch_compile=True, epochs=0.3), host).status == DONE and len(asked) > 4


def test_the_layers_that_repeat(host):
    assert repeated_layers(host.model) == list(host.model.model.layers)
    assert compile_layers(torch.nn.Linear(2, 2)) == "Linear has no layers that repeat"
