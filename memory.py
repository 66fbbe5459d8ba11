"""How much memory and time a run needs: an estimate from the shapes of the model, and a dry run that measures.

The estimate counts what training holds at its highest moment: the weights as they are loaded, the LoRA with its gradients and the
optimizer's numbers, what each layer keeps for the backward pass, and the logits. It knows nothing of how a device hands out memory, so
it is about right and no more; docs/benchmarks.md has it beside what was measured.

The dry run is the run itself (its LoRA, its Trainer, its collator) on two batches, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import resume, train_utils, training_run
from .adapters import attach_lora, beginning_bytes, save_adapter, target_modules, trained_bytes
from .attention import AUTO, attention, attention_of
from .auto_batch import is_out_of_memory, what_to_change
from .dataset_tools import Prepared, prepare
from .host import Host, NotFree, free_memory, quantization_of
from .packing import layout_of
from .settings import ALL_LINEAR, Plan, TrainingSettings
from .step_kernels import put_back
from .trainer import Order, make_trainer
from .training_run import Diverged, TrainingRun
from .untouched import optimizer_overrides_forgotten, random_state_kept, untouched
from .versions import optimizer_of

OPTIMIZER_GUESS = 8.0  # bytes a weight: the two moments of Adam in 32 bits
SPREAD = 1.2  # of what a step takes and frees
MEASURED_STEPS = 3  # optimizer steps of a dry run: the longest batch to warm up, the longest, a typical one
NAME = "dry run"


class CannotMeasure(RuntimeError):
    """Why there is no dry run; `problems` has a sentence for each reason, with what to do."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


# What a batch is


@dataclass(frozen=True)
class Batch:
    """A batch by its shape: `rows` at once, each `length` tokens with its padding."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def longest_batch(settings: TrainingSettings, prepared: Prepared | None = None) -> Batch:
    """The largest batch that the data can give: its longest rows together. Without prepared data every row is as long as the cutoff."""
    if prepared is None:
        return Batch(settings.micro_batch_size, settings.cutoff_len)
    lengths = _row_lengths(prepared)
    return Batch(min(settings.micro_batch_size, len(lengths)), int(lengths.max()))


def _row_lengths(prepared: Prepared) -> Any:
    """Tokens of each row of an epoch, as numpy int64; with packing, of those of the first epoch in their order."""
    import numpy

    lengths = numpy.asarray(prepared.blocks.lengths, dtype=numpy.int64)
    if prepared.packing is None:
        return lengths
    return numpy.asarray([lengths[list(row)].sum() for row in prepared.packing.of(0)], dtype=numpy.int64)


# The estimate


@dataclass(frozen=True)
class Estimate:
    """Bytes at the highest moment of a run, by what holds them, and what the device has.

    `base` is in memory already. `spread` is what a processor's allocator does not give back of what was freed. `available` is free for the rest (None: not known), `total` the whole of the device.
    """

    batch: Batch
    known: bool  # whether the batch is that of prepared data, or only supposed to be as long as the cutoff
    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    spread: int
    device: str
    available: int | None = None
    total: int | None = None

    @property
    def extra(self) -> int:
        """What the run needs beside the loaded model."""
        return self.adapter + self.gradients + self.optimizer + self.activations + self.logits + self.spread

    @property
    def whole(self) -> int:
        return self.base + self.extra

    @property
    def fits(self) -> bool | None:
        return None if self.available is None else self.extra <= self.available


def estimate(settings: TrainingSettings, model: Any, prepared: Prepared | None = None) -> Estimate:
    """Args:
    model: the base model as it is loaded, with no adapter on it; only looked at.
    prepared: the data; without it the longest batch is supposed to be of the cutoff's length.
    """
    batch = longest_batch(settings, prepared)
    device = model.device.type
    if device == "cuda":  # as the collator rounds it up
        batch = replace(batch, length=-(-batch.length // 8) * 8)
    trained = trained_bytes(settings, model)
    available, total = memory_of(model)
    activations, logits = _activations(settings, model, batch), _logits(settings, model, batch)
    return Estimate(
        batch=batch,
        known=prepared is not None,
        base=_weights(model),
        adapter=trained + beginning_bytes(settings, model) + _cast_up(model),
        gradients=trained,
        optimizer=int(trained / 4 * optimizer_bytes(settings.optimizer, str(model.device))),
        activations=activations,
        logits=logits,
        spread=_spread(model, batch, activations + logits),
        device=device,
        available=available,
        total=total,
    )


def _weights(model: Any) -> int:
    """Of the weights as they are stored; with the scales of a quantised one."""
    import torch

    total = 0
    for weight in {id(weight): weight for weight in (*model.parameters(), *model.buffers())}.values():
        total += weight.numel() * weight.element_size()
        for state in (getattr(weight, "quant_state", None), getattr(getattr(weight, "quant_state", None), "state2", None)):
            total += sum(each.numel() * each.element_size() for each in vars(state).values() if torch.is_tensor(each)) if state is not None else 0
    return total


def _cast_up(model: Any) -> int:
    """What PEFT makes of a quantised model before training: the weights that are not quantised, in 32 bits."""
    import torch

    if quantization_of(model) not in ("4-bit", "8-bit"):
        return 0
    halves = [weight for weight in model.parameters() if weight.dtype in (torch.float16, torch.bfloat16)]
    return sum(weight.numel() * 2 for weight in halves)


@lru_cache(maxsize=64)
def optimizer_bytes(name: str, device: str) -> float:
    """What an optimizer keeps for each trained weight, in bytes: asked of it, by one step on a weight of its own.

    A weight of adafactor's, whose state grows with the sides of a matrix, is taken to be a usual one of a LoRA.
    """
    import torch

    try:
        kind, options = optimizer_of(name)
        weight = torch.nn.Parameter(torch.zeros(32, 1024, device=device))
        weight.grad = torch.zeros_like(weight)
        optimizer = kind([weight], **options)
        optimizer.step()
        kept = {id(value): value for value in optimizer.state[weight].values() if torch.is_tensor(value)}.values()
        # bitsandbytes keeps its tables of 256 numbers once for all weights
        return sum(value.numel() * value.element_size() for value in kept if value.numel() != 256) / weight.numel()
    except Exception:  # an optimizer that cannot be used here is refused when the run is checked
        return OPTIMIZER_GUESS


def _layers(model: Any) -> list[Any]:
    """The decoder's layers: the longest list of modules."""
    import torch

    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=[model])


