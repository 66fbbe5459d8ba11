"""The command line: `python -m training_pro ui | train | verify | perplexity | controls`.

Exit codes: 0 done, 2 the input is wrong (every problem on stderr), 1 anything else.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from .background import in_a_thread_that_ends
from .host import QUANTIZATIONS, Host, LocalHost, ModelError, default_user_data
from .paths import reason, whole_letters
from .settings import OPTIONS, SettingsError, TrainingSettings
from .training_run import Busy, TrainingRun

DONE, OTHER, WRONG_INPUT = 0, 1, 2
RUN_KEYS = ("model", "quantization", "user_data")  # of a run's file, beside the settings


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not options.verbose:
        _quiet()
    try:
        return options.command(options)
    except SettingsError as error:
        return _refuse(error.problems)
    except (ModelError, Busy) as error:
        return _refuse([str(error)])
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="training_pro", description="Train a LoRA: as a page, or from the command line.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    ui = commands.add_parser("ui", help="serve the page on this machine")
    ui.add_argument(
        "--model", default="demo", help="folder, name in user_data/models, or hub id of the base model (default: the embedded demo model)"
    )
    ui.add_argument("--quantization", choices=QUANTIZATIONS, default="none", help="load the base model in 4 or 8 bits (QLoRA)")
    ui.add_argument("--port", type=int, default=7860)
    ui.add_argument("--listen", action="store_true", help="let other machines of your network open the page")
    asked = ui.add_mutually_exclusive_group()
    asked.add_argument(
        "--auth", metavar="USER:PASSWORD", help="ask for this name and password (other accounts of this machine see them: --auth-file)"
    )
    asked.add_argument("--auth-file", metavar="FILE", type=Path, help="ask for the name and password in this file's first line, as user:password")
    ui.set_defaults(command=_ui)

    described = "A run's file: YAML with the settings' keys (docs/controls.md) and model, quantization, user_data."
    train = commands.add_parser("train", help="train a LoRA by a run's file", description=described)
    verify = commands.add_parser("verify", help="show what a run's file would train", description=described)
    for command, function in ((train, _train), (verify, _verify)):
        command.add_argument("run", metavar="RUN.yaml", type=Path)
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="use this value instead of the file's")
        command.set_defaults(command=function)
        command.epilog = "Settings: " + "; ".join(f"{kind.key} ({kind.label}): {kind.help}" for kind in OPTIONS.values() if kind.works).replace(
            "%", "%%"
        )

    measure = commands.add_parser("perplexity", help="measure a model on a text")
    measure.add_argument("--model", required=True, help="folder, name in user_data/models, hub id, or demo")
    measure.add_argument("--lora", help="name of a LoRA in user_data/loras, or the path of its folder")
    measure.add_argument("--text", required=True, type=Path, metavar="FILE")
    measure.add_argument("--stride", type=int, default=512)
    measure.add_argument("--max-length", type=int, default=0, help="tokens of a window; 0 is the model's context")
    measure.add_argument("--quantization", choices=QUANTIZATIONS, default="none")
    measure.set_defaults(command=_perplexity)

    controls = commands.add_parser("controls", help="print docs/controls.md")
    controls.set_defaults(command=_controls)

    for command in (ui, train, verify, measure, controls):
        command.add_argument("--verbose", action="store_true", help="show what the libraries say, too")
        if command is not controls:
            command.add_argument("--user-data", type=Path, help="folder of models, loras, datasets, formats and logs")
            command.add_argument(
                "--trust-remote-code", action="store_true", help="run the code that a model's repository brings; only for makers you trust"
            )
        if command in (train, verify, measure):
            command.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def _quiet() -> None:
    """The libraries' progress bars and remarks would bury ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|peft|bitsandbytes)\b")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _load(host: LocalHost, model: str, quantization: str) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _say(f"Loading {model}{'' if quantization == 'none' else f' in {quantization}'} …")
    host.load(model, quantization)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _refuse(problems: list[str]) -> int:
    for problem in problems:
        _say(f"error: {problem}")
    return WRONG_INPUT


# ui


