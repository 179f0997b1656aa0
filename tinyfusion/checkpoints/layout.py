"""Names inside a model folder, shared by reading and writing."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT = "tinyfusion-model"
FORMAT_VERSION = 1