def _config(model: Any) -> Any:
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def _element(model: Any) -> int:
    """Bytes of a number of the hidden states: a quantised or half-precision model computes in 16 bits."""
    return 2 if quantization_of(model) in ("4-bit", "8-bit") and model.device.type == "cuda" else max(2, model.dtype.itemsize)


def _activations(settings: TrainingSettings, model: Any, batch: Batch) -> int:
    """What the layers keep for the backward pass, and what it needs on its way.

    After Korthikanti et al. 2022 (arXiv:2205.05198), section 4.1, counted from the layers' own shapes: what is frozen keeps no inputs,
    and each LoRA layer keeps the input that its dropout left.
    """
    layers = _layers(model)
    size, hidden = _element(model), getattr(_config(model), "hidden_size", 0) or 0
    targets = target_modules(settings)
    kept = max((_layer(settings, model, layer, targets, size) for layer in layers[:4]), default=0) * batch.tokens + _scores(
        settings, model, batch, size
    )
    widest = max((max(sides) for layer in layers[:4] for _, sides in _linears(layer)), default=hidden)
    on_the_way = 3 * widest * size * batch.tokens
    if quantization_of(model) in ("4-bit", "8-bit"):
        on_the_way += max((sides[0] * sides[1] for layer in layers[:4] for _, sides in _linears(layer)), default=0) * 2 * size  # one weight, unpacked
    if settings.use_grad_checkpoint:
        return len(layers) * hidden * size * batch.tokens + kept + on_the_way
    return len(layers) * kept + on_the_way


