"""Strings and token ids: the chat template, packing, duplicates, tasks."""
