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
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv"
STAMP = ENVIRONMENT / "installed.txt"  # written last: an installation without it was interrupted and is done again
LOG = ENVIRONMENT / "install.log"
WEBUI_ENVIRONMENT = HERE / ".venv-webui"  # for the tests in the stand-in for text-generation-webui, with the versions that it brings
WEBUI_PYTHONS = ((3, 10), (3, 12))
OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 14)  # that the pinned PyTorch is built for; named only where pip found no build
DISK_NEEDED = 3.0  # GB: the environment with PyTorch for the CPU takes 2, the rest is what pip downloads and unpacks
DISK_FOR_CUDA = 9.0  # GB, an estimate: PyTorch's usual build for Linux brings CUDA's libraries
INTERRUPTED = 130  # the shells' exit code after Ctrl-C
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
    try:
        problem = make_environment(extras="app,dev" if testing else "app")
        if testing and not problem:
            if why := webui_python_problem(sys.version_info[:2]):
                say(f"{why} The tests in the stand-in for text-generation-webui will be skipped.")
            else:
                problem = make_webui_environment()
    except KeyboardInterrupt:
        say("\nStopped. The next start goes on from here.")
        return INTERRUPTED
    if problem:
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
    parser.add_argument(
        "--model", metavar="PATH_OR_HUB_ID", help="folder, name in user_data/models, or hub id of the base model (default: the demo model)"
    )
    parser.add_argument("--quantization", choices=("4bit", "8bit", "none"), help="load the base model in 4 or 8 bits (QLoRA)")
    parser.add_argument("--port", type=int, help="port of the page (default: 7860)")
    parser.add_argument("--listen", action="store_true", help="let other machines of your network open the page")
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help="ask for this name and password (other accounts of this machine see them: --auth-file)"
    )
    parser.add_argument("--auth-file", metavar="FILE", help="ask for the name and password in this file's first line, as user:password")
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


def site_packages() -> Path:
    return next(ENVIRONMENT.glob("lib/python*/site-packages"), ENVIRONMENT / "Lib" / "site-packages")


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
    STAMP.unlink(missing_ok=True)
    if not has_pip() and (problem := make_venv()):
        return problem
    forget_half_installed()
    if install(install_command(extras)):
        last = tail(LOG)
        shown = "".join(f"    {line}\n" for line in last)
        return f"Installing failed:\n{shown}The whole log is {LOG}. {advice(' '.join(last))}"
    STAMP.write_text(fingerprint(extras), encoding="utf-8")
    say(f"Set up in {elapsed(began)}.")
    return None


def has_pip() -> bool:
    """False also for an environment whose making was interrupted, and for one whose Python was removed or replaced since."""
    try:
        return subprocess.run([str(environment_python()), "-m", "pip", "--version"], capture_output=True, env=quiet_environment()).returncode == 0
    except OSError:
        return False


def make_venv(environment: Path = ENVIRONMENT) -> str | None:
    say("  making the environment …")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], capture_output=True, text=True, errors="replace")
    return venv_problem(made.stdout + made.stderr) if made.returncode else None


def forget_half_installed() -> None:
    """pip takes a package whose description is there for installed, though its own mark, which it writes last, is missing: make it install that again."""
    for described in site_packages().glob("*.dist-info"):
        if not (described / "INSTALLER").is_file():
            shutil.rmtree(described)


def install_command(extras: str) -> list[str]:
    # --editable: the page runs from this folder, so an update of the folder is an update of the page
    return [str(environment_python()), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off",
            "-c", str(HERE / "constraints.txt"), "-e", f"{HERE}[{extras}]"]  # fmt: skip


def install(command: list[str], log_file: Path = LOG) -> int:
    """Run pip, its output in the log and what matters of it on the screen; it never goes on without us."""
    with open(log_file, "w", encoding="utf-8") as log, Progress("looking up the packages …") as progress:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", cwd=HERE, env=pip_environment()
        )
        try:
            for line in process.stdout:
                log.write(line)
                if shown := progress_line(line):
                    progress.show(shown)
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            shutil.rmtree(ENVIRONMENT / "tmp", ignore_errors=True)


