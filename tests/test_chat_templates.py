"""Where the assistant speaks, for the shapes of template that models really have. Each is written out by hand, with what it must give."""

import json

import pytest
from training_pro import chat_templates
from training_pro.blocks import IGNORED
from training_pro.chat_templates import SHIPPED, TemplateError, assistant_spans, read_template, render, template_for
from training_pro.dataset_tools import DataError, prepare

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for message in rest %}{% if message['role'] == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}{{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Phi-3 ends a whole chat with EOS, which is not there once a further message follows.
PHI_3 = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Qwen3 writes the thinking of the last answer alone.
QWEN_3 = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% if loop.last %}<think>\n{% if '</think>' in message['content'] %}"
    "{{ message['content'].split('</think>')[0].split('<think>')[-1] | trim }}{% endif %}{{ '\n' }}</think>\n\n{% endif %}"
    "{{ message['content'].split('</think>')[-1] | trim }}{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}A: {% generation %}\n{{ message['content'] }}{{ eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% else %}Q: {{ message['content'] }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)

TALK = [("user", "hi"), ("assistant", "hello"), ("user", "who"), ("assistant", "me")]
WITH_SYSTEM = [("system", "be kind"), *TALK]
THOUGHT = [("user", "hi"), ("assistant", "<think>\nhm\n</think>\n\nhello"), ("user", "who"), ("assistant", "<think>\nso\n</think>\n\nme")]

SHAPES = {
    "chatml": (SHIPPED["chatml"], WITH_SYSTEM,
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nwho<|im_end|>\n"
        "<|im_start|>assistant\nme<|im_end|>\n", ["hello<|im_end|>", "me<|im_end|>"]),
    "llama-2": (LLAMA_2, WITH_SYSTEM, "<s>[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nhi [/INST] hello </s><s>[INST] who [/INST] me </s>", [" hello </s>", " me </s>"]),
    "llama-3": (SHIPPED["llama-3"], WITH_SYSTEM,
        "<s><|start_header_id|>system<|end_header_id|>\n\nbe kind<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nhello<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nwho<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nme<|eot_id|>", ["hello<|eot_id|>", "me<|eot_id|>"]),
    "mistral": (MISTRAL, TALK, "<s>[INST] hi [/INST] hello</s>[INST] who [/INST] me</s>", [" hello</s>", " me</s>"]),
    "gemma": (GEMMA, TALK,
        "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nhello<end_of_turn>\n<start_of_turn>user\nwho<end_of_turn>\n"
        "<start_of_turn>model\nme<end_of_turn>\n", ["hello<end_of_turn>", "me<end_of_turn>"]),
    "phi-3": (PHI_3, WITH_SYSTEM,
        "<|system|>\nbe kind<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\nhello<|end|>\n<|user|>\nwho<|end|>\n<|assistant|>\nme<|end|>\n</s>",
        ["hello<|end|>", "me<|end|>"]),
    "qwen-3": (QWEN_3, THOUGHT,
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nwho<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nso\n</think>\n\nme<|im_end|>\n", ["hello<|im_end|>", "<think>\nso\n</think>\n\nme<|im_end|>"]),
    "zephyr": (SHIPPED["zephyr"], WITH_SYSTEM, "<|system|>\nbe kind</s>\n<|user|>\nhi</s>\n<|assistant|>\nhello</s>\n<|user|>\nwho</s>\n<|assistant|>\nme</s>\n",
        ["hello</s>", "me</s>"]),
    "vicuna": (SHIPPED["vicuna"], WITH_SYSTEM, "be kind USER: hi ASSISTANT: hello</s>USER: who ASSISTANT: me</s>", [" hello</s>", " me</s>"]),
    "alpaca": (SHIPPED["alpaca"], WITH_SYSTEM,
        "be kind\n\n### Instruction:\nhi\n\n### Response:\nhello</s>\n\n### Instruction:\nwho\n\n### Response:\nme</s>\n\n", ["hello</s>", "me</s>"]),
    "marked": (MARKED, TALK, "Q: hi\nA: hello</s>\nQ: who\nA: me</s>\n", [" hello</s>", "me</s>"]),
}  # fmt: skip
MARKERS = [
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
]


def chat_of(turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture
def wide_host(host):
    """The tokenizer with the special tokens of all these templates."""
    host.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *MARKERS]})
    return host


@pytest.mark.parametrize("name", SHAPES)
def test_the_tokens_that_are_trained_are_the_assistants_with_their_end_of_turn(wide_host, settings, name, monkeypatch):
    template, turns, text, learned = SHAPES[name]
    tokenizer = wide_host.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", template)
    (wide_host.datasets_dir / "chats.jsonl").write_text(json.dumps({"messages": chat_of(turns)}), encoding="utf-8")
    for on_inputs in (True, False):
        prepared = prepare(settings(dataset=None, datasetJSONL="chats", train_on_inputs=on_inputs), tokenizer, wide_host)
        ids, labels = prepared.train[0]["input_ids"], prepared.train[0]["labels"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]  # no BOS or EOS beside the template's own
    pieces, last = [], None
    for place, (id_, label) in enumerate(zip(ids, labels, strict=True)):
        if label != IGNORED:
            if last != place - 1:
                pieces.append([])
            pieces[-1].append(id_)
            last = place
    assert [tokenizer.decode(piece, clean_up_tokenization_spaces=False) for piece in pieces] == learned


