"""The PyTorch STDiT3 and rectified flow of tests/peers against the recorded tensors of the original."""

import json
from pathlib import Path

import numpy as np
import pytest
from common import relative_error

GOLDEN = Path(__file__).parents[1] / "golden" / "12"


def in_torch(model: str) -> dict:
    """One of the two models with recorded weights, as a request to the peer names it."""
    config = json.loads((GOLDEN / "stdit3_configs.json").read_text())[model]["config"]
    return {"model": "stdit3", "config": config, "weights": str(GOLDEN / f"stdit3_{model}_weights.safetensors")}


@pytest.mark.parametrize("model", ["qknorm", "plain"])
def test_the_peer_reproduces_the_original(peer, recorded, model):
    cases = recorded(f"12/stdit3_{model}_cases")
    inputs = {f"{case}.{name}": a for case, arrays in cases.items() for name, a in arrays.items() if name != "out"}
    outputs = peer("forward", inputs, **in_torch(model))
    for case, arrays in cases.items():
        assert relative_error(outputs[f"{case}.out"], arrays["out"]) < 1e-5, case


@pytest.mark.parametrize("case", ["plain", "masked", "dropped"])
def test_the_peers_losses_are_those_of_the_original(peer, rflow_losses, case):
    inputs, expected = rflow_losses(case)
    assert relative_error(peer("losses", inputs, **in_torch("qknorm"))["loss"], expected) < 1e-6


def test_the_peers_times_are_those_of_the_original(peer, recorded):
    """Every clip of the table by itself, and two batches of unlike clips; NaN included."""
    cases = recorded("12/rflow_training_losses")
    table = {name: column[:, None] for name, column in cases["transform"].items() if name != "new_t_bf16"}
    calls = {str(i): {name: column[i] for name, column in table.items()} for i in range(len(table["t"]))}
    calls |= {name: dict(cases[name]) for name in ("mixed_0", "mixed_1")}
    expected = {name: call.pop("new_t") for name, call in calls.items()}
    inputs = {f"{case}.{name}": array for case, call in calls.items() for name, array in call.items()}
    outputs = peer("transform", inputs)
    for name, new_t in expected.items():
        np.testing.assert_array_equal(outputs[f"{name}.out"], new_t, err_msg=name)
