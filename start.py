"""Training PRO on a fresh machine: makes its own environment, then opens the page. Needs Python 3.10 or newer and nothing else.

    python start.py                 make the environment if need be, then serve the page
    python start.py --model NAME    the same with another base model; see --help for all options
    python start.py test            the same set-up with what the tests need, then the whole test suite
    python start.py train RUN.yaml  the command line; also: verify, perplexity
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv"
STAMP = ENVIRONMENT / "installed.txt"  # written last: an installation without it was interrupted and is done again
LOG = ENVIRONMENT / "install.log"
OLDEST_PYTHON = (3, 10)
# The CPU build of PyTorch takes 1.6 GB with everything else; the CUDA build for Linux, which brings its libraries, about 8 GB.
DISK_NEEDED = {"linux": 9.0}
DISK_NEEDED_ELSEWHERE = 3.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
COMMANDS = ("ui", "train", "verify", "perplexity", "controls")


def main(arguments: list[str]) -> int:
    if problem := python_problem(sys.version_info[:2]):
        return refuse(problem)
    testing = arguments[:1] == ["test"]
    if not testing and arguments[:1] and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        return refuse(f"There is no command “{arguments[0]}”. Use one of: test, {', '.join(COMMANDS)}; or none for the page.")
    if not testing:
        command = program_arguments(arguments)
    began = time.time()
    if problem := make_environment(extras="app,dev" if testing else "app"):
        return refuse(problem)
    if testing:
        say(f"Set-up took {elapsed(began)}.")
        return run_tests(arguments[1:])
    hint_at_card()
    return call([str(environment_python()), "-m", "training_pro", *command], cwd=None)


# Arguments


def program_arguments(arguments: list[str]) -> list[str]:
    """What `python -m training_pro` gets: options alone mean the page, whose options are known here so that --help needs no install."""
    if arguments and arguments[0] in COMMANDS and arguments[0] != "ui":
        return arguments
    options = arguments[1:] if arguments[:1] == ["ui"] else arguments
    page_options().parse_args(options)
    return ["ui", *options]


def page_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="start.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="PATH_OR_HUB_ID", help="folder, name in user_data/models, or hub id of the base model (default: the demo model)")
    parser.add_argument("--quantization", choices=("4bit", "8bit", "none"), help="load the base model in 4 or 8 bits (QLoRA)")
    parser.add_argument("--port", type=int, help="port of the page (default: 7860)")
    parser.add_argument("--listen", action="store_true", help="let other machines of your network open the page")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this name and password")
    parser.add_argument("--user-data", metavar="DIR", help="folder of models, loras, datasets, formats and logs (default: user_data)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a model's repository brings; only for makers you trust")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries say, too")
    return parser


# The environment


def python_problem(version: tuple[int, int]) -> str | None:
    if version >= OLDEST_PYTHON:
        return None
    found, wanted = (".".join(map(str, numbers)) for numbers in (version, OLDEST_PYTHON))
    return f"This is Python {found}; Training PRO needs {wanted} or newer. Install one from python.org or your system's packages, and call start.py with it."


def environment_python(environment: Path = ENVIRONMENT) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(extras: str, folder: Path = HERE) -> str:
    """Changes when what is to be installed changes: the two files that say it, the extras, Python, or the folder's place."""
    told = "".join((folder / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt"))
    return hashlib.sha256(f"{told}|{sys.version_info[:2]}|{folder}".encode()).hexdigest() + " " + extras


def is_installed(extras: str, stamp: Path = STAMP, folder: Path = HERE) -> bool:
    """Whether the last whole installation was of this very set; one for the tests has all that the page needs."""
    if not stamp.is_file():
        return False
    wanted, wanted_extras = fingerprint(extras, folder).split(" ")
    found, _, found_extras = stamp.read_text(encoding="utf-8").strip().partition(" ")
    return found == wanted and set(wanted_extras.split(",")) <= set(found_extras.split(","))


def make_environment(extras: str) -> str | None:
    """Make or mend `.venv`; a sentence when that is not possible."""
    if is_installed(extras) and environment_python().exists():
        return None
    if problem := disk_problem(HERE):
        return problem
    began = time.time()
    say("Setting up Training PRO in .venv; this is done once and takes some minutes.")
    if not environment_python().exists():
        say("  making the environment …")
        made = subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], capture_output=True, text=True)
        if made.returncode:
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)  # a half-made one would be taken for whole at the next start
            return venv_problem(made.stdout + made.stderr)
    STAMP.unlink(missing_ok=True)
    code = install(install_command(extras))
    if code:
        last = "".join(f"    {line}\n" for line in tail(LOG))
        return f"Installing failed:\n{last}The whole log is {LOG}. Check the connection and the free disk space, then start again: what was done is kept."
    STAMP.write_text(fingerprint(extras), encoding="utf-8")
    say(f"Set up in {elapsed(began)}.")
    return None


