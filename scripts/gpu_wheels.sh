#!/bin/sh
# Wheels that scripts/gpu_report.py needs on a machine with torch and without a network.
#
#   scripts/gpu_wheels.sh FOLDER [PYTHON_VERSION]     downloads them; default: this Python's version
#
# There, without pip or a network (a wheel is an archive of what is to be imported):
#
#   for wheel in FOLDER/*.whl; do python3 -m zipfile -e "$wheel" FOLDER/site; done
#   PYTHONPATH=FOLDER/site:. python3 scripts/gpu_report.py --output report.md
#
# Left out is what the script does not import: scipy, matplotlib, scikit-learn, diffusers, wandb.
set -eu
folder=${1:?give a folder}
python=${PYTHON:-python3}
version=${2:-$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
most=60
constraints=$(dirname "$0")/../constraints.txt
mkdir -p "$folder"
# shellcheck disable=SC2086
$python -m pip download -q --no-deps --only-binary :all: --python-version "$version" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
    -c "$constraints" -d "$folder" \
    hydra-core omegaconf pyyaml packaging rich markdown-it-py mdurl pygments \
    lightning lightning-utilities torchmetrics tqdm numpy pillow \
    peft accelerate safetensors psutil \
    transformers tokenizers regex huggingface-hub httpx2 httpcore2 h11 anyio idna truststore
# Only published as source.
$python -m pip wheel -q --no-deps -c "$constraints" -w "$folder" antlr4-python3-runtime
size=$(du -sm "$folder" | cut -f1)
echo "$(ls "$folder"/*.whl | wc -l) wheels, $size MB, in $folder"
[ "$size" -lt "$most" ] || { echo "more than $most MB" >&2; exit 1; }
