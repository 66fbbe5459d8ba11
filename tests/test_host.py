import pytest
import torch
from training_pro.host import LocalHost, ModelError, model_facts, quantization_of


def test_folders_are_made_and_seeded_once(tmp_path):
    host = LocalHost(tmp_path / "user_data")
    assert {"alpaca-format", "alpaca-chatbot-format", "vicuna-format", "llama2-chat-format", "ChatML-format"} <= set(host.data_files("format"))
    assert "sample-alpaca" in host.data_files("json") and "sample-chat" in host.data_files("jsonl") and host.data_files("text") == ["sample-text"]
    for folder in ("models", "loras", "logs", "training/datasets", "training/formats"):
        assert (tmp_path / "user_data" / folder).is_dir()
    (host.datasets_dir / "sample-text.txt").unlink()
    assert LocalHost(tmp_path / "user_data").data_files("text") == []  # what the user removed stays away


def test_a_name_finds_its_file_with_or_without_the_ending(host):
    assert host.data_file("json", "rows") == host.data_file("json", "rows.json")
    assert host.data_file_problem("json", "rows") is None
    assert "“gone.json” is not in the folder datasets" in host.data_file_problem("json", "gone")
    assert "holds “/”" in host.data_file_problem("json", "../rows")


def test_what_cannot_be_shown_is_in_no_list(host):
    """A name that is no UTF-8 made Gradio fail while it drew the page."""
    import json
    import os

    for folder, made in ((host.datasets_dir, b"caf\xe9.json"), (host.datasets_dir, b"evil\xe2\x80\xaegpj.txt"), (host.models_dir, b"caf\xe9")):
        path = os.fsencode(folder) + b"/" + made
        try:
            os.makedirs(path) if folder == host.models_dir else open(path, "w").close()
        except OSError:
            pytest.skip("this file system takes no such name")
    os.makedirs(os.fsencode(host.lora_dir) + b"/caf\xe9")
    open(os.fsencode(host.lora_dir) + b"/caf\xe9/adapter_config.json", "w").close()
    open(os.fsencode(host.models_dir) + b"/caf\xe9/config.json", "w").close()
    for names in (host.data_files("json"), host.data_files("text"), host.adapters(), host.offered_models()):
        json.dumps(names).encode("ascii")
        assert not any("caf" in name or "evil" in name for name in names)


@pytest.mark.parametrize("name", [None, 5, ["rows"], {"a": 1}])
def test_a_name_that_is_no_text_is_refused(host, name):
    assert host.data_file_problem("json", name)