def install_command(extras: str) -> list[str]:
    return [str(environment_python()), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off",
            "-c", str(HERE / "constraints.txt"), "-e", f"{HERE}[{extras}]"]  # fmt: skip


def install(command: list[str]) -> int:
    """Run pip, its output in the log and what matters of it on the screen, so that one sees that something happens."""
    began = time.time()
    with open(LOG, "w", encoding="utf-8") as log:
        # --editable: the page runs from this folder, so an update of the folder is an update of the page
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", cwd=HERE, env=quiet_environment()
        )
        for line in process.stdout:
            log.write(line)
            if shown := progress_line(line):
                say(f"  {elapsed(began):>5}  {shown}")
    return process.wait()


def progress_line(line: str) -> str | None:
    """What the user sees of a line of pip's output: downloads, and the one long silence while all is unpacked."""
    words = line.split()
    if words[:1] == ["Downloading"] and len(words) > 1:
        return f"downloading {words[1].rsplit('/', 1)[-1].split('-')[0]} {' '.join(words[2:])}".rstrip()
    if words[:2] == ["Installing", "collected"]:
        return f"installing {line.count(',') + 1} packages …"
    if words[:1] == ["ERROR:"]:
        return line.strip()
    return None


def quiet_environment() -> dict[str, str]:
    """The user's environment without what would make pip or Python look elsewhere than in .venv."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_USER", "PIP_PREFIX")}


def disk_problem(folder: Path) -> str | None:
    needed = DISK_NEEDED.get(sys.platform, DISK_NEEDED_ELSEWHERE)
    free = shutil.disk_usage(folder).free / 2**30
    if free >= needed or environment_python().exists():
        return None
    return f"{free:.1f} GB are free where Training PRO lies; the set-up needs up to {needed:.0f} GB. Free some space, or move the folder to another disk."


def venv_problem(said: str) -> str:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if "ensurepip" in said or "No module named venv" in said:
        return f"This Python cannot make environments. On Debian and Ubuntu: sudo apt install python{version}-venv. Then start again."
    return f"The environment could not be made: {said.strip() or 'no reason was given'}"


def tail(path: Path, lines: int = 12) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:] if path.is_file() else []


def hint_at_card() -> None:
    """Where a card is but the installed PyTorch cannot use it (the usual one for Windows), say how to get the one that can."""
    if shutil.which("nvidia-smi") is None:
        return
    build = next((ENVIRONMENT.glob("**/torch/version.py")), None)
    if build and "cuda: Optional[str] = None" in build.read_text(encoding="utf-8"):
        say("An NVIDIA card is here, but the installed PyTorch is for the CPU alone. To use the card, choose CUDA under “Get started” on PyTorch's")
        say(f"site and run the install command shown there with this Python: {environment_python()} -m pip install --force-reinstall torch …")


# Tests


def run_tests(arguments: list[str]) -> int:
    if find_browser() is None and (why := install_browser()):
        say(f"No browser: {why} The tests of the page will be skipped.")
    began = time.time()
    code = call([str(environment_python()), "-m", "pytest", *arguments], cwd=HERE)
    say(f"The tests took {elapsed(began)}.")
    return code


def find_browser() -> str | None:
    named = os.environ.get("TRAINING_PRO_BROWSER")
    return named or next((found for name in BROWSERS if (found := shutil.which(name))), None)


def install_browser() -> str | None:
    """Install Debian's Chromium where that can be done without asking; why not, where it cannot."""
    if shutil.which("apt-get") is None:
        return "install Chromium or Chrome, or name one in TRAINING_PRO_BROWSER."
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "“sudo apt-get install chromium” would install one; this program is not root and does not ask."
    say("Installing Debian's chromium for the tests of the page …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"“{' '.join(command)}” failed: {''.join(last)}."
    return None


# Small things


def call(command: list[str], cwd: Path | None) -> int:
    """Run the program with this terminal; Ctrl-C is its to handle, and its exit code is ours."""
    process = subprocess.Popen(command, cwd=cwd, env=quiet_environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def refuse(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return 2


def say(words: str) -> None:
    print(words, flush=True)


def elapsed(began: float) -> str:
    minutes, seconds = divmod(round(time.time() - began), 60)
    return f"{minutes}:{seconds:02}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
