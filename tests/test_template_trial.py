"""What a chat template asks for in one step, which nothing in the same process can end."""

import subprocess
import time

import pytest
from training_pro import chat_templates, template_trial
from training_pro.chat_templates import TemplateError, render
from training_pro.template_trial import trial

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
SOUND = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch):
    monkeypatch.setattr(template_trial, "_found", {})


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'a' * 10**10 }}", "asks for more than 2 GB of memory"),
        ("{{ 'a'.center(10**10) }}", "asks for more than 2 GB of memory"),
        ("{{ 'a' | indent(10**10, true) }}", "asks for more than 2 GB of memory"),
        ("{{ '%10000000000d' % 1 }}", "asks for more than 2 GB of memory"),
        (
            "{% set ns = namespace(x='aaaaaaaa') %}{% for n in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "asks for more than 2 GB of memory",
        ),
        ("{% for m in messages %}{{ 10**(10**9) }}{% endfor %}", "does not come to its end in 1 seconds"),
    ],
)
def test_what_takes_everything_is_refused_in_a_sentence(tokenizer, monkeypatch, template, said):
    monkeypatch.setattr(chat_templates, "LONGEST", 10 if "memory" in said else 1)
    began = time.monotonic()
    with pytest.raises(TemplateError, match=f"^Instruction template: the chat template {said}.*; choose another.$"):
        render(tokenizer, CHAT, template)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "template",
    [
        SOUND,
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}{% endif %}{% endfor %}",
        "{{ messages | tojson(indent=2) }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}{% break %}{% endfor %}",
        "{{ raise_exception('No system role') }}",  # raises here too, and is told where it is rendered
        "{% for",
    ],
)
def test_what_is_rendered_or_raises_by_itself_is_let_through(template):
    assert trial(chat_templates._MARKS.sub(chat_templates._without_meaning, template), CHAT, 10) is None


def test_each_text_is_tried_once_and_our_own_never(tokenizer, monkeypatch):
    tried = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: tried.append(given) or run(*given, **named))
    for _ in range(3):
        assert render(tokenizer, CHAT, SOUND) == "<user>Hello<assistant>Hi"
    assert len(tried) == 1
    render(tokenizer, CHAT, chat_templates.SHIPPED["chatml"])
    assert len(tried) == 1


def test_where_no_process_can_be_started_it_is_rendered_untried(tokenizer, monkeypatch):
    def none(*given, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(subprocess, "run", none)
    assert render(tokenizer, CHAT, SOUND) == "<user>Hello<assistant>Hi"
