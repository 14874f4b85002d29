"""The T5 encoder and its tokenizer against transformers' results."""

import json
import shutil

import numpy as np
import paddle
import pytest
from common import relative_error

from opensora_lite.errors import CheckpointError
from opensora_lite.io.checkpoints import build, load, open_checkpoint, read_config
from opensora_lite.request import WEIGHTS
from opensora_lite.text import load_text_encoder, new_encoder, with_both_embeddings

TINY = WEIGHTS / "tiny" / "t5"


def test_encoder_reproduces_the_original(golden, recorded):
    cases = recorded("t5/cases")
    model = load(build(new_encoder, read_config(golden / "t5")), with_both_embeddings(open_checkpoint(golden / "t5")))
    ids, mask = (paddle.to_tensor(cases[name]).astype("int64") for name in ("input_ids", "attention_mask"))
    with paddle.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state.numpy()
    error = relative_error(hidden, cases["last_hidden_state"])
    print(f"\nT5: relative error {error:.1e}")
    assert error < 1e-4


def test_captions_become_the_recorded_tokens_and_vectors(golden, recorded, first_model):
    cases = recorded("tiny_cases")
    encoder = load_text_encoder(first_model / "t5", 24)
    for name, case in json.loads((golden / "tiny_cases.json").read_text()).items():
        ids, mask = encoder.tokenize([case["caption"]])
        np.testing.assert_array_equal(ids, cases[name]["input_ids"])
        np.testing.assert_array_equal(mask, cases[name]["attention_mask"])
        assert relative_error(encoder.encode([case["caption"]])[0].numpy(), cases[name]["text_embedding"]) < 1e-4


def test_long_captions_are_cut_before_the_end_mark():
    encoder = load_text_encoder(TINY, 8)
    caption = "a red car driving right on the ocean at sunset"
    assert encoder.count_tokens(caption) > 8
    ids, mask = encoder.tokenize([caption, "a car"])
    assert ids.shape == (2, 8) and ids[0, -1] == 1 and mask[0].all()
    assert ids[1, mask[1].sum() - 1] == 1 and not ids[1, mask[1].sum() :].any()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "t5", ignore=shutil.ignore_patterns("spiece.model"))
    with pytest.raises(CheckpointError, match=r"no tokenizer at .*spiece.model"):
        load_text_encoder(tmp_path / "t5", 24)
    (tmp_path / "t5" / "spiece.model").write_text("no model")
    with pytest.raises(CheckpointError, match=r"is no sentencepiece model"):
        load_text_encoder(tmp_path / "t5", 24)


def test_another_kind_of_model_is_refused():
    with pytest.raises(CheckpointError, match="model_type"):
        new_encoder({"model_type": "bert"})
