import os
from pathlib import Path

from modules import shared


def get_available_models():
    return sorted(name for name in os.listdir(shared.args.model_dir) if not name.endswith(".txt"))


def get_available_loras():
    """Plain files too, but for a few endings."""
    return ["None", *sorted(item.name for item in Path(shared.args.lora_dir).glob("*") if not item.name.endswith((".txt", "-np", ".pt", ".json")))]


def get_datasets(path, ext):
    return ["None", *sorted({file.stem for file in Path(path).glob(f"*.{ext}") if file.stem != "put-trainer-datasets-here"})]


def get_available_instruction_templates():
    return ["None"]
