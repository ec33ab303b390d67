"""The OpenVINO export against transformers, and in openvino-genai, for which it is made, where that is installed."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stages.export import openvino
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.open import open_runtime
from stages.lib.runtimes.openvino import EXACT, FILE, library
from stages.lib.store import dense, models

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}

pytestmark = pytest.mark.skipif(not find_spec("openvino"), reason="the extra `openvino` is not installed")


@pytest.fixture(scope="module", params=["float16", "int4"])
def folder(request, source_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino")
    technique = openvino.OpenVINO(method="openvino", type=request.param, **PARENTS)
    technique.write(dense.load(source_folder), models.load_tokenizer(source_folder), folder, torch.empty(0, 0))
    return folder


@pytest.fixture
def prompts(rows):
    return [row[: 3 + 7 * i] for i, row in enumerate(rows[:5].tolist())]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["float16"], indirect=True)
def test_logits_are_those_of_transformers(folder, source_folder, prompts):
    ours, theirs = (open_runtime(each) for each in (folder, source_folder))
    for ids in prompts:  # the second call must not remember the first
        assert ours.logits(ids) == pytest.approx(theirs.logits(ids), abs=0.02)
    parameters, stored = ours.size()
    assert 16 <= 8 * stored / parameters < 16.1


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["int4"], indirect=True)
def test_four_bits_are_four_bits(folder, source_folder, prompts):
    ours, theirs = (open_runtime(each) for each in (folder, source_folder))
    parameters, stored = ours.size()
    assert 4.5 < 8 * stored / parameters < 5.5  # the embedding, a fifteenth of the weights, has 8
    p, q = (torch.from_numpy(each.logits(prompts[-1])).log_softmax(-1) for each in (theirs, ours))
    assert 0 < (p.exp() * (p - q)).sum(-1).mean() < 0.05


@pytest.mark.slow
def test_padded_batches_and_beams_give_what_single_rows_give(folder, rows):
    """As openvino-genai calls it: rows of unlike length, padded on the left; then a row goes on from another one."""
    request = library().Core().compile_model(folder / FILE, "CPU", EXACT).create_infer_request()
    ids, mask = np.zeros((2, 8), np.int64), np.ones((2, 8), np.int64)
    ids[0], ids[1, 3:] = rows[0, :8], rows[1, :5]
    mask[1, :3] = 0

    def call(ids, mask, beams):
        places = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": places,
            "beam_idx": np.array(beams, np.int32),
        }
        return request.infer(given)["logits"].copy()

    both = call(ids, mask, [0, 1])
    single = open_runtime(folder)
    assert both[0] == pytest.approx(single.logits(rows[0, :8].tolist()), abs=1e-3)
    assert both[1, 3:] == pytest.approx(single.logits(rows[1, :5].tolist()), abs=1e-3)

    onward = call(rows[:2, 8:9].numpy(), np.ones((2, 9), np.int64), [0, 0])  # both go on from the first
    for n in (0, 1):
        expected = single.logits([*rows[0, :8].tolist(), int(rows[n, 8])])[-1]
        assert onward[n, 0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_genai_says_the_same(folder, prompts):
    """The loop of openvino-genai over its own cache, against ours."""
    genai = pytest.importorskip("openvino_genai")
    openvino_tokenizers = pytest.importorskip("openvino_tokenizers")
    ours = open_runtime(folder)
    converted = openvino_tokenizers.convert_tokenizer(ours.tokenizer, with_detokenizer=True)
    for model, name in zip(converted, ("openvino_tokenizer.xml", "openvino_detokenizer.xml"), strict=True):
        library().save_model(model, folder / name)
    theirs = genai.LLMPipeline(folder, "CPU", **EXACT, ATTENTION_BACKEND="SDPA")
    for prompt in prompts:
        given = library().Tensor(np.array([prompt], np.int64))
        said = theirs.generate(given, max_new_tokens=8, do_sample=False, ignore_eos=True).tokens[0]
        assert ours.generate([prompt], 8) == [list(said)]


@pytest.mark.slow
def test_the_files_say_nothing_of_this_machine(folder):
    content = b"".join((folder / FILE).with_suffix(end).read_bytes() for end in (".xml", ".bin"))
    assert b"site-packages" not in content and b".py" not in content and str(folder).encode() not in content


def test_rows_that_hold_no_whole_block_are_refused(tokenizer, tmp_path):
    config = AutoConfig.for_model(
        "llama", vocab_size=8, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    technique = openvino.OpenVINO(method="openvino", type="int4", **PARENTS)
    with pytest.raises(UserError, match="rows of 24 weights; int4 needs multiples of 32"):
        technique.write(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())
