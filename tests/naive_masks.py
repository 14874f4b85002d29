"""The mask language a second time: a naive interpreter, frame by frame, and strategies to compare the library on."""

from hypothesis import strategies as st

from opensora_lite.masks import MaskStrategy, Segment


class Refused(Exception):
    """What a naive reading raises where the library must raise an OpenSoraError."""


def naive_segments(text: str) -> list[list]:
    """[loop, reference, reference_start, target_start, length (None: all), edit_ratio] of each segment."""
    segments = []
    for segment in text.split(";"):
        fields = segment.split(",")
        if len(fields) > 6:
            raise Refused
        fields += ["0", "0", "0", "0", "1", "0"][len(fields) :]
        try:
            loop, reference, source, target = map(int, fields[:4])
            length = None if fields[4].strip() == "all" else int(fields[4])
            ratio = float(fields[5])
        except ValueError:
            raise Refused from None
        if loop < 0 or reference < 0 or (length is not None and length < 1) or not 0 <= ratio <= 0.999:
            raise Refused
        segments.append([loop, reference, source, target, length, ratio])
    return segments


def naive_frames(segments, frames: int, lengths: list[int], loops: int) -> list[list]:
    """For each loop and each frame of it (reference, frame of the reference, ratio), or None where it is generated."""
    if any(segment[0] >= loops for segment in segments):
        raise Refused
    made = [[None] * frames for _ in range(loops)]
    for loop, reference, source, target, length, ratio in segments:
        available = [*lengths, *[frames] * loop]
        if reference >= len(available):
            raise Refused
        sources, targets = range(available[reference]), range(frames)
        if source not in range(-len(sources), len(sources)) or target not in range(-frames, frames):
            raise Refused
        pairs = list(zip(sources[source:], targets[target:], strict=False))  # a slice of a range counts from the end
        if length is not None and length > len(pairs):
            raise Refused
        for i, j in pairs[:length]:
            made[loop][j] = (reference, i, ratio)
    return made


RATIOS = st.one_of(st.just(0.0), st.floats(0, 0.999))


@st.composite
def fitting_strategies(draw):
    """A strategy and a video that it fits: (MaskStrategy, num_frames, frames of each reference, loops)."""
    num_frames = draw(st.integers(1, 20))
    references = draw(st.lists(st.integers(1, 20), max_size=3))
    loops = draw(st.integers(1, 3))
    segments = []
    for _ in range(draw(st.integers(0, 5)) if references or loops > 1 else 0):
        loop = draw(st.integers(0 if references else 1, loops - 1))
        available = references + [num_frames] * loop
        reference = draw(st.integers(0, len(available) - 1))
        source = draw(st.integers(0, available[reference] - 1))
        target = draw(st.integers(0, num_frames - 1))
        most = min(available[reference] - source, num_frames - target)
        length = draw(st.one_of(st.none(), st.integers(1, most)))
        source -= available[reference] * draw(st.booleans())
        target -= num_frames * draw(st.booleans())
        segments.append(Segment(loop, reference, source, target, length, draw(RATIOS)))
    return MaskStrategy(segments), num_frames, references, loops
