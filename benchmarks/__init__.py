"""Ratios against peers, measured side by side on this machine; results in benchmarks/results."""
