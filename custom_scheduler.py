"""Learning-rate schedules as pure functions of the optimizer step, and one name → function table.

The five FP_ schedules are those of the original Training PRO. The others have the names and the formulas of transformers' own
(`transformers.optimization.get_scheduler`; a test compares the two). They stand here once more, so that a page can draw them at once
(importing transformers takes seconds), and because its polynomial fails where a rate is below 1e-7 or the warmup is the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

FP_SCHEDULERS: dict[str, Callable[[int, int, int, int], float]] = {}


def _fp(function: Callable[[int, int, int, int], float]) -> Callable[[int, int, int, int], float]:
    FP_SCHEDULERS[function.__name__.replace("fp_", "FP_", 1)] = function
    return function


# Each takes (s, T, E, W): the optimizer step, all of them, those of the first epoch, those of the warmup.


@_fp
def fp_low_epoch_annealing(s: int, T: int, E: int, W: int) -> float:
    """Warmup, the full rate to the end of the first epoch, then a cosine to zero."""
    return _hold_then_cosine(s, T, E, W)


@_fp
def fp_half_time_annealing(s: int, T: int, E: int, W: int) -> float:
    """Warmup, the full rate for half of the run, then a cosine to zero."""
    return _hold_then_cosine(s, T, T // 2, W)


@_fp
def fp_raise_fall_creative(s: int, T: int, E: int, W: int) -> float:
    """A cosine hump over the whole run with its top half-way; it is its own warmup."""
    H = T // 2
    return 0.5 * (1 + math.cos(math.pi * _share(s - H, T - H)))


@_fp
def fp_3epoch_raise_hold_fall(s: int, T: int, E: int, W: int) -> float:
    """First epoch a rising sine, second the full rate, then a falling cosine."""
    if s < E:
        return math.sin(math.pi / 2 * _share(s, E))
    if s < 2 * E:
        return 1.0
    return math.cos(math.pi / 2 * _share(s - 2 * E, T - 2 * E))


@_fp
def fp_step_decay_with_warmup(s: int, T: int, E: int, W: int) -> float:
    """Warmup, the full rate to the end of the first epoch, then half as much with each further epoch."""
    if s < min(W, E):
        return s / min(W, E)
    return 0.5 ** (s // max(1, E))  # the epoch is s // E + 1, and the rate ½^(epoch − 1)


SCHEDULERS: tuple[str, ...] = (
    "linear", "constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
    *FP_SCHEDULERS,
)  # fmt: skip
POLYNOMIAL_END = 1e-7  # the learning rate at which transformers' polynomial schedule ends


def lr_multiplier(name: str, step: int, *, total_steps: int, epoch_steps: int, warmup_steps: int) -> float:
    """What the learning rate is multiplied by at an optimizer step.

    Args:
        name: one of `FP_SCHEDULERS`.
        step: optimizer step, from 0.
        total_steps: optimizer steps of the whole run.
        epoch_steps: optimizer steps of the first epoch.
        warmup_steps: optimizer steps of the warmup; clamped to the phase it belongs to.

    Returns:
        A number from 0 to 1, for any step, also past the end.

    Raises:
        KeyError: no schedule of ours has this name.
    """
    return min(1.0, max(0.0, FP_SCHEDULERS[name](step, total_steps, epoch_steps, warmup_steps)))


def multiplier(name: str, step: int, *, total_steps: int, epoch_steps: int, warmup_steps: int, learning_rate: float = 3e-4) -> float:
    """`lr_multiplier` for every name in `SCHEDULERS`: what a run uses.

    Args:
        learning_rate: the full rate. Only polynomial asks for it: it falls to 1e-7, not to 0.

    Raises:
        KeyError: no schedule has this name.
    """
    if name in FP_SCHEDULERS:
        return lr_multiplier(name, step, total_steps=total_steps, epoch_steps=epoch_steps, warmup_steps=warmup_steps)
    if name not in SCHEDULERS:
        raise KeyError(name)
    if name == "constant":
        return 1.0
    if step < warmup_steps:
        return step / warmup_steps
    if name == "inverse_sqrt":
        timescale = warmup_steps or 10_000
        return 1 / math.sqrt((step + timescale - warmup_steps) / timescale)
    if name == "constant_with_warmup":
        return 1.0
    falling = max(1, total_steps - warmup_steps)
    if name == "linear":
        return max(0.0, (total_steps - step) / falling)
    done = min(1.0, (step - warmup_steps) / falling)
    if name == "polynomial":
        end = min(1.0, POLYNOMIAL_END / learning_rate)
        return (1 - end) * (1 - done) + end
    return 0.5 * (1 + math.cos(math.pi * done))  # cosine, and cosine_with_restarts, whose default is one cycle: no restart


def warmup_used(name: str, *, total_steps: int, epoch_steps: int, warmup_steps: int) -> int:
    """The optimizer steps that a schedule really warms up for: at most the phase it belongs to, and 0 where it knows no warmup."""
    if name in ("constant", "FP_raise_fall_creative", "FP_3epoch_raise_hold_fall"):
        return 0
    if name == "FP_half_time_annealing":
        return min(warmup_steps, total_steps // 2)
    return min(warmup_steps, epoch_steps if name in FP_SCHEDULERS else total_steps)


def curve(
    name: str, *, total_steps: int, epoch_steps: int, warmup_steps: int, points: int = 400, learning_rate: float = 3e-4
) -> list[tuple[int, float]]:
    """(optimizer step, multiplier) over a whole run, to be drawn.

    Args:
        points: how many there are at most, but for some thirty corners (ends of the warmup, of the epochs, of the halves) that are
            always there. A shorter run has all its steps.

    Returns:
        From step 0 to `total_steps`. The last optimizer step uses the value before the last: the last is where the schedule arrives.
    """
    steps: set[int] = set(range(total_steps + 1))
    if total_steps >= points:
        half, warmup = total_steps // 2, warmup_used(name, total_steps=total_steps, epoch_steps=epoch_steps, warmup_steps=warmup_steps)
        ends = [epoch * epoch_steps for epoch in range(1, 13)]  # a twelfth halving is less than a line's width
        corners = {warmup, half, total_steps - 1, *ends, *(end - 1 for end in ends)}
        steps = {round(place * total_steps / (points - 1)) for place in range(points)} | {step for step in corners if 0 <= step <= total_steps}
    lengths = {"total_steps": total_steps, "epoch_steps": epoch_steps, "warmup_steps": warmup_steps, "learning_rate": learning_rate}
    return [(step, multiplier(name, step, **lengths)) for step in sorted(steps)]


def schedule_notices(name: str, *, total_steps: int, epoch_steps: int, warmup_steps: int, epochs: float) -> list[str]:
    """What the user should know before a run with this schedule and these lengths (optimizer steps)."""
    notices = []
    used = warmup_used(name, total_steps=total_steps, epoch_steps=epoch_steps, warmup_steps=warmup_steps)
    if name in ("FP_low_epoch_annealing", "FP_step_decay_with_warmup", "FP_half_time_annealing") and warmup_steps > used:
        notices.append(f"Warmup ({warmup_steps} optimizer steps) is longer than the phase it belongs to in {name}; {used:g} are used.")
    if name == "FP_3epoch_raise_hold_fall" and epochs < 3:
        notices.append(f"FP_3epoch_raise_hold_fall is made for 3 epochs or more; with {epochs:g} it ends before its fall is whole.")
    if used >= total_steps > 0:
        notices.append(
            f"Warmup ({warmup_steps} optimizer steps) is as long as the run ({total_steps}), so the learning rate never reaches "
            f"its full value. Lower Warmup Steps to about {max(1, total_steps // 10)}."
        )
    return notices


def _hold_then_cosine(s: int, T: int, held: int, W: int) -> float:
    warmup = min(W, held)
    if s < warmup:
        return s / warmup
    if s < held:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * _share(s - held, T - held)))


def _share(part: int, whole: int) -> float:
    """part / whole, and the phase's end where the phase has no length; never past its end."""
    return 1.0 if whole <= 0 else min(part / whole, 1.0)
