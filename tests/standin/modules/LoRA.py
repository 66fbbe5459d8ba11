from pathlib import Path

from modules import shared


def add_lora_to_model(lora_names):
    """Replaces the set of adapters; none removes them all."""
    from peft import PeftModel

    if set(lora_names) == set(shared.lora_names):
        return
    if shared.lora_names:
        shared.model = shared.model.unload()
    if lora_names:
        shared.model = PeftModel.from_pretrained(shared.model, Path(shared.args.lora_dir) / lora_names[0], adapter_name=lora_names[0])
        for name in lora_names[1:]:
            shared.model.load_adapter(Path(shared.args.lora_dir) / name, name)
    shared.lora_names = list(lora_names)
