"""Named presets: how to train, without what. A preset is a settings file `<name>.json` in the folder `presets`, beside datasets and formats.

A preset has the keys of `training_parameters.json` but for those of `NOT_KEPT`, so a saved run copied there works as one too.
"""

from __future__ import annotations

from pathlib import Path

from .paths import name_problem, natural_key, path_for_new, path_in, write_json
from .settings import SettingsError, TrainingSettings

NOT_KEPT = (
    "lora_name", "always_override", "batch_size",
    "dataset", "eval_dataset", "format", "column_mapping", "datasetJSONL", "eval_datasetJSONL", "raw_text_file",
)  # fmt: skip
ENDING = ".json"


class PresetError(ValueError):
    """A preset that cannot be saved, read or removed; the message is for the user."""


def presets_folder(datasets_dir: Path) -> Path:
    """The folder of the presets, beside the one of the datasets. It is made when the first preset is saved."""
    return Path(datasets_dir).parent / "presets"


def list_presets(folder: Path) -> list[str]:
    """The names of all presets, “part 2” before “part 10”; none where the folder is not there or cannot be read."""
    try:
        found = [file.stem for file in Path(folder).iterdir() if file.suffix == ENDING and not file.name.startswith(".") and file.is_file()]
    except OSError:
        return []
    return sorted((name for name in found if name_problem(name) is None), key=natural_key)


def save_preset(folder: Path, name: str, settings: TrainingSettings, overwrite: bool = False) -> str:
    """Save how to train under a name; the name of the LoRA and the data chosen are not kept. Returns what was done, in a sentence.

    Raises:
        PresetError: the name cannot be used, a preset has it and `overwrite` is off, or the file cannot be written.
    """
    try:
        path = path_for_new(folder, name, ENDING)
    except ValueError as error:
        raise PresetError(f"Preset: {error}") from error
    there = path.exists()
    if there and not overwrite:
        raise PresetError(f"Preset: “{name}” is there already. Type another name, or tick overwriting to replace it.")
    kept = {key: value for key, value in settings.entered().items() if key not in NOT_KEPT}
    kept["grad_accumulation"] = settings.accumulation  # also where an old run wrote it as a batch size
    try:
        write_json(path, kept)
    except OSError as error:
        raise PresetError(f"Preset: “{name}” cannot be written: {error.strerror or error}. Free some space or check the folder's rights.") from error
    return f"The preset “{name}” is {'replaced' if there else 'saved'}."


def load_preset(folder: Path, name: str, onto: TrainingSettings | None = None) -> tuple[TrainingSettings, list[str]]:
    """The settings of a preset, with what it does not keep taken from `onto`; a key that its file lacks has the default.

    Returns:
        The settings, and a sentence for each value that could not be taken as it was.

    Raises:
        PresetError: the name is none, or the file is not there or cannot be read.
    """
    path = _path_of(folder, name)
    try:
        settings, problems, notices = TrainingSettings.load_leniently(path)
    except SettingsError as error:
        raise PresetError(f"Preset: {error} Repair the file, or remove it and save the preset anew.") from error
    base = onto or TrainingSettings()
    kept = {key: getattr(base, key) for key in NOT_KEPT if key != "batch_size"}
    return settings.model_copy(update={**kept, "grad_accumulation": settings.accumulation, "batch_size": 0}), [*problems, *notices]


def delete_preset(folder: Path, name: str) -> str:
    """Remove a preset. Returns what was done, in a sentence.

    Raises:
        PresetError: the name is none, or the file is not there or cannot be removed.
    """
    path = _path_of(folder, name)
    try:
        path.unlink()
    except OSError as error:
        raise PresetError(f"Preset: “{name}” cannot be removed: {error.strerror or error}.") from error
    return f"The preset “{name}” is removed."


def _path_of(folder: Path, name: str) -> Path:
    try:
        path = path_in(folder, name, ENDING)
    except ValueError as error:
        raise PresetError(f"Preset: {error}") from error
    if not path.is_file():
        raise PresetError(f"Preset: there is none named “{name}”. Refresh the list and choose again.")
    return path
