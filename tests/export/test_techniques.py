"""What every export technique must hold, whatever its format. A new file in stages/export/ is picked up here."""

import shutil
import sys
from importlib.util import find_spec

import pytest
import torch

from stages.export.__main__ import size
from stages.lib.frame import code, files, params
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses
from stages.lib.runtimes.base import logits
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import dense, models

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}
SETTINGS = {  # what a technique needs beyond its parents
    "gguf": {"type": "Q8_0"},
    "gguf_mixed": {"bits": 8.6, "types": ["Q4_K", "Q8_0"], "measured_rows": 1},
    "onnx": {"type": "int8"},
    "onnx_genai": {"type": "int8"},
    "openvino": {"type": "int8"},
}
SLOW = {"executorch", "onnx", "openvino"}  # a trace takes ten seconds or more
EXTRAS = {"executorch", "openvino"}
HIDDEN = {
    "adapter": "an adapter is added to every weight; with keep_zeros it is refused",
    "executorch": "XNNPACK packs its weights in a layout of its own",
}


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in params.techniques("export")],
    scope="module",
)
def technique(request):
    if request.param in EXTRAS and not find_spec(request.param):
        pytest.skip(f"the extra `{request.param}` is not installed")
    settings = SETTINGS.get(request.param, {})
    kind = params.technique_class("export", request.param)
    return kind.model_validate({"method": request.param, **PARENTS, **settings})


@pytest.fixture(scope="module")
def make(technique, packed, adapted):
    """make(folder, target): what the technique is given, dense, packed or with an adapter, from a dense model."""
    return {"adapter": adapted, "compressed": packed}.get(technique.method, lambda folder, _: folder)


@pytest.fixture(scope="module")
def artifacts(source_folder, tmp_path_factory):
    """With the dense model as a variant of pretrain: where an adapter finds its base."""
    folder = tmp_path_factory.mktemp("artifacts")
    shutil.copytree(source_folder, folder / "pretrain/base/model")
    return folder


@pytest.fixture(scope="module")
def parent(technique, make, artifacts):
    return make(artifacts / "pretrain/base/model", artifacts / f"parent-of/{technique.method}/model")


@pytest.fixture(scope="module")
def folder(technique, parent, artifacts):
    return write(technique, parent, artifacts / f"export/{technique.method}/model")


def write(technique, parent, folder):
    folder.mkdir(parents=True)
    rows = torch.arange(128).view(2, 64) if technique.needs_rows() else torch.empty(0, 0)
    technique.write(technique.load(parent), models.load_tokenizer(parent), folder, rows)
    return folder


def test_names_its_source(technique):
    about = sys.modules[type(technique).__module__].__doc__
    assert "github.com/" in about or "arXiv:" in about


RUNTIMES = {"llama_cpp", "onnx", "openvino", "executorch", "transformers", "open"}
OWN = {  # besides transformers, in which the source runs
    "gguf": {"llama_cpp"},
    "gguf_mixed": {"llama_cpp"},
    "onnx": {"onnx"},
    "onnx_genai": {"onnx"},
    "openvino": {"openvino"},
    "executorch": {"executorch"},
}


@pytest.mark.parametrize("method", params.techniques("export"))
def test_depends_on_no_runtime_but_its_own(method):
    """Else a change of onnxruntime's file would write every GGUF anew."""
    stage, runtimes = code.ROOT / "stages/export", code.ROOT / "stages/lib/runtimes"
    closure = code.closure(stage / "__main__.py", stage / f"{method}.py")
    found = {file.stem for file in closure if file.parent == runtimes} & RUNTIMES
    assert found == {"transformers"} | OWN.get(method, set())


def test_reads_back_as_the_same_model(technique, folder, parent, source_folder, rows):
    source, export = open_runtime(parent), technique.open(folder)
    assert type(export) is type(open_runtime(folder))  # whoever finds the folder opens it alike
    seen = losses.compare(logits(source), logits(export), rows[:4])
    assert 0 <= seen["kl"] < 1e-3
    assert seen["same_top"] > 0.9  # untrained: many near ties
    assert seen["loss_after"] == pytest.approx(seen["loss_before"], abs=0.01)
    assert export.size()[0] == source.size()[0] == models.load(source_folder).num_parameters()


