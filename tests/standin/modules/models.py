import gc
import threading
import time
from pathlib import Path

from modules import shared
from modules.logging_colors import logger

last_generation_time = time.time()
active_generation_count = 0
_generation_count_lock = threading.Lock()


class LlamaServer:
    """What the llama.cpp loader leaves in the place of a model and of its tokenizer."""

    def __init__(self, path):
        self.path = path
        self.stopped = False

    def stop(self):
        self.stopped = True


def load_model(model_name, loader=None):
    """Gives model and tokenizer back and assigns neither."""
    logger.info('Loading "%s"', model_name)
    shared.model_name = model_name
    loader = loader or shared.args.loader or "Transformers"
    shared.args.loader = loader
    if loader == "llama.cpp":
        path = Path(shared.args.model_dir) / model_name
        if not path.is_file():
            logger.error("No GGUF model: %s", path)
            return None, None
        model = tokenizer = LlamaServer(path)
        return model, tokenizer
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch._dynamo.config.disable = True
    folder = Path(shared.args.model_dir) / model_name
    if not torch.cuda.is_available():
        shared.args.cpu = True  # and with it the quantisations are not used
    dtype = torch.float32 if shared.args.cpu else torch.bfloat16 if shared.args.bf16 else torch.float16
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=shared.original_args.trust_remote_code)
    logger.info('Loaded "%s"', model_name)
    return model, tokenizer


def unload_model(keep_model_name=False):
    if shared.model is None:
        return
    if hasattr(shared.model, "stop"):
        shared.model.stop()
    shared.model = shared.tokenizer = None
    shared.lora_names = []
    shared.model_dirty_from_training = False
    gc.collect()
    if not keep_model_name:
        shared.model_name = "None"


def reload_model():
    # As in the host, whose version has not worked since 2023-12: the name is gone when it is asked for.
    unload_model()
    shared.model, shared.tokenizer = load_model(shared.model_name)


def load_model_if_idle_unloaded():
    if shared.args.idle_timeout > 0 and shared.model is None and shared.model_name not in (None, "None"):
        shared.model, shared.tokenizer = load_model(shared.model_name)


def unload_model_if_idle():
    while True:
        with shared.generation_lock:
            idle = active_generation_count == 0 and time.time() - last_generation_time > shared.args.idle_timeout * 60
            if idle and shared.model is not None:
                logger.info("Unloading the model for inactivity.")
                unload_model(keep_model_name=True)
        time.sleep(1)
