"""What a model takes: bytes on disk, memory at its peak."""

from pathlib import Path

WEIGHTS = (".gguf", ".safetensors", ".onnx", ".data", ".bin", ".pte")  # data, bin: beside their graph


def file_bytes(folder: Path) -> int:
    """The weights file that ships, without tokenizer and notes (a GGUF holds its tokenizer)."""
    found = [file for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS]
    if not found:
        raise SystemExit(f"{folder} is no model: it has no file that ends in {' or '.join(WEIGHTS)}")
    return sum(file.stat().st_size for file in found)


def reset_peak() -> int | None:
    """Start a new peak of this process's resident memory at its present size, in bytes; None where Linux is not."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")
    return peak()


def peak() -> int:
    """The highest resident memory since the last reset, in bytes; an accelerator's memory is not in it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
