"""Hypothesis strategies: random input that is valid."""

from hypothesis import strategies as st

from opensora_lite import MaskStrategy
from opensora_lite.masks import Segment

RATIOS = st.one_of(st.just(0.0), st.floats(0, 0.9999, exclude_max=True))


@st.composite
def cases(draw):
    """A strategy that fits, with its video: (strategy, num_frames, reference lengths, loops)."""
    num_frames = draw(st.integers(1, 20))
    references = draw(st.lists(st.integers(1, 20), max_size=3))
    loops = draw(st.integers(1, 3))
    segments = []
    for _ in range(draw(st.integers(0, 5))):
        loop = draw(st.integers(0 if references else 1, loops - 1)) if references or loops > 1 else None
        if loop is None:
            break
        available = references + [num_frames] * loop
        reference = draw(st.integers(0, len(available) - 1))
        source = draw(st.integers(0, available[reference] - 1))
        target = draw(st.integers(0, num_frames - 1))
        most = min(available[reference] - source, num_frames - target)
        length = draw(st.one_of(st.none(), st.integers(1, most)))
        if draw(st.booleans()):
            source -= available[reference]
        if draw(st.booleans()):
            target -= num_frames
        segments.append(Segment(loop, reference, source, target, length, draw(RATIOS)))
    return MaskStrategy(tuple(segments)), num_frames, references, loops
