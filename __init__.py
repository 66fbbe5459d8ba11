"""Training PRO: train a LoRA in text-generation-webui, on a page of its own, or from the command line."""

__version__ = "0.1.0"
