import pytest
from training_pro import train_utils
from training_pro.attention import attention, attention_of, attention_problem
from training_pro.settings import SettingsError
from training_pro.training_run import DONE


def test_the_choice_holds_for_the_block_alone_also_after_a_failure(host):
    before = attention_of(host.model)
    assert before == "sdpa"
    with attention(host.model, "auto"):
        assert attention_of(host.model) == "sdpa"
    with pytest.raises(RuntimeError, match="in the middle"), attention(host.model, "eager"):
        assert attention_of(host.model) == attention_of(host.model.model) == "eager"
        raise RuntimeError("in the middle")
    assert attention_of(host.model) == attention_of(host.model.model) == "sdpa"


def test_a_run_uses_it_and_gives_the_model_back_as_it_was(host, settings, monkeypatch):
    seen = []
    forward = type(host.model).forward
    monkeypatch.setattr(
        type(host.model), "forward", lambda self, *given, **named: (seen.append(attention_of(self)), forward(self, *given, **named))[1]
    )
    run = train_utils.train(settings(attention="eager", epochs=0.3), host, train_utils.begin(settings(attention="eager", epochs=0.3), host))
    assert run.status == DONE, run.message
    assert set(seen) == {"eager"} and attention_of(host.model) == "sdpa"


def test_what_cannot_be_used_is_said_before_the_start(host, settings, monkeypatch):
    with pytest.raises(SettingsError, match="Attention “flash_attention_2” cannot be used here: the package flash-attn is not installed"):
        train_utils.begin(settings(attention="flash_attention_2"), host)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    assert "this one is in float32 on cpu" in attention_problem(host.model, "flash_attention_2")
    monkeypatch.setattr(type(host.model), "_supports_sdpa", False)
    with attention(host.model, "eager"):
        assert "LlamaForCausalLM" in attention_problem(host.model, "sdpa")
    monkeypatch.setattr(type(host.model), "set_attn_implementation", lambda self, wanted: None)
    assert "LlamaForCausalLM cannot change it once it is loaded. Choose another, or auto" in attention_problem(host.model, "eager")