def test_an_answer_that_holds_the_header_itself_is_refused_where_prefixes_do_not_hold(wide_host, settings, monkeypatch):
    monkeypatch.setattr(wide_host.tokenizer, "chat_template", PHI_3)
    chat = chat_of([("user", "hi"), ("assistant", "x<|end|>\n<|assistant|>\nfake"), ("user", "who"), ("assistant", "me")])
    (wide_host.datasets_dir / "chats.jsonl").write_text(json.dumps({"messages": chat}), encoding="utf-8")
    with pytest.raises(DataError, match="the assistant's turns cannot be told apart; tick Train on Inputs"):
        prepare(settings(dataset=None, datasetJSONL="chats", train_on_inputs=False), wide_host.tokenizer, wide_host)


def test_marks_tell_what_is_trained_even_against_prefixes(tokenizer):
    """Only what stands between the marks, though the prefix would be more."""
    template = "{% for m in messages %}{{ m['role'] }}: {% generation %}{{ m['content'] if m['role'] == 'assistant' else '' }}{% endgeneration %}|{% endfor %}"
    chat = chat_of([("user", "x"), ("assistant", "yes")])
    text = render(tokenizer, chat, template)
    assert text == "user: |assistant: yes|"
    assert [text[begin:end] for begin, end in assistant_spans(tokenizer, chat, template, text)] == ["", "yes"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_templates_can_be_chosen_instead_of_the_models_own(host, settings, name):
    prepared = prepare(settings(dataset=None, datasetJSONL="chats", instruction_template=name), host.tokenizer, host)
    assert prepared.formatting["chat_template"] == SHIPPED[name] and "hello 3" in host.tokenizer.decode(prepared.train[3]["input_ids"])
    assert host.tokenizer.chat_template != SHIPPED[name] or name == "chatml"


def test_the_order_of_templates(host, settings, monkeypatch):
    chosen = settings(dataset=None, datasetJSONL="chats")
    assert template_for(chosen, host.tokenizer, host) == host.tokenizer.chat_template
    monkeypatch.setattr(host, "instruction_template", lambda: "the host's")
    assert template_for(chosen, host.tokenizer, host) == host.tokenizer.chat_template
    assert template_for(chosen.model_copy(update={"instruction_template": "host"}), host.tokenizer, host) == "the host's"
    monkeypatch.setattr(host.tokenizer, "chat_template", None)
    assert template_for(chosen, host.tokenizer, host) == "the host's"
    monkeypatch.setattr(host, "instruction_template", lambda: None)
    for template in (None, "host"):
        with pytest.raises(TemplateError, match=r"no chat template|has none"):
            template_for(chosen.model_copy(update={"instruction_template": template}), host.tokenizer, host)


def test_a_letter_that_a_yaml_file_writes_in_two_halves(tmp_path):
    path = tmp_path / "smile.yaml"
    path.write_text('{"instruction_template": "\\ud83d\\ude00 {{ messages }}"}', encoding="utf-8")  # as JSON has it
    assert read_template(path) == "\U0001f600 {{ messages }}"
    path.write_text('{"instruction_template": "a\\ude00"}', encoding="utf-8")
    with pytest.raises(TemplateError, match=r"Instruction template: “smile.yaml” holds half a letter, U\+DE00, as its character 2"):
        read_template(path)


def test_the_hosts_own_files_of_templates_are_read(host, settings):
    host.templates_dir.mkdir()
    (host.templates_dir / "Mine.yaml").write_text("instruction_template: |-\n  {{ messages[0]['content'] }}!\n", encoding="utf-8")
    (host.templates_dir / "Other.jinja").write_text("{{ messages[1]['content'] }}?", encoding="utf-8")
    assert host.data_files("template") == ["Mine", "Other"]
    texts = []
    for name in ("Mine", "Other"):
        chosen = settings(dataset=None, datasetJSONL="chats", instruction_template=name)
        assert chosen.problems(host) == []
        texts.append(host.tokenizer.decode(prepare(chosen, host.tokenizer, host).train[0]["input_ids"]))
    assert texts == ["say 0!", "hello 0?"]
    assert (
        "“gone.jinja” is not in the folder instruction-templates"
        in settings(dataset=None, datasetJSONL="chats", instruction_template="gone").problems(host)[0]
    )


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "- x"), ("a.yaml", "instruction_template: 5"), ("a.yaml", "{"), ("a.jinja", " ")])
def test_what_is_no_template_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(TemplateError, match=rf"“{name}” (cannot be read|holds no)"):
        read_template(tmp_path / name)


def test_the_answer_as_trained_uses_the_template_of_the_run(host, settings):
    from training_pro import train_utils, try_it

    chosen = settings(dataset=None, datasetJSONL="chats", instruction_template="vicuna", epochs=0.5)
    train_utils.train(chosen, host, train_utils.begin(chosen, host))
    assert try_it.prompt_text(host, "say 1", host.lora_dir / "tiny", try_it.AS_TRAINED) == ("USER: say 1 ASSISTANT:", True)
    assert chat_templates.HOSTS == "host"