def _ui(options: argparse.Namespace) -> int:
    auth = _auth(_first_line_of(options.auth_file) if options.auth_file else options.auth)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    host = LocalHost(options.user_data or default_user_data(), trust_remote_code=options.trust_remote_code)
    try:
        in_a_thread_that_ends(lambda: _load(host, options.model, options.quantization))
    except ModelError as error:
        _say(f"error: {error}\nThe page opens without a model; load one there.")
    if options.listen:
        _say("Other machines of your network can open this page" + (" with the name and password." if auth else EVERYONE))
    from .script import page

    blocks, looks = page(host)
    address = "0.0.0.0" if options.listen else "127.0.0.1"
    port = _free_port(address, options.port)
    if port != options.port:
        _say(f"Port {options.port} is taken; {port} is used.")
    blocks.queue()
    blocks.launch(
        server_name=address, server_port=port, auth=auth, prevent_thread_lock=True, quiet=True, show_error=False, max_file_size=1,
        max_threads=MOST_EVENTS, state_session_capacity=MOST_PAGES, **looks,
    )  # fmt: skip
    _say(f"Training PRO is at http://127.0.0.1:{port}  (stop it with Ctrl-C)")
    _until_told(host)
    blocks.close()
    return DONE


# Each open page has an event that goes on as long as it is open, of Gradio's 40: a forty-first page would have left none for a click.
MOST_EVENTS = 400
MOST_PAGES = 100  # of which Gradio keeps what they show, half a megabyte each; one that comes again after that begins afresh
EVERYONE = (
    ", and without --auth everyone who can reach it can: train and delete LoRAs, read the names of your files, and use this machine's "
    "graphics card. Add --auth user:password or --auth-file, or leave --listen away."
)