def _linears(layer: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (inputs, outputs)) of each linear module of a layer."""
    for name, module in layer.named_modules():
        if type(module).__name__ == "Conv1D":  # GPT-2's
            yield name, tuple(module.weight.shape)
        elif hasattr(module, "in_features") and hasattr(module, "out_features"):
            yield name, (module.in_features, module.out_features)


def _layer(settings: TrainingSettings, model: Any, layer: Any, targets: Any, size: int) -> int:
    """Bytes that one decoder layer keeps for each token."""
    total, widest, hidden = 0, 0, getattr(_config(model), "hidden_size", 0) or 0
    mask = size if model.device.type == "cpu" else 1  # which inputs a dropout left
    for name, (inputs, outputs) in _linears(layer):
        total += outputs * size
        widest = max(widest, outputs)
        if targets == ALL_LINEAR or name.rsplit(".", 1)[-1] in targets:
            total += inputs * (size + (mask if settings.lora_dropout else 0)) + settings.lora_rank * size
    for module in layer.modules():
        kind = type(module).__name__
        if "Norm" in kind:
            total += hidden * 4  # computed in 32 bits
        elif any(word in kind for word in ("SiLU", "GELU", "Activation", "ReLU")):
            # those that are written out in Python keep a tensor for each of their operations
            total += widest * size * (5 if kind in ("NewGELUActivation", "FastGELUActivation", "QuickGELUActivation") else 1)
    return total


def _scores(settings: TrainingSettings, model: Any, batch: Batch, size: int) -> int:
    """Bytes of the attention's scores that one layer keeps: none but where it is computed the plain way; then in 32 bits, and in the model's."""
    if (attention_of(model) if settings.attention == AUTO else settings.attention) != "eager":
        return 0
    heads = getattr(_config(model), "num_attention_heads", 1) or 1
    return batch.rows * heads * batch.length**2 * (size if size == 4 else 4 + size)


def _logits(settings: TrainingSettings, model: Any, batch: Batch) -> int:
    """The logits of a batch, their logarithms and their gradients; of some positions at a time where the loss is computed so."""
    from .chunked_loss import CHUNK_BYTES

    head = model.get_output_embeddings()
    words = getattr(_config(model), "vocab_size", 0) if head is None else head.weight.shape[0] if head.weight.dim() == 2 else 0
    words = getattr(head, "out_features", None) or words
    whole = batch.tokens * words * (12 if _element(model) == 4 else 14)
    capped = any(getattr(_config(model), name, None) for name in ("final_logit_softcapping", "router_aux_loss_coef"))
    if head is None or settings.lora_modulessave or capped:
        return whole
    hidden = getattr(_config(model), "hidden_size", 0) or 0
    chunk = CHUNK_BYTES.get(model.device.type, CHUNK_BYTES["cuda"])
    return min(whole, 4 * chunk) + 2 * batch.tokens * hidden * _element(model)


def _spread(model: Any, batch: Batch, passing: int) -> int:
    """What glibc holds back of the memory that a step takes and frees: tensors of up to 32 MB come from its heap, which frays (measured)."""
    hidden = getattr(_config(model), "hidden_size", 0) or 0
    if model.device.type != "cpu" or not sys.platform.startswith("linux") or batch.tokens * hidden * _element(model) > 32 * 2**20:
        return 0
    return int(SPREAD * passing)


# What the device has


def memory_of(model: Any) -> tuple[int | None, int | None]:
    """(free, whole) bytes of the memory that the model lies in: of its graphics cards together, or of the machine."""
    import torch

    cards = sorted({weight.device for weight in model.parameters() if weight.device.type == "cuda"}, key=str)
    if cards:
        asked = [torch.cuda.mem_get_info(card) for card in cards]
        unused = sum(torch.cuda.memory_reserved(card) - torch.cuda.memory_allocated(card) for card in cards)
        return sum(free for free, _ in asked) + unused, sum(whole for _, whole in asked)
    import psutil

    memory = psutil.virtual_memory()
    free, whole = memory.available, memory.total
    with contextlib.suppress(OSError, ValueError):  # what a container may use of it ("max": all); its caches can be let go of
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        caches = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(caches.get("inactive_file", 0)) - int(caches.get("active_file", 0))
        free, whole = min(free, max(0, limit - used)), min(whole, limit)
    return free, whole


class Watch:
    """The most memory that is in use inside the block, in bytes: torch's on graphics cards, the process's own on the processor."""

    def __init__(self, model: Any):
        self.cards = sorted({weight.device for weight in model.parameters() if weight.device.type == "cuda"}, key=str)
        self.before = self.peak = self.reserved = 0

    def __enter__(self) -> Watch:
        import torch

        free_memory()
        self._stop, self._thread = threading.Event(), None
        if self.cards:
            for card in self.cards:
                torch.cuda.reset_peak_memory_stats(card)
            self.before = sum(torch.cuda.memory_allocated(card) for card in self.cards)
            return self
        _trim()
        self.before = _resident()
        self._exact = _forget_peak()
        if not self._exact:
            self._thread = threading.Thread(target=self._look, daemon=True, name="training-pro-memory")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if self.cards:
            self.peak = sum(torch.cuda.max_memory_allocated(card) for card in self.cards)
            self.reserved = sum(torch.cuda.max_memory_reserved(card) for card in self.cards)
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.peak = max(self.peak, _status("VmHWM") if self._exact else _resident())

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, _resident())


def _trim() -> None:
    """Let glibc give back what was freed: else what is needed again would not be seen."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _forget_peak() -> bool:
    """Let Linux count the highest resident size anew; whether it does."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmHWM") > 0
    return False


def _status(name: str) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


# The dry run


@dataclass(frozen=True)
class DryRun:
    """What was measured. Bytes and seconds; where memory was not enough, `advice` says what to change and nothing else is known."""

    batch: Batch  # the longest
    typical: Batch
    estimate: Estimate
    before: int = 0  # in use before the first step, the loaded model among it
    peak: int = 0  # in use at the highest moment
    reserved: int = 0  # of a graphics card: what torch took for it
    seconds_longest: float = 0.0  # of a step (one True Batch)
    seconds_typical: float = 0.0
    seconds_between: float = 0.0  # of an optimizer step beside its steps
    seconds_saving: float = 0.0
    checkpoint: int = 0  # bytes on the disk
    steps: int = 0
    run_seconds: float = 0.0
    notices: list[str] = field(default_factory=list)
    advice: str = ""

    @property
    def out_of_memory(self) -> bool:
        return bool(self.advice)

    @property
    def extra(self) -> int:
        return self.peak - self.before


def dry_run(settings: TrainingSettings, host: Host, progress: Callable[[str, float], None] = lambda doing, share: None) -> DryRun:
    """A few steps of the run that these settings mean, measured; the model, the random numbers and the disk are as before afterwards.

    Args:
        progress: called with what is being done and the share of it that is done; what it raises ends the dry run.

    Raises:
        CannotMeasure: a run is going on, the model is in use, or something would keep the run from starting.
        DataError: the data cannot be prepared.
    """
    if (run := training_run.current()) is not None and run.active:
        raise CannotMeasure([f"A dry run needs the model. {training_run.busy_message(run)}"])
    if problems := train_utils.check(settings.model_copy(update={"lora_name": NAME, "always_override": True}), host):
        raise CannotMeasure(problems)
    try:
        with host.using_model(give_up=lambda: True, what="a dry run measures with it"):
            if host.dirty:
                progress("Loading the base model again, since an earlier run left it changed", 0.0)
                host.reload_model()
            progress("Preparing the data", 0.0)
            prepared = prepare(settings, host.tokenizer, host, progress)
            return _measured(settings, host.model, prepared, progress)
    except NotFree:
        raise CannotMeasure(
            [f"A dry run needs the model, and {host.used_for or 'a text is being generated with it'}. Try again when it is free."]
        ) from None


def _measured(settings: TrainingSettings, model: Any, prepared: Prepared, progress: Callable[[str, float], None]) -> DryRun:
    import transformers

    order, longest, typical = _order(settings, prepared)
    found = DryRun(longest, typical, estimate(settings, model, prepared))
    failed = ""
    with random_state_kept(), optimizer_overrides_forgotten():
        try:
            with untouched(model), put_back(model, settings), attention(model, settings.attention), tempfile.TemporaryDirectory() as folder:
                transformers.set_seed(settings.seed)
                found = _steps(settings, model, prepared, order, found, Path(folder), progress)
        except Diverged as error:
            raise CannotMeasure([f"In the dry run the {error}. Lower the Learning Rate, or look for a broken row in the data."]) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = what_to_change(settings, quantization_of(model))
        finally:
            free_memory()
    return replace(found, advice=failed) if failed else found


def _steps(
    settings: TrainingSettings,
    model: Any,
    prepared: Prepared,
    order: list[Any],
    found: DryRun,
    folder: Path,
    progress: Callable[[str, float], None],
) -> DryRun:
    accumulation = min(prepared.plan.accumulation, 2)  # the second forward pass of a step has gradients beside it, and a third has no more
    quiet = settings.model_copy(update={
        "lora_name": NAME, "micro_batch_size": found.batch.rows, "grad_accumulation": accumulation, "batch_size": 0, "report_to": None, "save_steps": 0,
        "save_steps_under_loss": 0, "stop_at_loss": 0, "stop_at_epoch": 0, "time_budget_minutes": 0, "early_stopping_patience": 0,
        "load_best_at_end": False, "sample_steps": 0,
    })  # fmt: skip
    order = [row for batch in order for _ in range(accumulation) for row in batch]
    plan = Plan(len(order), found.batch.rows, accumulation, 1)
    run = TrainingRun(NAME, settings=quiet)
    layout = layout_of(model, settings.cutoff_len) if settings.packing else None
    short = replace(prepared, plan=plan, eval=None)
    with Watch(model) as watch:
        adapted = attach_lora(model, quiet)
        trainer = make_trainer(adapted, quiet, run, short, folder, lambda name: None, None, layout, order=order)
        clock = _Clock(trainer, MEASURED_STEPS * accumulation, progress)
        trainer.train()
        began = time.perf_counter()
        save_adapter(adapted, folder / "adapter")
        _save(resume.tensors_of(trainer, resume.random_state()), folder / resume.TENSORS)
        saving = time.perf_counter() - began
    longest, typical, between = clock.figures(accumulation)
    steps, optimizer_steps = prepared.plan.total_steps, prepared.plan.optimizer_steps
    return replace(
        found,
        before=watch.before,
        peak=watch.peak,
        reserved=watch.reserved,
        seconds_longest=longest,
        seconds_typical=typical,
        seconds_between=between,
        seconds_saving=saving,
        checkpoint=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        steps=steps,
        run_seconds=steps * typical + optimizer_steps * between,
        notices=run.notices,
    )


def _save(tensors: Any, path: Path) -> None:
    import torch

    torch.save(tensors, path)


class _Clock:
    """When each step of a trainer begins and ends; a graphics card is waited for, since it works behind."""

    def __init__(self, trainer: Any, steps: int, progress: Callable[[str, float], None]):
        self.times: list[tuple[float, float]] = []
        step, device = trainer.training_step, trainer.model.device

        def timed(*arguments: Any, **named: Any) -> Any:
            progress(f"Dry run: step {len(self.times) + 1} of {steps}", len(self.times) / steps)
            _wait_for(device)
            began = time.perf_counter()
            loss = step(*arguments, **named)
            _wait_for(device)
            self.times.append((began, time.perf_counter()))
            return loss

        trainer.training_step = timed

    def figures(self, accumulation: int) -> tuple[float, float, float]:
        """Seconds of a step of the longest batch and of the typical one, once warm, and between the steps of two optimizer steps."""
        longest, typical = self.times[accumulation : 2 * accumulation], self.times[2 * accumulation :]
        mean = [sum(end - begin for begin, end in part) / len(part) for part in (longest, typical)]
        return mean[0], mean[1], typical[0][0] - longest[-1][1]


def _wait_for(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _order(settings: TrainingSettings, prepared: Prepared) -> tuple[list[list[Any]], Batch, Batch]:
    """The batches of the dry run's optimizer steps, as what its sampler gives, and the shapes of the longest and the typical one.

    The typical batch is that of the run's first epoch whose padded size is nearest to the mean of them all, so that its time times the
    steps is the time of the run.
    """
    import numpy

    plan = prepared.plan
    rows: Any = prepared.packing.of(0) if prepared.packing is not None else range(len(prepared.blocks))
    lengths = _row_lengths(prepared)
    size = min(settings.micro_batch_size, len(lengths))
    longest = [rows[number] for number in numpy.argsort(-lengths, kind="stable")[:size].tolist()]
    if prepared.packing is not None:
        places = numpy.arange(len(lengths))
    else:
        group_by = settings.micro_batch_size * plan.accumulation if settings.group_by_length else 0
        places = numpy.asarray(Order(prepared.blocks.lengths, settings.seed, group_by).of(0))
    whole = places[: len(places) // size * size].reshape(-1, size)
    widths = lengths[whole].max(axis=1)
    nearest = int(abs(widths - widths.mean()).argmin())
    typical = [rows[number] for number in whole[nearest].tolist()]
    return [longest, longest, typical], Batch(size, int(lengths.max())), Batch(size, math.ceil(widths[nearest]))
