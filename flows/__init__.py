"""Orchestration: dvc.yaml as a Prefect flow, what would rerun and why, lineage, promotion. No stage knows of it.

python -m flows.lifecycle [TARGETS] [--why] [--profile NAME]
python -m flows.planner --hours H
python -m flows.remote s3://BUCKET/PATH
python -m flows.lineage MODEL
python -m flows.retrain
python -m flows.promote
python -m flows.fetch NAME@champion FOLDER
python -m flows.rollback NAME
python -m flows.verify
python -m flows.gc
"""

import os

import stages  # noqa: F401  (switches network and telemetry off before anything else is imported)

# A server that lives as long as one flow needs no schedules, triggers or telemetry; task states must be on disk soon.
for name, value in {
    "PREFECT_API_REQUEST_TIMEOUT": "180",  # the first start of a server creates its database
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",  # a round trip a client, for a server on this machine
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
}.items():
    os.environ.setdefault(name, value)
