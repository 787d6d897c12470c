"""Attention as it is written out for an export, against what `transformers` computes."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

from training.attention import HIDDEN, written_out

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "max_position_embeddings": 48,
}
MODELS = {
    "bert": lambda: BertConfig(**SMALL),
    "distilbert": lambda: DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=60, max_position_embeddings=48
    ),
    "mpnet": lambda: MPNetConfig(**SMALL),
    # Looks no further than four tokens: its mask is not the one of all pairs.
    "modernbert": lambda: ModernBertConfig(
        **SMALL,
        local_attention=8,
        layer_types=["full_attention", "sliding_attention"],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_the_library_computes(name):
    torch.manual_seed(0)
    config = MODELS[name]()
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    model = model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids, mask = torch.randint(5, 60, (3, 40)), torch.ones(3, 40, dtype=torch.int64)
    mask[1, 17:] = 0
    ids[1, 17:] = config.pad_token_id
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        unmasked = model(input_ids=ids, attention_mask=torch.ones_like(mask)).logits
        with written_out(model):
            found = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (unmasked[1] - expected[1]).abs().max() > 1e-3  # else the mask would not matter


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_is_left_of_a_pad(kind):
    """Whatever its score, up to hundreds, and in every type that a device may compute in."""
    scores = torch.tensor([[-500.0, 0.0, 500.0]], dtype=kind)
    seen = torch.tensor([[1.0, 1.0, 0.0]], dtype=kind)
    hidden = (1.0 - seen) * HIDDEN
    assert torch.equal((scores + hidden).softmax(-1)[:, :2], scores[:, :2].softmax(-1))


@pytest.mark.parametrize(("name", "width"), [("bert", 1), ("modernbert", 40)])
def test_a_mask_of_pads_alone_is_one_row(name, width):
    """And one that hides more has a row for each token, as before."""
    model = AutoModelForSequenceClassification.from_config(MODELS[name]()).eval()
    layers = model.bert.encoder.layer if name == "bert" else model.model.layers
    shapes: list[torch.Size] = []

    def look(_, given, named):
        found = [*given, *named.values()]
        shapes.extend(part.shape for part in found if torch.is_tensor(part) and part.ndim == 4)

    layers[1].register_forward_pre_hook(look, with_kwargs=True)
    ids, mask = torch.full((3, 40), 7), torch.ones(3, 40, dtype=torch.int64)
    with torch.inference_mode(), written_out(model):
        model(input_ids=ids, attention_mask=mask)
    assert shapes == [(3, 1, width, 40)]


def test_afterwards_all_is_as_before():
    model = AutoModelForSequenceClassification.from_config(
        BertConfig(**SMALL), attn_implementation="sdpa"
    )

    def fail():
        with written_out(model):
            assert ALL_MASK_ATTENTION_FUNCTIONS["eager"] is not eager_mask
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ALL_MASK_ATTENTION_FUNCTIONS["eager"] is eager_mask
    assert model.config._attn_implementation == "sdpa"