class Progress:
    """Lines with the time so far; the last one again after `silence` seconds without a new one, so that a long step does not look like a hang."""

    def __init__(self, doing: str, silence: float = 20.0):
        self.doing, self.silence = doing, silence
        self.ended = threading.Event()
        self.repeating = threading.Thread(target=self.repeat, daemon=True)

    def __enter__(self) -> Progress:
        self.began = time.time()
        self.show(self.doing)
        self.repeating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.repeating.join()

    def show(self, doing: str, still: str = "") -> None:
        self.doing, self.said = doing, time.time()
        say(f"  {elapsed(self.began):>5}  {still}{doing}")

    def repeat(self) -> None:
        while not self.ended.wait(self.silence / 10):
            if time.time() - self.said >= self.silence:
                self.show(self.doing, "still ")


def progress_line(line: str) -> str | None:
    """What the user sees of a line of pip's output: downloads, and the one long silence while all is unpacked."""
    words = line.split()
    if words[:1] == ["Downloading"] and len(words) > 1:
        return f"downloading {words[1].rsplit('/', 1)[-1].split('-')[0]} {' '.join(words[2:])}".rstrip()
    if words[:2] == ["Installing", "collected"]:
        count = line.count(",") + 1
        return f"installing {count} package{'s' if count > 1 else ''} …"
    if words[:1] == ["ERROR:"]:
        return line.strip()
    return None


