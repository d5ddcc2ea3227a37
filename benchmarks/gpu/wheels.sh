#!/usr/bin/env bash
# Gathers wheels for a machine with a GPU and without a network: what training, the tests and benchmarks/gpu/run.py import beyond torch, transformers and
# what such machines have beside them (accelerate, einops, safetensors, pyarrow, pandas, rich, filelock, pytest ...). Linux, x86-64, Python 3.12.
#
#     benchmarks/gpu/wheels.sh [FOLDER]              into build/wheels; all of pure Python, 11 MB, most of it plotly
#     benchmarks/gpu/wheels.sh [FOLDER] --peers      also SAELens and dictionary_learning with what they import, into FOLDER/peers, 30 MB
#
# There, in this folder:
#     python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site FOLDER/*.whl && export PYTHONPATH=/tmp/site:$PWD
set -euo pipefail
cd "$(dirname "$0")/../.."

own=(eai-sparsify hydra-core omegaconf simple-parsing docstring-parser schedulefree natsort datasets dill multiprocess
    hydra-submitit-launcher submitit cloudpickle plotly pexpect ptyprocess)
# As in peers/environments.py; wandb with what it imports, for both import it.
peers=(sae-lens==6.54.12 'transformer-lens<4' better-abc tenacity dictionary-learning==0.1.0 'nnsight>=0.3,<0.4' python-socketio python-engineio bidict
    websocket-client simple-websocket wsproto pydantic pydantic-core annotated-types typing-inspection wandb platformdirs cwevals
    opentelemetry-api opentelemetry-sdk opentelemetry-proto opentelemetry-semantic-conventions opentelemetry-exporter-http-transport
    opentelemetry-exporter-otlp-common opentelemetry-exporter-otlp-proto-common opentelemetry-exporter-otlp-proto-http googleapis-common-protos)

gather() { # FOLDER PACKAGE ...
    mkdir -p "$1"
    rm -f "$1"/*.whl
    python3 -m pip download -q -c constraints.txt --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$@"
}

folder=build/wheels with_peers=
for argument; do
    if [[ $argument == --peers ]]; then with_peers=1; else folder=$argument; fi
done
gather "$folder" "${own[@]}"
python3 -m pip wheel -q -c constraints.txt --no-deps -w "$folder" antlr4-python3-runtime # of which there is no wheel
if [[ $with_peers ]]; then gather "$folder/peers" "${peers[@]}"; fi
du -sh "$folder"
