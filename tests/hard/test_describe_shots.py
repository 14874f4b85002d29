"""What 500 fresh shots of LiteWorld show is measured rightly, each attribute in at least 97 % of them."""

import numpy as np
from shots import shot_verdicts


def test_500_shots_are_measured_rightly():
    shares = {name: float(np.mean(values)) for name, values in shot_verdicts(500, seed=31).items()}
    print(shares)
    assert min(shares.values()) >= 0.97, shares
