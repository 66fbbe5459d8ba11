"""A chat template is tried in a process of its own before it is rendered here.

A template is a program, and may have come with a model or a LoRA. Jinja's sandbox keeps it from files and from Python's inside, but
`{{ 'a' * 10**10 }}` asks for all memory there is and `{{ 10**(10**9) }}` calculates for hours, each in one step, which nothing in the same process can end.
So each text of a template is rendered once, with the first chat that it is to write, where the system can end it: with 2 GB of memory and some seconds.
What a template does only with a later chat is not seen.

This file is also the program of that process: `python -I template_trial.py` reads JSON from its standard input (see `_main`), needs Jinja alone, and takes
a fifth of a second.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

MEMORY = 2 * 2**30  # bytes
STARTING = 20  # seconds more for a busy machine to start a process and load Jinja
TOO_MUCH = 9  # exit code: memory was not enough
_ALARM = getattr(signal, "SIGALRM", 0)  # Windows has none

_found: dict[str, str | None] = {}  # by the template's text


def trial(template: str, chat: list[dict[str, Any]], seconds: float) -> str | None:
    """What is wrong with it, as the end of a sentence; None where it may be rendered. The same text is tried once in a process.

    What a template raises is not told: it does so here too, where it is said with its place.
    """
    if template not in _found:
        _found[template] = _tried(template, chat, seconds)
    return _found[template]


def _tried(template: str, chat: list[dict[str, Any]], seconds: float) -> str | None:
    if not sys.executable:  # Python within another program
        return None
    given = json.dumps({"path": sys.path, "template": template, "messages": chat, "seconds": seconds}, default=str)
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__], input=given.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=seconds + STARTING
        )
    except subprocess.TimeoutExpired:
        return f"does not come to its end in {seconds:g} seconds"
    except OSError:  # no process can be started here, so there is nothing to try it in
        return None
    if done.returncode == TOO_MUCH:
        return f"asks for more than {MEMORY / 2**30:g} GB of memory for one chat"
    if done.returncode == -_ALARM:
        return f"does not come to its end in {seconds:g} seconds"
    return "crashes Python" if done.returncode < 0 else None


def _main() -> int:
    """Render `template` with `messages`, looking for Jinja in `path`, in `seconds` of a clock that runs once all is loaded."""
    given = json.load(sys.stdin)
    sys.path.extend(place for place in given["path"] if place)
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:  # where the system has them: not on Windows, whose process is ended by its parent
        import resource

        signal.setitimer(signal.ITIMER_REAL, given["seconds"])  # whose signal ends it in mid-step too
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, AttributeError, OSError, ValueError):
        pass
    try:
        # As transformers renders it (transformers.utils.chat_template_utils), as far as a trial needs.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = lambda value, **named: json.dumps(value)
        environment.globals["strftime_now"] = lambda form: form
        environment.globals["raise_exception"] = _raised
        environment.from_string(given["template"]).render(messages=given["messages"], add_generation_prompt=True, bos_token="", eos_token="")
    except MemoryError:
        return TOO_MUCH
    except Exception:  # it raises where it is rendered too, and is told there
        return 0
    return 0


def _raised(message: str) -> None:
    raise ValueError(message)


if __name__ == "__main__":
    sys.exit(_main())