def _auth(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise SettingsError(["--auth, or the first line of --auth-file, must be a name, a colon and a password: anna:secret."])
    return user, password


def _first_line_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").partition("\n")[0].strip()
    except (OSError, ValueError) as error:  # ValueError: no UTF-8
        raise SettingsError([f"--auth-file {file}: {getattr(error, 'strerror', None) or 'it is no text in UTF-8'}."]) from error


def _free_port(address: str, wanted: int) -> int:
    for port in range(wanted, wanted + 50):
        with socket.socket() as probe:
            if os.name != "nt":  # there it would take the port from whoever has it
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                return port
            except OSError:
                continue
    raise SettingsError([f"None of the ports {wanted} to {wanted + 49} is free; choose another with --port."])


def _until_told(host: Host) -> None:
    """Wait for Ctrl-C; a run that is going on is then ended after its step and saved. A second Ctrl-C does not wait for it."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        while not told.wait(0.5):
            pass
    except KeyboardInterrupt:
        pass
    from .training_run import current

    run = current()
    if run is not None and run.active:
        _say("Ending the run after this step and saving it. Ctrl-C again to leave at once.")
        run.update(stop_requested=True)
        while run.active:
            time.sleep(0.1)
        _say(run.message)


# train and verify


def read_run(path: Path, changes: list[str]) -> tuple[TrainingSettings, dict[str, Any], list[str]]:
    """A run's file and the `--set` changes as (settings, the other keys, notices).

    Raises:
        SettingsError: with every problem.
    """
    import yaml

    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError([f"{path}: {error.strerror or error}."]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date or number that is none
        place = getattr(error, "problem_mark", None)
        where = f"line {place.line + 1}, column {place.column + 1}: " if place else ""
        raise SettingsError([f"{path.name} is not readable YAML: {where}{getattr(error, 'problem', None) or error}."]) from error
    if not isinstance(read, dict):
        raise SettingsError([f"{path.name} must hold keys and values, such as “dataset: sample-alpaca”."])
    values = {whole_letters(str(key)): whole_letters(value) if isinstance(value, str) else value for key, value in read.items()}
    found = []
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            found.append(f"--set {change}: write it as KEY=VALUE.")
        elif key not in OPTIONS and key not in RUN_KEYS:
            found.append(f"--set {key}: there is no such setting.{_meant(key)}")
        else:
            values[key] = text if key in RUN_KEYS or OPTIONS[key].widget in ("text", "dropdown", "radio") else yaml.safe_load(text)
    others = {key: values.pop(key) for key in RUN_KEYS if key in values}
    for key, value in others.items():
        if not isinstance(value, str):
            found.append(f"{key} must be a text.")
    unknown = [key for key in values if key not in OPTIONS]
    settings, unusable, notices = TrainingSettings.from_saved(values)
    notices += [f"{key}:{hint}" for key in unknown if (hint := _meant(key))]
    if found or unusable:
        raise SettingsError(found + unusable)
    return settings, others, notices


def _meant(key: str) -> str:
    close = difflib.get_close_matches(key, [*OPTIONS, *RUN_KEYS], n=1)
    return f" Did you mean “{close[0]}”?" if close else ""


def _host_for(options: argparse.Namespace, others: dict[str, Any]) -> LocalHost:
    host = LocalHost(options.user_data or others.get("user_data") or default_user_data(), trust_remote_code=options.trust_remote_code)
    _load(host, others.get("model", "demo"), others.get("quantization", "none"))
    return host


def _train(options: argparse.Namespace) -> int:
    settings, others, notices = read_run(options.run, options.set)
    for notice in notices:
        _say(f"note: {notice}")
    host = _host_for(options, others)
    from . import train_utils
    from .training_run import FAILED

    run = train_utils.begin(settings, host)
    worker = threading.Thread(target=train_utils.train, args=(settings, host, run))
    worker.start()
    _watch(run, worker)
    for notice in run.notices:
        _say(f"note: {notice}")
    for problem in run.problems:
        _say(f"error: {problem}")
    _say(run.message)
    if options.json:
        print(json.dumps(_result(run)))
    if run.status == FAILED:
        return WRONG_INPUT if run.problems and not run.step else OTHER  # after a step, what they tell of is the batch that went astray
    return DONE


def _watch(run: TrainingRun, worker: threading.Thread) -> None:
    """Say how far the run is; Ctrl-C ends it after its step and saves it."""
    said = 0.0
    while worker.is_alive():
        try:
            worker.join(0.2)
        except KeyboardInterrupt:
            if run.stop_requested:
                raise
            _say("Ending the run after this step and saving it. Ctrl-C again to leave at once.")
            run.update(stop_requested=True)
        if time.time() - said >= 2 and run.active:
            said = time.time()
            figures = f"  step {run.step}/{run.total_steps}  epoch {run.epoch:.2f}" if run.total_steps else ""
            figures += f"  loss {run.loss:.4f}  lr {run.learning_rate:.2e}" if run.loss is not None else ""
            _say(f"{run.message}{figures}")


def _result(run: TrainingRun) -> dict[str, Any]:
    return {
        "status": run.status,
        "adapter": str(run.adapter) if run.adapter and run.succeeded else None,
        "steps": run.step,
        "train_loss": run.train_loss,
        "eval_loss": run.eval_loss,
        "trained_tokens": run.report.trained_tokens if run.report else 0,
        "seconds": round(run.elapsed, 3),
    }


def _verify(options: argparse.Namespace) -> int:
    settings, others, notices = read_run(options.run, options.set)
    for notice in notices:
        _say(f"note: {notice}")
    host = _host_for(options, others)
    from . import train_utils
    from .dataset_tools import DataError, prepare

    if found := train_utils.check_data(settings, host):
        return _refuse(found)
    try:
        report = prepare(settings, host.tokenizer, host, look=True).report
    except DataError as error:
        return _refuse(error.problems)
    for notice in [*report.notices, *report.hygiene]:
        _say(f"note: {notice}")
    for key, value in report.as_dict().items():
        if key not in ("notices", "hygiene"):
            print(f"{key}: {value}")
    if options.json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    return DONE


# perplexity and controls


def _perplexity(options: argparse.Namespace) -> int:
    host = LocalHost(options.user_data or default_user_data(), trust_remote_code=options.trust_remote_code)
    import filelock

    from .dataset_tools import DataError, read_text
    from .evaluation import details_of, digest_of, identity_of
    from .perplexity import encode, perplexity

    try:
        text = read_text(options.text)
    except DataError as error:
        return _refuse(error.problems)
    _load(host, options.model, options.quantization)
    model, folder, lora = host.model, None, []
    if options.lora:
        from .try_it import CannotAnswer, adapter_folder, with_adapter

        try:
            if (Path(options.lora) / "adapter_config.json").is_file():
                folder, lora = Path(options.lora), [Path(options.lora).resolve().name]
            else:
                folder, lora = adapter_folder(host, options.lora), [options.lora]
            model = with_adapter(model, folder)
        except CannotAnswer as error:
            return _refuse([str(error)])
    began = time.time()
    try:
        found = perplexity(model, encode(host.tokenizer, text), stride=options.stride, max_length=options.max_length)
    except ValueError as error:
        return _refuse([str(error)])
    seconds = round(time.time() - began, 3)
    asked = {"stride": options.stride, "max_length": options.max_length}
    folders = [folder] if folder else []
    identity = identity_of(host.model_path, options.quantization, folders, digest_of(text), **asked, model=host.model)
    try:
        host.record_evaluation(
            model=host.model_name, loras=lora, dataset=Path(options.text).stem, perplexity=found.value, **asked, details=details_of(found, identity)
        )
    except (OSError, ValueError, filelock.Timeout) as error:
        _say(f"note: the table of evaluations was not written: {reason(error)}")
    print(f"perplexity {found.value:.4f} over {found.scored_tokens} tokens in {seconds} s")
    if options.json:
        print(json.dumps({"perplexity": found.value, "scored_tokens": found.scored_tokens, "nll": found.nll, "seconds": seconds}))
    return DONE


def _controls(options: argparse.Namespace) -> int:
    from .views import controls_markdown

    print(controls_markdown(), end="")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
