import time

from modules import models, shared


def generate_reply(question, max_new_tokens=40):
    """Waits for the lock that every generation takes."""
    models.load_model_if_idle_unloaded()
    shared.generation_lock.acquire()
    with models._generation_count_lock:
        models.active_generation_count += 1
    try:
        yield _generate(question, max_new_tokens)
    finally:
        with models._generation_count_lock:
            models.active_generation_count -= 1
        models.last_generation_time = time.time()
        shared.generation_lock.release()


def _generate(question, max_new_tokens):
    if shared.model is None:
        return "No model is loaded! Select one in the Model tab."
    import torch

    ids = shared.tokenizer(question, return_tensors="pt").input_ids.to(shared.model.device)
    with torch.no_grad():
        out = shared.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False,
                                    pad_token_id=shared.tokenizer.pad_token_id)  # fmt: skip
    return shared.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
