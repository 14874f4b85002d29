"""What 500 fresh clips and 500 fresh shots of LiteWorld show is measured rightly: each attribute in at least 97 %."""

import numpy as np
from renders import accuracies, clips, truth
from shots import shot_verdicts

from opensora_lite.liteworld.describe import describe


def test_500_clips_are_described_rightly():
    shares = accuracies((truth(scene, len(frames)), describe(frames)) for scene, frames in clips(500, seed=1))
    assert min(shares.values()) >= 0.97, shares


def test_500_shots_are_measured_rightly():
    shares = {name: float(np.mean(values)) for name, values in shot_verdicts(500, seed=31).items()}
    print(shares)
    assert min(shares.values()) >= 0.97, shares
