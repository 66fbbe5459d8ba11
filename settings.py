"""Every option of a run, once: key, default, label, help, range, choices.

The page's widgets, the saved JSON, the checks, `--help` and docs/controls.md are all made from the fields of
`TrainingSettings`, so a new option is one field here and the line that uses it.
"""

from __future__ import annotations

import json
import logging
import math
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .chat_templates import HOSTS, SHIPPED
from .custom_scheduler import SCHEDULERS
from .paths import name_problem, whole_letters, write_json

logger = logging.getLogger(__name__)

TEXT_ROWS = "text rows"  # the Data Format of rows that hold a whole text under “text”
MOST_PROMPTS = 4  # that are answered during a run
NOT_CHOSEN = "None"  # how a dropdown without a choice is written in saved files, ours and the older ones

SECTIONS = {
    "general": "A. General LoRA settings",
    "core": "B. LoRA core parameters",
    "checkpoints": "C. Checkpoints",
    "stops": "D. Stops",
    "advanced": "E. Advanced options",
    "json": "JSON Dataset",
    "jsonl": "JSONL Dataset",
    "text": "Text file",
    "hybrid": "Hybrid",
    "final": "G. Final configuration",
}


@dataclass(frozen=True)
class Option:
    """How one setting is shown and checked.

    `low` and `high` are inclusive; `step` is the widget's and is not checked, since a file may hold any value between.
    `choices` is a list, or a function where it depends on what is installed; dropdowns of files get theirs from the host.
    """

    key: str
    label: str
    help: str
    section: str
    widget: str  # slider, number, text, checkbox, dropdown or radio
    default: Any
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: list[str] | Callable[[], list[str]] | None = None
    files: str | None = None  # json, jsonl, text or format: a dropdown of the host's files of this kind
    works: bool = True  # False: only read from old files, and not shown on the page
    whole: bool = False  # only whole numbers
    positive: bool = False  # 0 is on the widget, but cannot be trained with
    lines: int = 1  # of a text

    def offered(self) -> list[str]:
        return list(self.choices() if callable(self.choices) else self.choices or [])


def option(default: Any, label: str, help: str, *, section: str, widget: str, **more: Any) -> Any:
    """A pydantic field that carries its `Option`."""
    return Field(default, title=label, description=help, json_schema_extra={"option": dict(section=section, widget=widget, **more)})


OPTIMIZERS_FIRST = [
    "adamw_torch", "adamw_torch_fused", "adafactor", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit",
    "paged_adamw_32bit", "sgd", "adagrad",
]  # fmt: skip
RENAMED_OPTIMIZERS = {"adamw_hf": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}


def optimizers(loaded: bool = False) -> list[str]:
    """Every optimizer name that the installed transformers accepts, the usual ones first.

    Args:
        loaded: do not import transformers for it, which takes seconds: where it is not loaded yet, the usual ones alone.
    """
    if loaded and "transformers.training_args" not in sys.modules:
        return list(OPTIMIZERS_FIRST)
    from transformers.training_args import OptimizerNames

    known = [name.value for name in OptimizerNames]
    return [name for name in OPTIMIZERS_FIRST if name in known] + [name for name in known if name not in OPTIMIZERS_FIRST]


PROJECTIONS = {
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "q-k-v-o": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "q-k-v": ["q_proj", "k_proj", "v_proj"],
    "k-v-down": ["k_proj", "v_proj", "down_proj"],
    "q-v": ["q_proj", "v_proj"],
}
ALL_LINEAR = "all-linear"


