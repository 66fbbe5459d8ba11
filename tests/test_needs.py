import importlib
import sys

from training_pro import needs


def test_here_nothing_is_missing_or_broken():
    assert needs.missing() == [] and needs.broken() == []


def test_what_is_missing_is_named_with_the_command_for_this_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as Python itself notes that there is none
    assert needs.missing() == ["peft"]
    assert needs.broken() == [f'The package peft is missing. Install it with this command, then start again: "{sys.executable}" -m pip install peft']


def test_what_is_broken_is_named_with_its_reason(monkeypatch):
    def imported(name):
        if name == "bitsandbytes":
            raise RuntimeError("CUDA Setup failed.\nMany more lines")
        return sys.modules.get(name)

    monkeypatch.setattr(importlib, "import_module", imported)
    assert needs.broken() == [
        "The package bitsandbytes is installed but cannot be imported (CUDA Setup failed). Mend it with this command, then start again: "
        f'"{sys.executable}" -m pip install --force-reinstall --no-deps bitsandbytes'
    ]
    assert needs.missing() == []


def test_bitsandbytes_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert needs.missing() == [] and needs.broken() == []
