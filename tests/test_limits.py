import threading
import time

import pytest
from training_pro import chat_templates
from training_pro.chat_templates import TemplateError, render
from training_pro.limits import TooLong, within

CHAT = [{"role": "user", "content": "a"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% if a > b %}{% endif %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_ended(tokenizer, monkeypatch):
    monkeypatch.setattr(chat_templates, "LONGEST", 0.3)
    monkeypatch.setattr(chat_templates, "trial", lambda *_: None)  # as where only a later chat is without end
    with pytest.raises(TemplateError, match=r"does not come to its end in 0.3 seconds; choose another"):
        render(tokenizer, CHAT, ENDLESS)
    assert render(tokenizer, CHAT, "{{ messages[0].content }}") == "a"


@pytest.mark.parametrize("code", ["{% for i in range(10**12) %}{% endfor %}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ [].__init__.__globals__ }}"])  # fmt: skip
def test_the_sandbox_refuses(tokenizer, code):
    with pytest.raises(Exception, match=r"(?i)range|unsafe|undefined|attribute"):
        render(tokenizer, CHAT, code)


def test_what_ends_in_time_is_not_ended_afterwards():
    for _ in range(2000):
        with within(0.05):
            pass
    with pytest.raises(TooLong), within(0.1):
        while True:
            pass
    time.sleep(0.5)
    assert not [thread for thread in threading.enumerate() if thread.name == "training-pro-limits"]