class TrainingSettings(BaseModel):
    """What the user entered. One field is one option; see `Option` for what a field carries."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, coerce_numbers_to_str=True, allow_inf_nan=False)

    # A. General
    lora_name: str = option("", "Name", "Name of the new LoRA: the folder it is saved in.", section="general", widget="text")
    always_override: bool = option(
        False,
        "Override Existing Files",
        "When a LoRA of this name exists: on starts afresh and puts the old one away until the new one is saved; off goes on training it.",
        section="general",
        widget="checkbox",
    )

    # B. Core
    lora_rank: int = option(
        32,
        "LoRA Rank",
        "How much the LoRA can hold. 4 to 16 for tone and style, 32 to 128 for new facts and manners; more needs more memory.",
        section="core", widget="slider", low=0, high=1024, step=4, whole=True, positive=True,
    )  # fmt: skip
    lora_alpha: int = option(
        64,
        "LoRA Alpha",
        "How strongly the LoRA acts: its weights are scaled by alpha / rank. Once or twice the rank is usual.",
        section="core", widget="slider", low=0, high=2048, step=4, whole=True, positive=True,
    )  # fmt: skip
    lora_RS: bool = option(False, "Use rsLoRA", "Scale by rsLoRA Alpha / √rank instead: steadier at high ranks.", section="core", widget="checkbox")
    lora_RS_alpha: float = option(
        16,
        "rsLoRA Alpha",
        "Takes the place of LoRA Alpha while rsLoRA is on. 16 is a good start.",
        section="core", widget="number", low=0, high=100_000, positive=True,
    )  # fmt: skip
    micro_batch_size: int = option(
        4,
        "True Batch Size",
        "Blocks that go through the model at once: one step. More is steadier and needs more memory.",
        section="core", widget="slider", low=1, high=128, step=1, whole=True,
    )  # fmt: skip
    grad_accumulation: int = option(
        1,
        "Gradient Accumulation Steps",
        "Steps that are added up before the weights move once: a larger batch without more memory. Lowered when the data cannot fill it.",
        section="core", widget="slider", low=1, high=256, step=1, whole=True,
    )  # fmt: skip
    batch_size: int = option(
        0,
        "Batch size (old runs)",
        "Only read from old runs: when above 0, Gradient Accumulation Steps is this divided by True Batch Size.",
        section="core", widget="number", low=0, high=100_000, whole=True, works=False,
    )  # fmt: skip
    epochs: float = option(
        3,
        "Epochs",
        "How often every block is seen. Fractions are allowed: 0.5 is half of the data.",
        section="core", widget="number", low=0, high=10_000, positive=True,
    )  # fmt: skip
    learning_rate: str = option(
        "3e-4",
        "Learning Rate",
        "How far the weights move at each step. 3e-4 is a good start; 1e-2 is very high, 1e-6 very low.",
        section="core", widget="text",
    )  # fmt: skip
    lr_scheduler_type: str = option(
        "linear",
        "LR Scheduler",
        "How the learning rate changes over the run. The FP_ ones hold it for a while and then let it fall.",
        section="core", widget="dropdown", choices=list(SCHEDULERS),
    )  # fmt: skip

    # C. Checkpoints
    save_steps: int = option(
        0,
        "Save every n steps",
        "Saves a checkpoint every n steps and at the end of each epoch. 0 is off.",
        section="checkpoints", widget="number", low=0, high=10_000_000, whole=True,
    )  # fmt: skip
    save_steps_under_loss: float = option(
        1.8,
        "Save at 10% Loss change",
        "Saves a checkpoint when the loss has stayed below this value, and again each time it has fallen by a further 10%. 0 is off.",
        section="checkpoints", widget="slider", low=0, high=3, step=0.1,
    )  # fmt: skip

    # D. Stops
    stop_at_loss: float = option(
        0,
        "Stop at loss",
        "Ends the run and saves when the loss (mean of the last 3) is this low. 0 is off. Can be changed while training.",
        section="stops", widget="slider", low=0, high=3, step=0.1,
    )  # fmt: skip
    stop_at_epoch: int = option(
        0,
        "Stop at Epoch",
        "Ends the run and saves at the end of this epoch. 0 is off. Can be changed while training.",
        section="stops", widget="slider", low=0, high=20, step=1, whole=True,
    )  # fmt: skip

    # E. Advanced
    warmup_steps: int = option(
        100,
        "Warmup Steps",
        "The learning rate rises to its full value over this many steps. 0: Warmup Ratio decides.",
        section="advanced", widget="number", low=0, high=10_000_000, whole=True,
    )  # fmt: skip
    warmup_ratio: float = option(
        0,
        "Warmup Ratio",
        "Warmup as a share of all steps. Counts only when Warmup Steps is 0.",
        section="advanced", widget="slider", low=0, high=0.2, step=0.025,
    )  # fmt: skip
    neft_noise_alpha: float = option(
        0,
        "NEFtune noise scale",
        "Adds a little noise to the embeddings, which can help against learning by heart. 0 is off; 5 is a good start.",
        section="advanced", widget="slider", low=0, high=15, step=0.5,
    )  # fmt: skip
    training_projection: str = option(
        "q-v",
        "Target Projections",
        "Which layers get LoRA weights. q-v is light, all learns most. all-linear fits every architecture, also those whose layers have other names.",
        section="advanced", widget="radio", choices=[*PROJECTIONS, ALL_LINEAR],
    )  # fmt: skip
    lora_modulessave: bool = option(
        False,
        "Train Head",
        "Also trains lm_head and embed_tokens in full (continued pretraining). Large: choose an 8-bit optimizer with it.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    use_grad_checkpoint: bool = option(
        False,
        "Use Gradient Checkpoint",
        "Computes some values twice instead of keeping them: less memory, slower.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    lora_dropout: float = option(
        0.05,
        "LoRA Dropout",
        "Chance that a LoRA input is left out in a step, against learning by heart. Most can leave it as it is.",
        section="advanced", widget="slider", low=0, high=1, step=0.025,
    )  # fmt: skip
    optimizer: str = option(
        "adamw_torch",
        "Optimizer",
        "adamw_torch is good for nearly everything; paged_adamw_8bit and adamw_8bit need less memory.",
        section="advanced", widget="dropdown", choices=optimizers,
    )  # fmt: skip
    train_only_after: str = option(
        "",
        "Train Only After",
        "JSON rows: only what follows the first place of this string is learned, such as “### Response:”. Needs Train on Inputs off.",
        section="advanced", widget="text",
    )  # fmt: skip
    train_on_inputs: bool = option(
        True,
        "Train on Inputs (Full sequence loss)",
        "On: every token is learned. Off: JSON learns what follows Train Only After, JSONL learns the assistant's turns.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    add_bos_token: bool = option(
        True, "Add BOS token", "Begins each block with the model's start token. Never doubled.", section="advanced", widget="checkbox"
    )
    add_eos_token: bool = option(
        True,
        "Add EOS token",
        "Ends each block with the model's end token, so that it learns to stop. Never doubled. For JSONL the chat template decides.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    add_eos_token_type: str = option(
        "Every Block",
        "EOS placement (Text file)",
        "Text files: an EOS after every block, or only where a hard cut ends the text.",
        section="advanced", widget="dropdown", choices=["Every Block", "Hard Cut Blocks Only"],
    )  # fmt: skip
    group_by_length: bool = option(
        False,
        "Group Samples by Length",
        "Puts blocks of like length in one batch: less padding, a more restless loss curve.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    eliminate_long_blocks: bool = option(
        False,
        "Eliminate cutoff blocks",
        "Rows longer than the cutoff: on leaves them out, off trims them at the end. Either way they are counted and shown.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    higher_rank_limit: bool = option(
        False,
        "Enable higher ranks",
        "Doubles the range of LoRA Rank and LoRA Alpha. Needs very much memory.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    report_to: str | None = option(
        None,
        "Save detailed logs with",
        "Sends the figures to Weights & Biases or TensorBoard as well, where installed.",
        section="advanced", widget="radio", choices=[NOT_CHOSEN, "wandb", "tensorboard"],
    )  # fmt: skip
    seed: int = option(
        42,
        "Seed",
        "The same seed, data and settings give the same LoRA on the same machine.",
        section="advanced", widget="number", low=0, high=2**32 - 1, whole=True,
    )  # fmt: skip
    weight_decay: float = option(
        0, "Weight decay", "Pulls the LoRA weights towards zero. 0 is off.", section="advanced", widget="number", low=0, high=10
    )
    max_grad_norm: float = option(
        1,
        "Gradient clipping",
        "Longest step the gradient may ask for (its norm). 0 is off.",
        section="advanced", widget="number", low=0, high=1_000_000,
    )  # fmt: skip

    # F. Data
    dataset: str | None = option(
        None,
        "Dataset",
        "JSON, CSV or Parquet file of the datasets folder, or a dataset of huggingface.co: owner/name or owner/name:split.",
        section="json",
        widget="dropdown",
        files="json",
    )
    eval_dataset: str | None = option(
        None,
        "Evaluation Dataset",
        "Rows that are not trained; the loss on them shows whether the LoRA learns or only remembers.",
        section="json", widget="dropdown", files="json",
    )  # fmt: skip
    format: str | None = option(
        None,
        "Data Format",
        "How the keys of a row become one text. A row uses the entry whose keys are its own.",
        section="json", widget="dropdown", files="format",
    )  # fmt: skip
    eval_steps: int = option(
        100,
        "Evaluate every n steps",
        "How often the evaluation dataset is measured, and once at the end.",
        section="json", widget="number", low=1, high=10_000_000, whole=True,
    )  # fmt: skip
    datasetJSONL: str | None = option(
        None,
        "JSONL Dataset",
        "Chats: one row of “messages” a line, or such a dataset of huggingface.co (owner/name). The model's own chat template formats them.",
        section="jsonl", widget="dropdown", files="jsonl",
    )  # fmt: skip
    eval_datasetJSONL: str | None = option(
        None,
        "JSONL Evaluation Dataset",
        "Chats that are not trained; the loss on them shows whether the LoRA learns or only remembers.",
        section="jsonl", widget="dropdown", files="jsonl",
    )  # fmt: skip
    eval_stepsJSONL: int = option(
        100,
        "Evaluate every n steps (JSONL)",
        "How often the evaluation dataset is measured, and once at the end.",
        section="jsonl", widget="number", low=1, high=10_000_000, whole=True,
    )  # fmt: skip
    raw_text_file: str | None = option(
        None,
        "Text file",
        "A .txt file, or a folder of .txt files that are read in natural order.",
        section="text", widget="dropdown", files="text",
    )  # fmt: skip
    precize_slicing_overlap: bool = option(
        True,
        "Add Overlapping blocks",
        "Adds blocks that begin half-way through their neighbours, so that the end of one and the start of the next are seen together.",
        section="text", widget="checkbox",
    )  # fmt: skip
    sliding_window: bool = option(
        False,
        "DEMENTOR Long-form Learning",
        "A block begins at every sentence: deep memorisation of long texts. Very many blocks: use 1 or 2 epochs.",
        section="text", widget="checkbox",
    )  # fmt: skip
    hard_cut_string: str = option(
        "\\n\\n\\n",
        "Hard Cut String",
        "Where the text changes its subject; no block crosses it. \\n is a new line. Empty: the text is one piece.",
        section="text", widget="text",
    )  # fmt: skip
    min_chars: int = option(
        0,
        "Ignore small blocks",
        "Blocks with this many characters or fewer are left out.",
        section="text", widget="number", low=0, high=1_000_000, whole=True,
    )  # fmt: skip
    overlap_len: int = option(
        0,
        "Overlap Length",
        "The older fixed-length slicing: tokens that neighbouring blocks share. Used when above 0 and both boxes above are off.",
        section="text", widget="slider", low=0, high=512, step=16, whole=True,
    )  # fmt: skip
    newline_favor_len: int = option(
        0,
        "Prefer Newline Cut Length",
        "The older fixed-length slicing: how far a cut may move to fall on a new line, in characters.",
        section="text", widget="slider", low=0, high=512, step=16, whole=True,
    )  # fmt: skip
    hybrid_training: bool = option(
        False,
        "Hybrid Training",
        "Trains on the text file and on the JSON or JSONL dataset together.",
        section="hybrid", widget="checkbox",
    )  # fmt: skip
    hybrid_data_ratio: int = option(
        100, "Percentage of Dataset used", "Share of the rows that is trained.",
        section="hybrid", widget="slider", low=0, high=100, step=1, whole=True,
    )  # fmt: skip
    hybrid_text_ratio: int = option(
        100, "Percentage of Text file used", "Share of the text blocks that is trained.",
        section="hybrid", widget="slider", low=0, high=100, step=1, whole=True,
    )  # fmt: skip

    skip_unfit_rows: bool = option(
        False,
        "Skip rows that do not fit",
        "Rows that no entry of the Data Format fits, or that the chat template refuses: on leaves them out and counts them, off names them.",
        section="final", widget="checkbox",
    )  # fmt: skip
    leave_out_repeats: bool = option(
        False,
        "Leave out repeats",
        "Leaves out rows that stand in the data twice or nearly so, rows that stand in the evaluation data too, and rows with an empty answer.",
        section="final", widget="checkbox",
    )  # fmt: skip

    # G. Final configuration
    cutoff_len: int = option(
        256,
        "Maximum context length (Cutoff)",
        "Longest block in tokens. Longer rows are trimmed or left out, text is cut to fit. More needs more memory.",
        section="final", widget="slider", low=32, high=4096, step=32, whole=True,
    )  # fmt: skip

    # Beyond the original: neutral by default, so that an old run trains as it did
    packing: bool = option(
        False,
        "Packing",
        "Short blocks share a row up to the cutoff, without seeing each other: next to no padding, and fewer, fuller steps. Verify shows the gain.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    auto_batch: bool = option(
        False,
        "Auto batch",
        "Out of memory halves what goes through the model at once, as half the True Batch Size and double the accumulation would, and the run goes on.",
        section="core", widget="checkbox",
    )  # fmt: skip
    early_stopping_patience: int = option(
        0,
        "Early stopping",
        "Ends the run after this many evaluations without a better evaluation loss. 0 is off. Needs an evaluation dataset.",
        section="stops", widget="number", low=0, high=10_000, whole=True,
    )  # fmt: skip
    load_best_at_end: bool = option(
        False,
        "Keep the best",
        "Saves a checkpoint at each new lowest evaluation loss, and the best one becomes the result. Needs an evaluation dataset.",
        section="checkpoints", widget="checkbox",
    )  # fmt: skip
    save_total_limit: int = option(
        0,
        "Checkpoints to keep",
        "Older checkpoints beyond this many are removed; that with the lowest evaluation loss and those that you queued stay. 0 keeps all.",
        section="checkpoints", widget="number", low=0, high=10_000, whole=True,
    )  # fmt: skip
    adapter_kind: str = option(
        "LoRA",
        "Adapter kind",
        "LoRA, or a relative. DoRA learns length and direction of the weights apart: often better at low ranks, slower. PiSSA begins with the base's "
        "largest parts and learns faster; it is saved as a LoRA of twice the rank, and the base must not be quantised.",
        section="core", widget="dropdown", choices=["LoRA", "DoRA", "PiSSA"],
    )  # fmt: skip
    loraplus_ratio: float = option(
        0,
        "LoRA+ ratio",
        "How many times faster the B weights learn than the A weights. 0 is off; 16 is usual.",
        section="advanced", widget="number", low=0, high=1000,
    )  # fmt: skip
    sample_prompts: str = option(
        "",
        "Sample prompts",
        "Up to four prompts, one a line. The base model and the LoRA answer them during the run, so that one sees what it learns.",
        section="final", widget="text", lines=4,
    )  # fmt: skip
    sample_steps: int = option(
        0,
        "Sample every n steps",
        "How often the prompts are answered, and before the first step and at the end. 0 is off.",
        section="final", widget="number", low=0, high=10_000_000, whole=True,
    )  # fmt: skip
    time_budget_minutes: float = option(
        0, "Time budget in minutes", "Ends the run and saves after this time; Start goes on from there exactly. 0 is off. Can be changed while training.",
        section="stops", widget="number", low=0, high=1_000_000,
    )  # fmt: skip
    attention: str = option(
        "auto",
        "Attention",
        "How attention is computed during the run. auto leaves it as the model was loaded; flash_attention_2 needs the flash-attn package.",
        section="advanced", widget="dropdown", choices=["auto", "sdpa", "flash_attention_2", "eager"],
    )  # fmt: skip
    use_liger_kernel: bool = option(
        False, "Liger kernels", "Fused kernels for norms, positions and gates: faster, less memory. Need a graphics card and the liger-kernel package.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    torch_compile: bool = option(
        False,
        "Compile layers",
        "torch.compile of the model's layers: a minute or so before the first step, then often faster on a graphics card. What cannot be "
        "compiled runs as it is.",
        section="advanced", widget="checkbox",
    )  # fmt: skip
    instruction_template: str | None = option(
        None,
        "Instruction template",
        "Chat template that writes the chats. None is the model's own, which fits it best; host is the one that the web UI uses.",
        section="jsonl", widget="dropdown", files="template",
    )  # fmt: skip
    column_mapping: str = option(
        "", "Column mapping", "Which column is which: text=…, instruction=…, input=…, output=…; messages=… for a JSONL Dataset.",
        section="json", widget="text",
    )  # fmt: skip

    @field_validator("report_to", "dataset", "eval_dataset", "format", "datasetJSONL", "eval_datasetJSONL", "raw_text_file",
                     "instruction_template", mode="before")  # fmt: skip
    @classmethod
    def _none_like(cls, value: Any) -> Any:
        return value if _is_chosen(value) else None

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _number_as_typed(cls, value: Any) -> Any:
        return f"{value:g}" if isinstance(value, float) else value

    # What the fields say together

    @property
    def accumulation(self) -> int:
        """Gradient accumulation, also where an old run wrote it as a batch size."""
        if self.batch_size > 0:
            return max(1, self.batch_size // self.micro_batch_size)
        return self.grad_accumulation

    @property
    def rate(self) -> float:
        return float(self.learning_rate)

    @property
    def alpha(self) -> float:
        return self.lora_RS_alpha if self.lora_RS else self.lora_alpha

    @property
    def evaluation(self) -> tuple[str | None, int]:
        """The chosen evaluation dataset and every how many steps it is measured."""
        if self.datasetJSONL:
            return self.eval_datasetJSONL, self.eval_stepsJSONL
        return self.eval_dataset, self.eval_steps

    @property
    def prompts(self) -> list[str]:
        """The sample prompts."""
        return list(dict.fromkeys(line.strip() for line in self.sample_prompts.splitlines() if line.strip()))

    def highest(self, key: str, model_context: int | None = None) -> float | None:
        """The upper end of an option's range, with what other settings and the model's context (tokens) do to it."""
        high = OPTIONS[key].high
        if key in ("lora_rank", "lora_alpha") and self.higher_rank_limit:
            return high * 2
        if key == "cutoff_len" and model_context:
            return max(high, model_context)
        return high

    def on_the_page(self) -> dict[str, Any]:
        """The values for the page's widgets, which have no batch size beside the accumulation."""
        shown = self.model_copy(update={"grad_accumulation": self.accumulation})
        return {key: value for key, value in shown.entered().items() if OPTIONS[key].works}

    # Reading and writing

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> tuple[TrainingSettings, list[str]]:
        """Settings from the values of a page or a file, with a sentence for each value that cannot be used.

        A value that cannot be used leaves its default, so that the remaining checks still say all they have to say.
        """
        problems = []
        usable = {key: value for key, value in values.items() if key in OPTIONS}
        for key, value in list(usable.items()):
            label = OPTIONS[key].label
            if OPTIONS[key].widget not in ("number", "slider"):
                continue
            if value is None or value == "":
                problems.append(f"{label} is empty; type a number.")
                del usable[key]
            elif _is_huge(value):  # no page can show it, and no computer would count that far
                problems.append(f"{label} is {_shown(value)}; it must be between {OPTIONS[key].low:g} and {OPTIONS[key].high:g}.")
                del usable[key]
        while True:
            try:
                return cls(**usable), problems
            except ValidationError as error:
                for fault in error.errors():
                    key = str(fault["loc"][0])
                    kind = OPTIONS[key]
                    found = usable.pop(key, None)
                    wanted = "a whole number" if kind.whole else "yes or no" if kind.widget == "checkbox" else "a number"
                    if kind.widget in ("text", "dropdown", "radio"):
                        wanted = "a text"
                    problems.append(f"{kind.label} is {_shown(found)}; it must be {wanted}.")

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> tuple[TrainingSettings, list[str], list[str]]:
        """Settings from a saved run of ours, of older Training PRO or of the web UI's own tab.

        Returns the settings, the problems (values that cannot be used) and the notices (what was translated or ignored).
        """
        notices: list[str] = []
        values = _from_webui_tab(dict(saved), notices)
        if "train_on_inputs" not in values:
            values["train_on_inputs"] = not _is_chosen(values.get("train_only_after"))
        if isinstance(gone := values.get("optimizer"), str) and gone in RENAMED_OPTIMIZERS:
            values["optimizer"] = RENAMED_OPTIMIZERS[gone]
            notices.append(f"Optimizer “{gone}” no longer exists; “{values['optimizer']}” takes its place.")
        for key in [key for key, value in values.items() if value is None and key in OPTIONS]:
            if OPTIONS[key].default is not None:
                del values[key]  # an empty entry of a file means the default
        unknown = sorted(key for key in values if key not in OPTIONS)
        if unknown:
            notices.append(whole_letters(f"Ignored, since no control has these names: {', '.join(unknown)}."))
        settings, problems = cls.read(values)
        return settings, problems, notices

    @classmethod
    def load(cls, path: str | Path) -> TrainingSettings:
        """Read `training_parameters.json`; what was translated or ignored is logged.

        Raises:
            SettingsError: the file cannot be read, or values cannot be used; the message lists all of them.
        """
        settings, problems, notices = cls.load_leniently(path)
        for notice in notices:
            logger.info("%s: %s", Path(path).name, notice)
        if problems:
            raise SettingsError([f"{Path(path).name}: {problem}" for problem in problems])
        return settings

    @classmethod
    def load_leniently(cls, path: str | Path) -> tuple[TrainingSettings, list[str], list[str]]:
        """As `from_saved`, from a file: a value that cannot be used leaves its default and is one of the problems.

        Raises:
            SettingsError: the file cannot be read.
        """
        path = Path(path)
        try:
            saved = json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise SettingsError([f"{path.name} cannot be read: {error.strerror or error}."]) from error
        except (ValueError, RecursionError) as error:
            raise SettingsError([f"{path.name} cannot be read as JSON: {error}."]) from error
        if not isinstance(saved, dict):
            raise SettingsError([f"{path.name} holds no settings: it must be one JSON object."])
        return cls.from_saved(saved)

    def entered(self) -> dict[str, Any]:
        """The values as they are saved and shown: what is not chosen is “None”, as in older files."""
        return {key: NOT_CHOSEN if value is None else value for key, value in self.model_dump().items()}

    def save(self, path: str | Path) -> None:
        write_json(Path(path), self.entered())

    # Checking

    def problems(self, host: Any) -> list[str]:
        """Everything that keeps this run from starting, each with its label and what to do. `host` is a `host.Host`."""
        found = list(self._value_problems(host.context_length))
        if said := host.model_problem():
            found.append(said)
        if said := name_problem(self.lora_name):
            found.append(f"Name {said}.")
        found += self._data_problems(host)
        return found

    def _value_problems(self, model_context: int | None):
        for key, kind in OPTIONS.items():
            value = getattr(self, key)
            high = self.highest(key, model_context)
            if kind.positive and value <= 0:
                yield f"{kind.label} is {value:g}; it must be above 0 (at most {high:g})."
            elif kind.low is not None and not kind.low <= value <= high:
                yield f"{kind.label} is {value:g}; it must be between {kind.low:g} and {high:g}."
            if kind.choices and value is not None and value not in kind.offered():
                yield f"{kind.label} is “{value}”, which is not one of: {', '.join(kind.offered())}."
        try:
            rate = float(self.learning_rate)
        except ValueError:
            rate = math.nan
        if not (0 < rate < math.inf):
            yield f"Learning Rate is “{self.learning_rate}”; it must be a number above 0, such as 3e-4."
        if len(self.prompts) > MOST_PROMPTS:
            yield f"Sample prompts has {len(self.prompts)} lines; at most {MOST_PROMPTS} prompts are answered, one a line."

    def _data_problems(self, host: Any):
        chosen = [(OPTIONS[key].label, getattr(self, key)) for key in ("dataset", "datasetJSONL", "raw_text_file") if getattr(self, key)]
        if not chosen:
            yield "No data is chosen: pick a Dataset, a JSONL Dataset or a Text file."
        listed = " and ".join(f"{label} “{name}”" for label, name in chosen)
        rows = [key for key in ("dataset", "datasetJSONL") if getattr(self, key)]
        if self.hybrid_training and (len(rows) != 1 or not self.raw_text_file):
            yield f"Hybrid Training needs a Text file and one of Dataset and JSONL Dataset; chosen {'are' if len(chosen) > 1 else 'is'} {listed or 'neither'}."
        elif len(chosen) > 1 and not self.hybrid_training:
            yield f"{listed} are chosen at once; keep one and set the others to None, or tick Hybrid Training for a text and a dataset together."
        if self.dataset and not self.format:
            yield f"Data Format is not chosen: a JSON Dataset needs one, such as alpaca-format, or “{TEXT_ROWS}” for rows that hold a whole text."
        for key in ("dataset", "eval_dataset", "format", "datasetJSONL", "eval_datasetJSONL", "instruction_template", "raw_text_file"):
            name = getattr(self, key)
            if name and not self._unused_evaluation(key) and name not in BUILT_IN.get(key, ()):
                kind = OPTIONS[key]
                if said := host.data_file_problem(kind.files, name):
                    yield f"{kind.label}: {said}"

    def _unused_evaluation(self, key: str) -> bool:
        return (key == "eval_dataset" and self.datasetJSONL is not None) or (key == "eval_datasetJSONL" and self.datasetJSONL is None)


