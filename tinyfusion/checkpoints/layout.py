"""Names of and in checkpoint files, shared by reading and writing."""

WEIGHTS_FILE = "model.safetensors"
WEIGHT_SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".safetensors"})
CONFIG_FILE = "config.json"
FORMAT = "tinyfusion-model"
FORMAT_VERSION = 1

# The record of an export of ours, beside the files of another layout.
EXPORT_FORMAT = "tinyfusion-export"
EXPORT_FILE = "tinyfusion.json"
"""In a diffusers folder."""
SIDECAR_SUFFIX = ".tinyfusion.json"
"""Appended to the name of a weights file in the public layout, suffix included."""
DIFFUSERS_STEM = "diffusion_pytorch_model"
PIPELINE_FILE = "model_index.json"
TRANSFORMER_FOLDER = "transformer"
"""Where a pipeline folder keeps its denoiser."""
ADAPTER_FILE = "adapter_config.json"
"""What makes a folder a PEFT adapter."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD_FILE = "README.md"
"""The model card of a folder; that of a single file is named after it."""
