"""datatrove, run by the interpreter of its own environment: SOURCE OUT. MinHash deduplication by its own defaults (5
words, 14 buckets of 8 hashes, which also finds exact duplicates), on one core."""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.dedup import (  # pyright: ignore[reportMissingImports]
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.writers import JsonlWriter  # pyright: ignore[reportMissingImports]


def main(source: str, out: Path) -> None:
    signatures, buckets, remove = (str(out / name) for name in ("signatures", "buckets", "remove"))
    writer = JsonlWriter(str(out / "kept"), compression=None)
    for step in (
        [JsonlReader(source), MinhashDedupSignature(output_folder=signatures)],
        [MinhashDedupBuckets(input_folder=signatures, output_folder=buckets)],
        [MinhashDedupCluster(input_folder=buckets, output_folder=remove)],
        [JsonlReader(source), MinhashDedupFilter(input_folder=remove), writer],
    ):
        LocalPipelineExecutor(step, tasks=14 if isinstance(step[0], MinhashDedupBuckets) else 1, workers=1).run()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