def test_the_facts_of_the_model(host, models_folder):
    facts = host.facts
    assert (facts.name, facts.architecture, facts.quantization, facts.dtype, facts.device, facts.context) == (
        "llama", "LlamaForCausalLM", "none", "float32", "cpu", 256,
    )  # fmt: skip
    assert facts.parameters == sum(parameter.numel() for parameter in host.model.parameters()) and facts.size.endswith("thousand")
    for asked, shown in (("4bit", "4-bit"), ("8bit", "8-bit")):
        host.load(str(models_folder / "llama"), asked)
        assert (quantization_of(host.model), host.facts.quantization, host.facts.parameters) == (shown, shown, facts.parameters)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere", "There is no folder"),
        (lambda folder: _file(folder / "model.gguf"), "single file; GGUF"),
        (lambda folder: _folder(folder / "empty"), "no config.json"),
        (lambda folder: "no-such/model", "could not be loaded from the hub"),
        (lambda folder: "x" * 300, "There is no folder “x{61}…”. Give the folder of a model"),  # longer than a name of the hub or a file may be
        (lambda folder: "two words", "There is no folder"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_a_sentence(tmp_path, make, words):
    host = LocalHost(tmp_path / "user_data")
    with pytest.raises(ModelError, match=words):
        host.load(str(make(tmp_path)))
    assert host.model is None and host.model_problem().startswith("No model is loaded.")


def _file(path):
    path.write_bytes(b"GGUF")
    return path


def _folder(path):
    path.mkdir()
    return path


class Server:
    """What a llama.cpp loader leaves as the model."""


@pytest.mark.parametrize(
    ("model", "words"),
    [(None, "No model is loaded"), (Server(), "loaded as Server, which cannot be trained")],
)
def test_what_is_no_model_to_train(host, model, words):
    host._model = model
    assert words in host.model_problem() and host.facts is None and host.context_length is None


def test_the_facts_are_the_bases_while_a_run_has_its_layers_in_it(host):
    import peft

    before = host.facts
    lora = peft.get_peft_model(host.model, peft.LoraConfig(target_modules=["q_proj"]))
    assert model_facts(lora.get_base_model(), "llama") == before


def test_a_model_with_adapters_is_refused(host):
    import peft

    host._model = peft.get_peft_model(host.model, peft.LoraConfig(target_modules=["q_proj"]))
    assert "has adapters on it" in host.model_problem()


def test_adapters_are_listed(host):
    for name in ("b", "a 10", "a 2"):
        (host.lora_dir / name).mkdir()
        (host.lora_dir / name / "adapter_config.json").write_text("{}", encoding="utf-8")
    (host.lora_dir / "notes").mkdir()
    (host.lora_dir / "file.txt").write_text("", encoding="utf-8")
    assert host.adapters() == ["a 2", "a 10", "b"]


def test_reload_gives_the_model_as_it_is_on_disk(host):
    before = {name: tensor.clone() for name, tensor in host.model.state_dict().items()}
    with torch.no_grad():
        host.model.lm_head.weight.add_(1)
    host.mark_dirty()
    host.reload_model()
    assert not host.dirty and all(torch.equal(tensor, before[name]) for name, tensor in host.model.state_dict().items())


class Shared:
    """modules.shared as HOST.md describes it, for the parts that need no running web UI."""

    def __init__(self, folder):
        from types import SimpleNamespace

        self.args = SimpleNamespace(model_dir=str(folder / "models"), lora_dir=str(folder / "loras"), multi_user=False, loader="Transformers")
        self.user_data_dir = folder
        self.model = self.tokenizer = None
        self.model_name, self.lora_names = "None", []
        self.settings = {"instruction_template_str": "from settings"}
        self.persistent_interface_state = {}
        self.model_dirty_from_training = False


def test_the_web_ui_as_a_host(tmp_path, monkeypatch, host):
    import sys
    import threading
    from types import ModuleType, SimpleNamespace

    from training_pro.host import WebuiHost

    shared = Shared(tmp_path)
    shared.generation_lock = threading.Lock()
    models = SimpleNamespace(unload_model=lambda: None, load_model=lambda name, loader: (host.model, f"{name} by {loader}"))
    package = ModuleType("modules")
    package.shared, package.models = shared, models
    for name, module in (("modules", package), ("modules.shared", shared), ("modules.models", models)):
        monkeypatch.setitem(sys.modules, name, module)
    web = WebuiHost()
    assert "alpaca-format" in web.data_files("format") and web.lora_dir == tmp_path / "loras"
    assert web.instruction_template() == "from settings" and "Model tab" in web.model_problem()
    shared.persistent_interface_state = {"instruction_template_str": "from the page"}
    assert web.instruction_template() == "from the page"
    with web.using_model():
        assert shared.generation_lock.locked()
    assert not shared.generation_lock.locked()
    shared.model, shared.tokenizer, shared.model_name = host.model, host.tokenizer, "llama"
    assert web.model_problem() is None
    shared.lora_names = ["poet"]
    assert "the LoRA poet on it" in web.model_problem()
    web.mark_dirty()
    assert shared.model_dirty_from_training
    web.reload_model()
    assert shared.tokenizer == "llama by Transformers" and not web.dirty


def test_what_others_may_have_loaded(host, tmp_path, monkeypatch):
    import shutil

    from training_pro.host import DEMO_MODEL

    shutil.copytree(DEMO_MODEL, host.models_dir / "mine")
    shutil.copytree(DEMO_MODEL, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert [host.stranger_problem(name) for name in ("demo", "mine", "no-such/model", "gpt2")] == [None] * 4
    for name in (str(tmp_path / "base"), "base", "./base", "../base", "~", "", None, 5, "a/b/c", "models/../../base", "user_data/models", "x\0"):
        assert "is none of the models that are offered" in host.stranger_problem(name)
    for name in (None, 5, "", "a\0b"):
        with pytest.raises(ModelError, match="is no name of a model"):
            host.load(name)


def test_links_in_a_folder_lead_nowhere(host, tmp_path):
    import os

    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    for folder in (host.datasets_dir / "tales", host.lora_dir / "lora", host.lora_dir / "lora" / "checkpoint-5"):
        folder.mkdir()
        (folder / "a.txt").write_text("a", encoding="utf-8")
        os.symlink("a.txt", folder / "b.txt")
    assert host.data_file("text", "tales").is_dir() and host.adapter_folder("lora/checkpoint-5").is_dir()
    os.symlink(tmp_path / "secret.txt", host.datasets_dir / "tales" / "c.txt")
    os.symlink(tmp_path / "secret.txt", host.lora_dir / "lora" / "checkpoint-5" / "adapter_config.json")
    with pytest.raises(ValueError, match=r"“c.txt” is a link that leads out of tales"):
        host.data_file("text", "tales")
    with pytest.raises(ValueError, match=r"“adapter_config.json” is a link that leads out of checkpoint-5"):
        host.adapter_folder("lora/checkpoint-5")
    for name in ("../lora", "lora/..", "lora/checkpoint-5/..", "/etc", None, ["lora"]):
        with pytest.raises(ValueError, match="name"):
            host.adapter_folder(name)


def test_a_hub_name_is_no_folder_of_this_machine(host, tmp_path, monkeypatch):
    from training_pro.rows import DataError, read_rows

    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_data" / "logs" / "chat.json").write_text('[{"a": "secret"}]', encoding="utf-8")
    with pytest.raises(DataError, match=r"“user_data/logs” could be a dataset of huggingface.co or a folder of this machine"):
        read_rows("user_data/logs")


def test_a_name_that_differs_only_by_case_is_not_begun(host, settings):
    from training_pro import train_utils

    (host.lora_dir / "Poet").mkdir()
    assert any("is there already as “Poet”" in problem for problem in train_utils.check(settings(lora_name="poet"), host))
