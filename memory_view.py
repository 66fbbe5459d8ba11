"""What the page shows of a run's memory and time: plain functions from data to HTML."""

from __future__ import annotations

from html import escape

from .auto_batch import what_to_change
from .memory import Batch, DryRun, Estimate
from .settings import TrainingSettings
from .views import duration

WHERE = {"cpu": "of the machine's memory", "cuda": "of the graphics card's memory"}


def size(count: int) -> str:
    """1.2 GB, 340 MB, 0.3 MB"""
    if count >= 2**30:
        return f"{count / 2**30:,.1f} GB"
    return f"{count / 2**20:,.{0 if count >= 10 * 2**20 else 1}f} MB"


def _batch(batch: Batch) -> str:
    return f"{batch.rows:,} row{'' if batch.rows == 1 else 's'} of {batch.length:,} tokens"


def _table(rows: list[tuple[str, str, str]]) -> str:
    body = "".join(f"<tr><th>{escape(label)}</th><td>{escape(value)}</td><td>{escape(more)}</td></tr>" for label, value, more in rows)
    return f'<table class="tp-report">{body}</table>'


def _box(kind: str, heading: str, body: str) -> str:
    return f'<div class="tp-status {kind}"><div class="tp-head"><i class="tp-dot"></i><b>{escape(heading)}</b></div>{body}</div>'


def estimate_html(found: Estimate, settings: TrainingSettings, quantization: str) -> str:
    """The estimate, part by part, against what is free."""
    batch = (
        f"the longest batch: {_batch(found.batch)}"
        if found.known
        else f"a batch of {_batch(found.batch)}, the cutoff; Verify Dataset tells the true length"
    )
    layers = (
        "with Use Gradient Checkpoint: their inputs, and one layer at a time"
        if settings.use_grad_checkpoint
        else "what they keep for the backward pass"
    )
    rows = [
        ("Loaded model", size(found.base), "in memory already"),
        ("LoRA", size(found.adapter), f"rank {settings.lora_rank}, {settings.training_projection}"),
        ("Gradients", size(found.gradients), ""),
        ("Optimizer", size(found.optimizer), settings.optimizer),
        ("Layers", size(found.activations), f"{layers}, for {batch}"),
        ("Logits", size(found.logits), "and the loss"),
    ]
    if found.spread:
        rows.append(("Held back", size(found.spread), "what the system's allocator keeps of memory that was freed"))
    heading = f"Memory: about {size(found.extra)} beside the loaded model"
    advice = ""
    if found.available is not None:
        heading += f"; {size(found.available)} {WHERE.get(found.device, '')} are free"
    if found.fits is False:
        heading += ", which is likely too little"
        advice = f'<div class="tp-message">{escape(what_to_change(settings, quantization))}</div>'
    return _box("tp-bad" if found.fits is False else "tp-idle", heading, advice + _table(rows))


def dry_run_html(found: DryRun) -> str:
    """What a dry run measured, or what to change where memory was not enough."""
    if found.out_of_memory:
        tried = f"The longest batch ({_batch(found.batch)}) does not fit. {found.advice}"
        estimated = f"Estimated were about {size(found.estimate.extra)} beside the loaded model."
        return _box("tp-bad", "Dry run: out of memory", f'<div class="tp-message">{escape(tried)}</div><div>{escape(estimated)}</div>')
    taken = f"; torch took {size(found.reserved)} of {size(found.estimate.total)}" if found.reserved and found.estimate.total else ""
    rows = [
        ("Peak memory", size(found.peak), f"{size(found.extra)} of it beyond the loaded model, estimated about {size(found.estimate.extra)}{taken}"),
        ("Step, longest batch", _seconds(found.seconds_longest), _batch(found.batch)),
        ("Step, typical batch", _seconds(found.seconds_typical), _batch(found.typical)),
        ("Optimizer", _seconds(found.seconds_between), "each time the weights move"),
        ("Checkpoint", _seconds(found.seconds_saving), f"{size(found.checkpoint)} on the disk"),
        ("Whole run", duration(found.run_seconds), f"{found.steps:,} steps, without evaluations, samples and checkpoints"),
    ]
    notices = "".join(f"<li>{escape(said)}</li>" for said in found.notices)
    heading = f"Dry run: {size(found.peak)} at the highest moment, and about {duration(found.run_seconds)} for the run"
    return _box("tp-ok", heading, _table(rows) + (f'<ul class="tp-notices">{notices}</ul>' if notices else ""))


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds * 1000:,.0f} ms"
