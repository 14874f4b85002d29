"""What many fresh clips and shots of LiteWorld show is measured rightly: each attribute in at least 97 %.

`make test-hard` takes 100 of each, `make fuzz` 500: OPENSORA_FUZZ=1 python -m pytest tests/hard/test_describe_many.py
"""

import os

import numpy as np
from renders import accuracies, clips, truth
from shots import shot_verdicts

from opensora_lite.liteworld.describe import describe

COUNT = 500 if "OPENSORA_FUZZ" in os.environ else 100


def test_clips_are_described_rightly():
    shares = accuracies((truth(scene, len(frames)), describe(frames)) for scene, frames in clips(COUNT, seed=1))
    assert min(shares.values()) >= 0.97, shares


def test_shots_are_measured_rightly():
    shares = {name: float(np.mean(values)) for name, values in shot_verdicts(COUNT, seed=31).items()}
    print(shares)
    assert min(shares.values()) >= 0.97, shares
