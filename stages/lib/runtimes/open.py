"""One way to run any model artefact: llama.cpp for a folder with model.gguf, onnxruntime with an .onnx
graph, OpenVINO with openvino_model.xml, ExecuTorch with model.pte; transformers for any other.

What is compared, scored or asked for text runs in the runtime it ships for.
"""

from pathlib import Path

from stages.lib.runtimes.base import Runtime
from stages.lib.runtimes.transformers import Transformers


def open_runtime(folder: Path) -> Runtime:
    if (folder / "model.gguf").is_file():
        from stages.lib.runtimes.llama_cpp import LlamaCpp

        return LlamaCpp(folder)
    if (folder / "onnx").is_dir() or (folder / "model.onnx").is_file():
        from stages.lib.runtimes.onnx import Onnx

        return Onnx(folder)
    if (folder / "model.pte").is_file():
        from stages.lib.runtimes.executorch import ExecuTorch

        return ExecuTorch(folder)
    if (folder / "openvino_model.xml").is_file():
        from stages.lib.runtimes.openvino import OpenVINO

        return OpenVINO(folder)
    return Transformers(folder)
