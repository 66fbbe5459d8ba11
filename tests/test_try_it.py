import pytest
import torch
from training_pro import train_utils, training_run
from training_pro.try_it import AS_CHAT, AS_TEXT, AS_TRAINED, CannotAnswer, answers, prompt_text


@pytest.fixture
def trained(host, settings):
    chosen = settings(learning_rate="5e-2", training_projection="all", epochs=4, save_steps=10)
    run = train_utils.train(chosen, host, train_utils.begin(chosen, host))
    assert run.succeeded, run.message
    return run


def test_two_answers_and_the_model_as_before(host, trained):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = host.model(ids).logits.clone()
    said = answers(host, "say 3", "tiny", max_new_tokens=12)
    assert said.prompt == "Q: say 3\nA:" and said.base != said.adapter
    with torch.no_grad():
        assert torch.equal(host.model(ids).logits, before)
    again = answers(host, "say 3", "tiny", max_new_tokens=12)
    assert again == said
    assert answers(host, "say 3", "tiny/checkpoint-40", max_new_tokens=12).adapter == said.adapter
    assert answers(host, "say 3", None, style=AS_TEXT, max_new_tokens=12).adapter == ""


def test_the_prompt_as_it_was_trained(host, trained):
    folder = host.lora_dir / "tiny"
    assert prompt_text(host, "x", folder, AS_TRAINED) == ("Q: x\nA:", False)
    assert prompt_text(host, "x", folder, AS_CHAT) == ("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", True)
    assert prompt_text(host, "x", folder, AS_TEXT) == ("x", False)
    assert prompt_text(host, "x", None, AS_TRAINED)[1] is True
    text, _ = prompt_text(host, "%output%", folder, "alpaca-format")
    assert text.endswith("### Instruction:\n%output%\n\n### Response:\n")


@pytest.mark.parametrize(
    ("prompt", "adapter", "style", "words"),
    [
        (" ", "tiny", AS_TEXT, "Prompt is empty"),
        ("x", "gone", AS_TEXT, "holds no adapter"),
        ("x", "../models", AS_TEXT, "LoRA: "),
        ("x", None, "no-format", "is not in the folder"),
    ],
)
def test_why_there_is_no_answer(host, prompt, adapter, style, words):
    with pytest.raises(CannotAnswer, match=words):
        answers(host, prompt, adapter, style=style)


def test_an_adapter_of_another_model_is_named(host, trained, models_folder):
    host.load(str(models_folder / "gpt2"))
    with pytest.raises(CannotAnswer, match="does not fit the loaded model"):
        answers(host, "x", "tiny", style=AS_TEXT)
    assert not hasattr(host.model, "peft_config")


def test_while_a_run_has_the_model(host):
    training_run.claim(training_run.TrainingRun("busy one"))
    with pytest.raises(CannotAnswer, match="“busy one” is being trained"):
        answers(host, "x", None)
