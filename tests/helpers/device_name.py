"""The device that SAE_TEST_DEVICE names, known without torch: pytest-xdist's first process starts the others, and needs no more of it."""

import os
import re

NAMED = os.environ.get("SAE_TEST_DEVICE", "cpu")
ON_GPU = re.fullmatch(r"cuda(:\d+)?", NAMED) is not None

if ON_GPU:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first used, here and in the processes that tests start
