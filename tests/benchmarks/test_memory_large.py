"""What `estimate_memory` says of a model of 200 M parameters, against what a process takes: `make bench`.

The weights are random, and made by the test; 16 frames of 256×256, two steps. It takes a few minutes.
"""

import memory_models

from opensora_lite.runtime.memory import estimate_memory

MODEL = dict(
    stdit=dict(hidden_size=768, depth=16, num_heads=12, input_sq_size=256),
    t5=dict(d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=8),
    vae=dict(block_out_channels=[64, 128, 256, 256], layers_per_block=2, norm_num_groups=32),
)


def test_a_model_of_200_million_values(tmp_path):
    folder = memory_models.write_model(tmp_path / "model", **MODEL)
    told = estimate_memory(folder, 16, (256, 256))
    took = memory_models.measured(folder, num_frames=16, image_size=(256, 256), num_sampling_steps=2)
    assert 190e6 < told.weights["stdit"] / 4 < 210e6
    print(f"\n\n{told}\n{'taken':20}{took['peak'] / 1e9:8.2f} GB")
    assert took["peak"] <= told.peak
