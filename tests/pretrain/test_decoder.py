"""The decoder has the parts it names, counted by hand."""

from stages.pretrain import decoder


def test_parameters_by_hand(tokenizer):
    given = {"hidden": 64, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 192}
    model = decoder.Decoder(method="decoder", tokens="tokenize/bpe", **given).build(tokenizer)
    attention = 64 * 64 * 2 + 64 * 32 * 2  # queries and output; keys and values have half the heads
    layer = attention + 3 * 64 * 192 + 2 * 64  # SwiGLU has three matrices; two norms
    assert model.num_parameters() == len(tokenizer) * 64 + 3 * layer + 64  # embeddings are the head too
    assert model.config._attn_implementation == "sdpa"
