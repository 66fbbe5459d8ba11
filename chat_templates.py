"""Chats as text: which template writes them, and where in the text the assistant speaks.

The assistant's turns are told apart in the surest way that a template allows: by its own `{% generation %}` marks; by prefixes (a turn
is what the template adds when it is given one message more), where the chat so far is a prefix of the whole; by the header and the end
that the template puts around an answer. Where none of them holds, the row is refused with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .limits import TooLong, within
from .paths import paired, reason
from .template_trial import trial

LONGEST = 10  # seconds for a chat: a template is a program, and may have come with a model or a LoRA
HOSTS = "host"  # the choice of the host's own template

# Written for this project after the published descriptions of each prompt format.
SHIPPED = {
    "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "zephyr": "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "llama-3": "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "alpaca": "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
    "vicuna": "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }} "
    "{% elif message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% else %}ASSISTANT: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
}


class TemplateError(ValueError):
    """There is no template, or it cannot be read; the message says what to do."""


def template_for(settings: Any, tokenizer: Any, host: Any) -> str:
    """The Jinja text that writes the chats: the chosen one, else the tokenizer's, else the host's.

    Raises:
        TemplateError: there is none.
    """
    chosen = settings.instruction_template
    if chosen in SHIPPED:
        return SHIPPED[chosen]
    if chosen == HOSTS:
        if not (found := host.instruction_template()):
            raise TemplateError("Instruction template: this host has none; choose one by its name.")
        return found
    if chosen:
        return read_template(host.data_file("template", chosen))
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several by name
        own = own.get("default") or next(iter(own.values()), None)
    if found := own or host.instruction_template():
        return found
    raise TemplateError(
        "JSONL Dataset: the model's tokenizer has no chat template; choose one under Instruction template (the one the model was trained with), "
        "or a JSON Dataset with a Data Format."
    )


def read_template(path: Path) -> str:
    """A template of the host: a .jinja file, or a .yaml with `instruction_template`.

    Raises:
        TemplateError: it is none.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
        found = yaml.safe_load(text) if path.suffix.lower() in (".yaml", ".yml") else {"instruction_template": text}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TemplateError(f"Instruction template: “{path.name}” cannot be read ({reason(error).splitlines()[0]}).") from error
    template = found.get("instruction_template") if isinstance(found, dict) else None
    if not isinstance(template, str) or not template.strip():
        raise TemplateError(f"Instruction template: “{path.name}” holds no “instruction_template”.")
    template = paired(template)
    if half := _HALF.search(template):
        place = half.start() + 1
        raise TemplateError(f"Instruction template: “{path.name}” holds half a letter, U+{ord(half[0]):04X}, as its character {place}; take it out.")
    return template


_HALF = re.compile("[\ud800-\udfff]")


def render(tokenizer: Any, chat: list[dict[str, str]], template: str, *, prompt: bool = False) -> str:
    """The text of a chat, in transformers' sandbox; with `prompt` up to where the assistant would begin to speak.

    Raises:
        TemplateError: it takes longer than `LONGEST` seconds, or more memory than a template may (see template_trial.py). What else a template raises is its own.
    """
    if template not in SHIPPED.values() and (problem := trial(_MARKS.sub(_without_meaning, template), chat, LONGEST)):
        raise TemplateError(f"Instruction template: the chat template {problem}; choose another.")
    try:
        with within(LONGEST):
            return tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=prompt)
    except TooLong as error:
        raise TemplateError(f"Instruction template: the chat template does not come to its end in {LONGEST} seconds; choose another.") from error


def assistant_spans(tokenizer: Any, chat: list[dict[str, str]], template: str, text: str) -> list[tuple[int, int]]:
    """(start, end) in `text` of what the assistant says in each of its turns, with the end of the turn.

    Raises:
        ValueError: the template allows no way to tell them apart.
    """
    for way in (_by_marks, _by_prefixes, _by_headers):
        if (spans := way(tokenizer, chat, template, text)) is not None:
            return spans
    raise ValueError(
        "it writes earlier turns differently once later ones follow, so the assistant's turns cannot be told apart; tick Train on Inputs"
    )


# By the template's own marks

_MARKS = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_BEGIN, _END = "\ue000", "\ue001"  # of Unicode's private use: no template writes them


def _without_meaning(mark: re.Match) -> str:
    return f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}"


def _by_marks(tokenizer: Any, chat: list[dict[str, str]], template: str, text: str) -> list[tuple[int, int]] | None:
    if not _MARKS.search(template):
        return None

    def visible(match: re.Match) -> str:
        # A block and not an expression, so that Jinja trims the white space around it as it does around the mark.
        return f"{{%{match[1]} if true %}}{_END if match[2] else _BEGIN}{{% endif {match[3]}%}}"

    marked = render(tokenizer, chat, _MARKS.sub(visible, template))
    if marked.replace(_BEGIN, "").replace(_END, "") != text:
        return None
    spans, begin, place = [], None, 0
    for letter in marked:
        if letter == _BEGIN:
            begin = place
        elif letter == _END and begin is not None:
            spans.append((begin, place))
            begin = None
        elif letter not in (_BEGIN, _END):
            place += 1
    return spans


# By prefixes


def _by_prefixes(tokenizer: Any, chat: list[dict[str, str]], template: str, text: str) -> list[tuple[int, int]] | None:
    spans = []
    for number, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, chat[:number], template, prompt=True) if number else ""
        upto = text if number == len(chat) - 1 else render(tokenizer, chat[: number + 1], template)
        if not (text.startswith(upto) and upto.startswith(before)):
            return None
        spans.append((len(before), len(upto)))
    return spans


# By what the template puts around an answer

_QUESTION, _ANSWER = "\ue002", "\ue003"


def _by_headers(tokenizer: Any, chat: list[dict[str, str]], template: str, text: str) -> list[tuple[int, int]] | None:
    asked = {"role": "user", "content": _QUESTION}
    probed = render(tokenizer, [asked, {"role": "assistant", "content": _ANSWER}, asked], template)
    header, _, behind = probed.partition(_QUESTION)[2].partition(_ANSWER)  # the end of a question, and the header of the answer
    end = re.match(r"\S+", behind.partition(_QUESTION)[0])  # the end-of-turn token, up to the first white space
    answers = [message["content"] for message in chat if message["role"] == "assistant"]
    if not header.strip() or not end or text.count(header) != len(answers):
        return None
    spans, place = [], 0
    for answer in answers:
        begin = text.index(header, place) + len(header)
        close = text.find(end.group(), begin)
        said = answer.rsplit("</think>", 1)[-1].strip()  # what a template that leaves out the thinking still writes
        if close < 0 or said not in text[begin:close]:
            return None
        place = close + len(end.group())
        spans.append((begin, place))
    return spans