# Choices of a dropdown of files that are no files.
BUILT_IN = {"format": [TEXT_ROWS], "instruction_template": [HOSTS, *SHIPPED]}


class SettingsError(ValueError):
    """Settings that cannot be used; `problems` has a sentence for each."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def _options() -> dict[str, Option]:
    found = {}
    for key, field in TrainingSettings.model_fields.items():
        carried = field.json_schema_extra["option"]
        found[key] = Option(key=key, label=field.title, help=field.description, default=field.default, **carried)
    return found


OPTIONS = _options()


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


def _is_huge(value: Any) -> bool:
    if isinstance(value, str) and len(value) > 4000:  # Python reads no longer number out of a text
        return True
    try:
        return abs(float(value)) > 2**53
    except OverflowError:
        return True
    except (TypeError, ValueError):
        return False


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict, tuple, set)):
        text = _SHORT.repr(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return whole_letters(f"“{text if len(text) <= 60 else text[:57] + '…'}”")


def _from_webui_tab(values: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    """Translate the keys of the web UI's own training tab (its `PARAMETERS`) into ours."""
    flags = {key[: -len("_en")]: bool(values.pop(key)) for key in list(values) if key.endswith("_proj_en")}
    everywhere = values.pop("all_linear", None)
    if everywhere:
        values["training_projection"] = ALL_LINEAR
    elif flags:
        wanted = {name for name, on in flags.items() if on}
        same = [name for name, modules in PROJECTIONS.items() if set(modules) == wanted]
        values["training_projection"] = same[0] if same else ALL_LINEAR
        if not same:
            notices.append(f"The projections {', '.join(sorted(wanted)) or 'none'} are no choice here; all-linear takes their place.")
    if "gradient_checkpointing" in values:
        values.setdefault("use_grad_checkpoint", values.pop("gradient_checkpointing"))
    if "excess_length" in values:
        values.setdefault("eliminate_long_blocks", values.pop("excess_length") == "drop")
        _chats_as_jsonl(values, notices)
    return values


