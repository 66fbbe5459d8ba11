import math

import pytest
import torch
from training_pro import evaluation, learned, train_utils
from training_pro.learned import CHANGED_NOTHING, FORGOT, GENERAL, HELD_OUT, LEARNED, MEMORISED, NOT_LEARNED, TRAINING, Line, judge
from training_pro.settings import SettingsError


def lines(training, general, held_out=None):
    found = [Line(TRAINING, 20.0, training, 900), Line(GENERAL, 40.0, general, 500)]
    return found if held_out is None else [*found, Line(HELD_OUT, 20.0, held_out, 300)]


@pytest.mark.parametrize(
    ("figures", "verdict", "words"),
    [
        ((5.0, 41.0, 6.0), LEARNED, "text that it has not seen went from 20 → 6"),
        ((5.0, 41.0, None), LEARNED, "whether it only memorised cannot be told"),
        ((2.0, 40.0, 18.0), MEMORISED, "the training text went from 20 → 2, but text that it has not seen only from 20 → 18"),
        ((2.0, 40.0, 25.0), MEMORISED, "20 → 25"),
        ((5.0, 60.0, 6.0), FORGOT, "the general text went from 40 → 60, while its own text went from 20 → 5"),
        ((20.0, 60.0, None), FORGOT, "its own text was not learned"),
        ((19.7, 40.5, 20.3), CHANGED_NOTHING, "no perplexity moved by 2%"),
        ((19.8, 44.0, 20.0), NOT_LEARNED, "the training text stayed at 20 → 19.8"),
        ((math.nan, 40.0, 20.0), NOT_LEARNED, "a perplexity is no number"),
        ((math.inf, 40.0, 20.0), NOT_LEARNED, "a perplexity is no number"),
        ((5.0, 40 * math.exp(0.251), 6.0), FORGOT, "It forgot"),
        ((5.0, 40 * math.exp(0.249), 6.0), LEARNED, "It learned"),
        ((10.0, 40.0, 20 * math.exp(-0.24 * math.log(2))), MEMORISED, "It memorised"),
        ((10.0, 40.0, 20 * math.exp(-0.26 * math.log(2))), LEARNED, "It learned"),
    ],
)
def test_the_judgement(figures, verdict, words):
    found, sentence = judge(lines(*figures))
    assert found == verdict and words in sentence and sentence.count(". ") == 0 and sentence.endswith(".")


@pytest.fixture
def trained(host, settings):
    def train(**changes):
        chosen = settings(eval_dataset="held", **changes)
        run = train_utils.train(chosen, host, train_utils.begin(chosen, host))
        assert run.succeeded, run.message

    return train


def test_of_a_run(host, trained):
    trained(learning_rate="2e-2", training_projection="all", epochs=5, sample_prompts="say 3\nsay 7", lora_modulessave=True)
    with torch.no_grad():
        before = host.model(torch.tensor([[5, 6, 7]])).logits.clone()
    job = learned.run_here(host, "tiny")
    assert (job.status, job.problems, job.share) == ("done", [], 1.0), job.message
    found = job.learned
    by_name = {line.text: line for line in found.lines}
    assert list(by_name) == [TRAINING, HELD_OUT, GENERAL] and by_name[TRAINING].gain > 1 and by_name[HELD_OUT].gain > 1
    assert found.verdict in (LEARNED, FORGOT) and found.sentence
    assert [prompt for prompt, _, _ in found.answers] == ["say 3", "say 7"] and all(base != said for _, base, said in found.answers)
    names = [name for name, _ in found.changes]
    assert len(names) == 2 * 7 + 2 and "model.layers.0.self_attn.q_proj" in names and "lm_head" in names and "model.embed_tokens" in names
    assert all(0 < change < 100 for _, change in found.changes), found.changes
    with torch.no_grad():
        assert torch.equal(host.model(torch.tensor([[5, 6, 7]])).logits, before)

    other = learned.run_here(host, "tiny", held_out="tale.txt", prompts=["hello"])  # other kinds of text do not profit
    assert {line.text for line in other.learned.lines} == set(by_name) and other.learned.answers[0][0] == "hello"
    assert other.learned.lines[1].base != by_name[HELD_OUT].base


def test_the_size_of_a_layers_change_is_that_of_the_whole_product(host):
    import peft

    torch.manual_seed(1)
    for kind in ({"use_rslora": True}, {"use_dora": True}):
        config = peft.LoraConfig(r=4, lora_alpha=24, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **kind)
        model = peft.get_peft_model(host.model, config)
        found = dict(learned.layer_changes(model))
        base = {name: module.weight.detach().clone() for name, module in host.model.named_modules() if name.endswith("base_layer")}
        merged = model.merge_and_unload()
        assert len(found) == 4
        for name, module in merged.named_modules():
            if name in found:
                before = base[f"{name}.base_layer"]
                assert found[name] == pytest.approx(float((module.weight - before).norm() / before.norm()), rel=1e-4)


def test_the_adapter_that_changes_nothing(host, trained):
    trained(learning_rate="1e-9")
    job = learned.run_here(host, "tiny", prompts=["x"])
    assert job.learned.verdict == CHANGED_NOTHING and job.learned.answers[0][1] == job.learned.answers[0][2]


def test_what_is_missing_is_said(host, trained, settings):
    with pytest.raises(SettingsError, match="LoRA is not chosen"):
        learned.start(host, None)
    trained(epochs=0.25)
    (host.datasets_dir / "rows.json").unlink()
    with pytest.raises(SettingsError, match=r"“rows\.json” is not in the folder"):
        learned.start(host, "tiny")
    (host.lora_dir / "tiny" / "training_parameters.json").unlink()
    with pytest.raises(SettingsError, match="what “tiny” was trained on is not known"):
        learned.start(host, "tiny")


def test_it_can_be_interrupted(host, trained, monkeypatch):
    monkeypatch.setattr(evaluation, "_current", None)
    trained(epochs=0.25)
    real = learned._answer

    def stopping(job, *rest):
        job.stop()
        return real(job, *rest)

    monkeypatch.setattr(learned, "_answer", stopping)
    job = learned.run_here(host, "tiny")
    assert (job.status, job.learned.verdict) == ("interrupted", "") and not hasattr(host.model, "peft_config")


def test_the_change_of_a_quantised_layer_is_that_beside_its_real_weights(host):
    import peft

    found = {}
    for quantization in ("none", "4bit"):
        host.load("demo", quantization)
        torch.manual_seed(2)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        found[quantization] = dict(learned.layer_changes(peft.get_peft_model(host.model, config)))
    for name, change in found["none"].items():
        assert found["4bit"][name] == pytest.approx(change, rel=0.05)
