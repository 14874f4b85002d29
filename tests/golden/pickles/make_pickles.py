"""Writes the files of this folder with PyTorch: .venv-peers/bin/python tests/golden/pickles/make_pickles.py

tests/unit/test_convert.py says what is in them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
table = torch.arange(12, dtype=torch.float32).reshape(3, 4)
tensors = {
    "f32": table,
    "turned": table.T,  # a view: its strides are (1, 4)
    "part": table[1:, 2:],  # another one, with an offset
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(5, 0),
    "parameter": torch.nn.Parameter(table + 1),
    **{
        str(dtype).removeprefix("torch."): torch.arange(-2, 4).to(dtype)
        for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
            torch.uint8, torch.bool,
        )
    },
}  # fmt: skip
torch.save(tensors, HERE / "kinds.pt")
torch.save(tensors, HERE / "legacy.pt", _use_new_zipfile_serialization=False)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 3))
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
run = {
    "epoch": 3,
    "args": argparse.Namespace(lr=1e-4, betas=(0.9, 0.99)),
    "best": np.float64(0.5),
    "history": [np.arange(3.0), None, {"loss": 1.0}],
}
state = model.state_dict()  # an OrderedDict with an attribute, _metadata
torch.save({**run, "state_dict": state}, HERE / "lightning.ckpt")
torch.save({**run, "model": state, "ema": {k: v * 0 for k, v in state.items()}, "optimizer": optimizer.state_dict()},
           HERE / "run.pth")  # fmt: skip
torch.save(model, HERE / "whole_module.pt")