def test_generation_is_a_loop_over_logits(folder, rows):
    export, ids = open_runtime(folder), rows[0, :20].tolist()
    answer: list[int] = []
    for _ in range(5):
        answer.append(int(export.logits(ids + answer)[-1].argmax()))
    assert export.generate([ids], 5) == [answer]


def test_reads_back_with_the_same_tokenizer(folder, parent, texts):
    export, source = open_runtime(folder), models.load_tokenizer(parent)
    assert export.tokenizer.encode(texts[0]) == source.encode(texts[0])
    assert export.tokenizer.chat_template == source.chat_template


def test_is_smaller_than_training_floats(folder, source_folder):
    seen = size(open_runtime(folder), folder)
    assert seen["bits_per_weight"] < (18 if (folder / "model.pte").exists() else 16.1)  # its head is there twice
    assert seen["bytes"] < (source_folder / "model.safetensors").stat().st_size


def test_same_input_same_bytes(technique, parent, folder, tmp_path):
    assert files.digest(write(technique, parent, tmp_path / "again")) == files.digest(folder)


def test_a_truncated_file_is_named(technique, folder, artifacts):
    cut = artifacts / f"cut/{technique.method}/model"
    shutil.copytree(folder, cut)
    for file in (each for each in cut.rglob("*") if each.is_file()):
        content = file.read_bytes()
        if file.suffix in (".gguf", ".safetensors", ".onnx", ".data", ".bin", ".pte"):
            file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        open_runtime(cut)


def test_pruned_zeros_stay_zeros(technique, source_folder, make, tmp_path):
    """A pruned model is stored dense; an export must not blur its zeros."""
    if reason := HIDDEN.get(technique.method):
        pytest.skip(reason)
    pruned = models.load(source_folder)
    with torch.no_grad():
        for layer in pruned.model.layers:
            layer.mlp.down_proj.weight[:, :256] = 0
    models.save(pruned, models.load_tokenizer(source_folder), tmp_path / "pruned")
    parent = make(tmp_path / "pruned", tmp_path / "parent")
    found = stored(write(technique, parent, tmp_path / "export"))
    assert len(found) == 2
    for weight in found:
        assert (weight[:, :256] == 0).all() and (weight[:, 256:] != 0).any()


def stored(folder):
    """The down projections, as the file holds them."""
    if graphs := [*folder.glob("model.onnx"), *folder.glob("onnx/*.onnx")]:
        return from_onnx(graphs[0])
    if (folder / "openvino_model.xml").exists():
        return from_openvino(folder / "openvino_model.xml")
    if not (folder / "model.gguf").exists():
        return [layer.mlp.down_proj.weight.detach().numpy() for layer in dense.load(folder).model.layers]
    from gguf import GGUFReader, dequantize

    tensors = GGUFReader(folder / "model.gguf").tensors
    return [dequantize(t.data, t.tensor_type) for t in tensors if "ffn_down" in t.name]


def from_openvino(file):
    """Whatever a product of 768 inputs and 256 outputs takes for its weights, computed by OpenVINO."""
    from stages.lib.runtimes import openvino as runtime

    openvino = runtime.library()
    core = openvino.Core()
    given = [
        node.input_value(1) for node in core.read_model(file).get_ordered_ops() if node.get_type_name() == "MatMul"
    ]
    weights = [each for each in given if str(each.get_partial_shape()) == "[256,768]"]
    return [core.compile_model(openvino.Model([weight], []), "CPU")([])[0] for weight in weights]


def from_onnx(file):
    """Every product of 768 inputs and 256 outputs: (q - 128) * scale, a scale for each block of 32 inputs."""
    import onnx

    graph = onnx.load(file).graph
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    found = []
    for node in graph.node:
        about = {each.name: each.i for each in node.attribute}
        if node.op_type == "MatMulNBits" and (about["K"], about["N"]) == (768, 256):
            assert about["bits"] == 8 and not "".join(node.input[3:])  # symmetric: no zero points
            q, scales = (tensors[name].reshape(256, 24, -1) for name in node.input[1:3])
            found.append(((q.astype("float32") - 128) * scales).reshape(256, 768))
    return found