def quiet_environment() -> dict[str, str]:
    """The user's environment without what would make pip or Python look elsewhere than in .venv."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_USER", "PIP_PREFIX")}


def pip_environment() -> dict[str, str]:
    """As above, and pip unpacks on the disk whose space was looked at: /tmp lies in memory on many Linux machines, too small for PyTorch with CUDA."""
    environment = quiet_environment()
    if os.name != "nt" and "TMPDIR" not in environment:  # Windows limits the length of paths
        (ENVIRONMENT / "tmp").mkdir(exist_ok=True)
        environment["TMPDIR"] = str(ENVIRONMENT / "tmp")
    return environment


def disk_problem(folder: Path) -> str | None:
    """A sentence when the set-up cannot fit; where it only may not, a warning on the screen. A mended one has most of it already."""
    free = shutil.disk_usage(folder).free / 2**30
    if environment_python().exists():
        return None
    if free < DISK_NEEDED:
        return f"{free:.1f} GB are free where Training PRO lies; the set-up needs {DISK_NEEDED:.0f} GB. Free some space, or move the folder to another disk."
    if sys.platform == "linux" and free < DISK_FOR_CUDA:
        say(f"Only {free:.1f} GB are free. That is enough for PyTorch without CUDA; with it up to {DISK_FOR_CUDA:.0f} GB are needed.")
    return None


def venv_problem(said: str) -> str:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if "ensurepip" in said or "No module named venv" in said:
        return f"This Python cannot make environments. On Debian and Ubuntu: sudo apt install python{version}-venv. Then start again."
    return f"The environment could not be made: {said.strip() or 'no reason was given'}"


def advice(said: str) -> str:
    """What to do about a failed installation, by what pip said last."""
    if "No space left" in said or "not enough space" in said:
        return "The disk is full: free some space, then start again; what was done is kept."
    if "No matching distribution found for torch" in said:
        oldest, newest = (".".join(map(str, version)) for version in (OLDEST_PYTHON, NEWEST_PYTHON))
        return (
            f"PyTorch has no build for {platform.system()} on {platform.machine()} with Python {platform.python_version()}. There is one for Python {oldest} to "
            f"{newest}, 64 bits, on Linux (not Alpine), on Windows with an Intel or AMD processor, and on macOS 14 or newer with an Apple processor."
        )
    return "Check the connection, then start again; what was done is kept."


def tail(path: Path, lines: int = 12) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:] if path.is_file() else []


def hint_at_card() -> None:
    """Where a card is but the installed PyTorch cannot use it (the usual one for Windows), say how to get the one that can."""
    if shutil.which("nvidia-smi") is None:
        return
    build = site_packages() / "torch" / "version.py"
    described = build.read_text(encoding="utf-8") if build.is_file() else ""
    if re.search(r"^cuda\b.*= None", described, re.MULTILINE):
        version = re.search(r"__version__ = '([^'+]+)", described)
        wanted = f"torch=={version[1]}" if version else "torch"
        alone = "--no-deps " if os.name == "nt" else ""  # there CUDA is in PyTorch's own package, and our versions of the others stay
        say("An NVIDIA card is here, but the installed PyTorch is for the CPU alone. To use the card, choose pip and CUDA under “Get started”")
        say("on PyTorch's site, take the address from the command shown there, and install with it into this folder's own Python:")
        say(f'    "{environment_python()}" -m pip install --force-reinstall {alone}{wanted} --index-url <the address shown there>')


# Tests


def run_tests(arguments: list[str]) -> int:
    if find_browser() is None and (why := install_browser()):
        say(f"No browser: {why} The tests of the page will be skipped.")
    began = time.time()
    code = call([str(environment_python()), "-m", "pytest", *arguments], cwd=HERE)
    say(f"The tests took {elapsed(began)}.")
    return code


def webui_python_problem(version: tuple[int, int]) -> str | None:
    oldest, newest = WEBUI_PYTHONS
    if oldest <= version <= newest:
        return None
    return f"The web UI's versions are built for Python {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}; this is {version[0]}.{version[1]}."


def make_webui_environment() -> str | None:
    """Make `.venv-webui` of exactly constraints-webui.txt; a sentence when that is not possible."""
    wanted = HERE / "constraints-webui.txt"
    stamp, log = WEBUI_ENVIRONMENT / "installed.txt", WEBUI_ENVIRONMENT / "install.log"
    mark = hashlib.sha256(f"{wanted.read_text(encoding='utf-8')}|{sys.version_info[:2]}|{HERE}".encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == mark:
        return None
    say("Setting up the web UI's versions in .venv-webui, for the tests; this is done once.")
    if problem := make_venv(WEBUI_ENVIRONMENT):
        return problem
    python = environment_python(WEBUI_ENVIRONMENT)
    if install([str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "-r", str(wanted)], log):
        return f"Installing the web UI's versions failed: {' '.join(tail(log, 2))} The whole log is {log}. {advice(' '.join(tail(log)))}"
    stamp.write_text(mark, encoding="utf-8")
    return None


def find_browser() -> str | None:
    named = os.environ.get("TRAINING_PRO_BROWSER")
    return named or next((found for name in BROWSERS if (found := shutil.which(name))), None)


def install_browser() -> str | None:
    """Install Debian's Chromium where that can be done without asking; why not, where it cannot."""
    if shutil.which("apt-get") is None:
        return "install Chromium or Chrome, or name one in TRAINING_PRO_BROWSER."
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "“sudo apt-get install chromium” would install one; this program is not root and does not ask."
    began = time.time()
    say("Installing Debian's chromium for the tests of the page …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"“{' '.join(command)}” failed: {''.join(last)}."
    say(f"Chromium was installed in {elapsed(began)}.")
    return None


# Small things


def call(command: list[str], cwd: Path | None) -> int:
    """Run the program with this terminal; Ctrl-C is its to handle, its exit code is ours, and it is told to end when we are."""
    process = subprocess.Popen(command, cwd=cwd, env=quiet_environment())
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code  # ended by a signal: what a shell makes of it
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def refuse(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return 2


def say(words: str) -> None:
    print(words, flush=True)


def elapsed(began: float) -> str:
    minutes, seconds = divmod(round(time.time() - began), 60)
    return f"{minutes}:{seconds:02}"


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # an old console's alphabet lacks “ and …
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end: as Ctrl-C, so that pip does not go on alone
    sys.exit(main(sys.argv[1:]))
