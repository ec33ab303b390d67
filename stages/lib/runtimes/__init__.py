"""Ways to run a model artefact: transformers, llama.cpp, onnxruntime, OpenVINO, ExecuTorch, a file each.

`open.py` finds the one that a folder is for; not this file, or whoever imports one runtime would depend on all.
"""
