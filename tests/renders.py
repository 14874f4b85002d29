"""Random LiteWorld clips, and how often `describe` is right about them."""

import numpy as np

from opensora_lite.liteworld.describe import Description
from opensora_lite.liteworld.world import Scene, render, sample_scene

SIZES = ((64, 64), (48, 80), (80, 48))
ATTRIBUTES = ("place", "time", "subject", "color", "direction")


def truth(scene: Scene, num_frames: int) -> Description:
    if scene.subject is None:
        return Description(scene.place, scene.time)
    direction = scene.direction if num_frames > 1 else None
    return Description(scene.place, scene.time, scene.subject, scene.color, direction)


def clips(count: int, seed: int, lengths=(16, 8)):
    """`count` random scenes and their clips, in random sizes, lengths and rates."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        scene = sample_scene(generator)
        height, width = SIZES[generator.integers(3)]
        num_frames = lengths[generator.integers(len(lengths))]
        fps = (24, 12)[generator.integers(2)]
        yield scene, render(scene, num_frames, height, width, fps)


def accuracies(pairs) -> dict:
    """The share that is right by attribute, of pairs of true and measured descriptions.

    Colour and direction count among the clips that truly have a subject.
    """
    right = {name: [] for name in ATTRIBUTES}
    for true, measured in pairs:
        for name in ATTRIBUTES:
            if true.subject is not None or name not in ("color", "direction"):
                right[name].append(getattr(true, name) == getattr(measured, name))
        if true != measured:
            print(f"\n{true}\n  taken for {measured}")
    shares = {name: float(np.mean(values)) for name, values in right.items()}
    print(shares)
    return shares