def _chats_as_jsonl(values: dict[str, Any], notices: list[str]) -> None:
    """Its JSON datasets are chats, formatted by a chat template: the model's own, or one of the web UI's by its name."""
    template = values.pop("format", None)
    if _is_chosen(template) and template != "Chat Template":
        values["instruction_template"] = template
    for theirs, ours in (("dataset", "datasetJSONL"), ("eval_dataset", "eval_datasetJSONL"), ("eval_steps", "eval_stepsJSONL")):
        if theirs in values:
            values[ours] = values.pop(theirs)
    values.setdefault("train_on_inputs", False)  # it trains the answers alone
    stride = values.pop("stride_length", 0)
    if _is_chosen(text := values.pop("text_dataset", None)):
        values.update(dataset=text, format=TEXT_ROWS, train_on_inputs=True, datasetJSONL=None)
        values.setdefault("precize_slicing_overlap", bool(stride))


def _is_chosen(value: Any) -> bool:
    # Only a text is looked into: a few lines of YAML stand for lists that no memory holds written out.
    return value is not None and not (isinstance(value, str) and value.strip() in ("", NOT_CHOSEN))


@dataclass(frozen=True)
class Plan:
    """How many steps a run takes. A step is one true batch; an optimizer step is `accumulation` of them.

    All that the user types or reads is in steps; the trainer counts optimizer steps. This is the one place that converts.
    """

    blocks: int
    micro_batch_size: int
    accumulation: int
    epochs: float

    @classmethod
    def of(cls, settings: TrainingSettings, blocks: int) -> Plan:
        fits = max(1, math.ceil(blocks / settings.micro_batch_size))
        return cls(blocks, settings.micro_batch_size, min(settings.accumulation, fits), settings.epochs)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.blocks / self.micro_batch_size)

    @property
    def optimizer_steps_per_epoch(self) -> int:
        return math.ceil(self.steps_per_epoch / self.accumulation)

    @property
    def optimizer_steps(self) -> int:
        return math.ceil(round(self.epochs * self.optimizer_steps_per_epoch, 6))  # 1.1 epochs of 50 are 55, not 56

    @property
    def total_steps(self) -> int:
        return self.steps_at(self.optimizer_steps)

    def steps_at(self, optimizer_step: int) -> int:
        """Steps done after `optimizer_step`: the last optimizer step of an epoch may hold fewer steps than the others."""
        epochs, rest = divmod(optimizer_step, max(1, self.optimizer_steps_per_epoch))
        return epochs * self.steps_per_epoch + min(rest * self.accumulation, self.steps_per_epoch)

    @property
    def first_epoch_optimizer_steps(self) -> int:
        """The E of the schedules: the optimizer steps of the whole run, shared out over the epochs. Of half an epoch it is longer than the run."""
        return math.ceil(round(self.optimizer_steps / self.epochs, 6)) if self.epochs > 0 else 0

    def schedule_lengths(self, settings: TrainingSettings) -> dict[str, int]:
        """The lengths that the functions of `custom_scheduler` ask for, in optimizer steps."""
        return {
            "total_steps": self.optimizer_steps,
            "epoch_steps": self.first_epoch_optimizer_steps,
            "warmup_steps": self.warmup(settings),
        }

    def to_optimizer_steps(self, steps: int) -> int:
        return math.ceil(steps / self.accumulation)

    def warmup(self, settings: TrainingSettings) -> int:
        """Warmup in optimizer steps; the ratio counts only when the steps are 0."""
        if settings.warmup_steps > 0:
            return self.to_optimizer_steps(settings.warmup_steps)
        return math.ceil(settings.warmup_ratio * self.optimizer_steps)

    def suggested_save_steps(self) -> int:
        """A tenth to a fifth of all steps, rounded to a number one would type."""
        tenth = self.total_steps / 10
        for rounded in (1000, 500, 100, 50, 10, 5):
            up = math.ceil(tenth / rounded) * rounded
            if tenth <= up <= self.total_steps / 5:
                return up
        return max(1, math.ceil(tenth))

    def suggested_warmup(self) -> int:
        """About 100 steps, at most a tenth of all and at most an epoch."""
        return min(100, self.total_steps // 10, self.steps_per_epoch)
