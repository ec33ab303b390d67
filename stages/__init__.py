"""The stages of the lifecycle, in order: data, tokenize, pretrain, align, traces, distill, prune, quantize, export,
eval and report.

`ls stages/NAME` lists the techniques of a stage; `stages/NAME/__init__.py` says what a technique promises,
`stages/NAME/__main__.py` is the stage itself.
"""

import os

# No network and no telemetry unless params.yaml names something on a hub (stages/lib/store/hub.py opens that door).
# Every entry point imports this package first, and what it starts inherits it.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "OMP_WAIT_POLICY": "passive",  # spinning threads of two processes on the same cores slow both down tenfold
    "TOKENIZERS_PARALLELISM": "false",  # a forked stage must not inherit a tokenizer's thread pool
}.items():
    os.environ.setdefault(name, value)
