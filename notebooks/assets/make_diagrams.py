"""Draw the diagrams of the README and of the lessons, all svg files of this folder.

    python notebooks/assets/make_diagrams.py

A lesson shows one with ![what it shows](assets/noise_training.svg), and its map with the line of `map_markdown`.
"""

from itertools import pairwise
from pathlib import Path

from svg import Box, Drawing

ASSETS = Path(__file__).parent

# The parts of the pipeline that a lesson is about; each of these lessons begins with its map.
MAPS = {
    "00_quickstart": ("caption", "references", "mask", "frames"),
    "01_noise": ("noise", "steps"),
    "02_latents": ("latents", "VAE", "frames"),
    "03_denoising": ("noise", "steps", "latents"),
    "04_words": ("caption", "T5"),
    "05_stdit": ("transformer",),
    "06_masks": ("references", "mask", "steps"),
    "07_attention": ("T5", "transformer", "frames"),
    "08_long_videos": ("references", "mask", "frames"),
    "11_training": ("T5", "transformer", "latents", "mask"),
    "12_evaluation": ("frames",),
    "13_generate": ("caption", "noise", "references", "mask", "frames"),
    "14_sweep": ("caption", "noise", "references", "mask", "steps", "frames"),
    "15_full_size": ("T5", "transformer", "VAE"),
}
PARTS = ("caption", "T5", "noise", "steps", "transformer", "latents", "VAE", "frames", "references", "mask")


def pipeline_map(*lit: str) -> Drawing:
    """The map of the pipeline that stands atop every lesson. lit: which of PARTS it is about."""
    unknown = set(lit) - set(PARTS)
    assert lit and not unknown, f"no parts of the pipeline: {unknown}"
    d = Drawing(900, 262, map_alt(*lit))

    def part(x: float, y: float, w: float, name: str, source: bool = False) -> Box:
        return d.box(x, y, w, name, source=source, lit=name in lit)

    caption = part(16, 18, 124, "caption", source=True)
    t5 = part(204, 18, 110, "T5")
    noise = part(16, 103, 124, "noise", source=True)
    references = part(16, 188, 124, "references", source=True)
    mask = part(204, 188, 110, "mask")
    loop = d.frame(366, 69, 190, 108, "repeat for every step", lit="steps" in lit)
    part(386, 103, 150, "transformer")
    latents = part(602, 103, 92, "latents")
    vae = part(732, 103, 66, "VAE")
    d.frames(820, 96, lit="frames" in lit)
    d.text(855, 188, "frames", 16)
    d.arrow(caption.right, t5.left)
    d.arrow(t5.right, (461, 46), (461, 67), label="vectors", at=(390, 38))
    d.arrow(noise.right, (loop.x - 2, noise.left[1]))
    d.arrow(references.right, mask.left)
    d.arrow(mask.right, (461, 216), (461, 179), label="which frames are given", at=(408, 238))
    d.arrow((loop.right[0], latents.left[1]), latents.left)
    d.arrow(latents.right, vae.left)
    d.arrow(vae.right, (819, vae.right[1]))
    return d


def map_alt(*lit: str) -> str:
    """What the map shows, in words."""
    return (
        "Map of the pipeline. A caption goes through T5 and becomes vectors; references become a mask; noise goes "
        "through the transformer at every step and becomes latents, which the VAE turns into frames. "
        f"This lesson: {', '.join(lit)}."
    )


def map_markdown(lesson: str) -> str:
    """The line with which a lesson shows its map."""
    return f"![{map_alt(*MAPS[lesson])}](assets/map_{lesson[3:]}.svg)"


def pipeline() -> Drawing:
    """The diagram of README.md, with modules, and shapes on its arrows."""
    d = Drawing(1030, 392, "From caption to frames")
    # three rows of inputs, each with what turns it into tensors
    caption = d.box(10, 20, 150, "caption", "“a red car …”", source=True)
    t5 = d.box(230, 20, 150, "T5 encoder", "text.py")
    d.arrow(caption.right, (228, 48), label="tokens")
    noise = d.box(10, 150, 150, "noise", "seed", source=True)
    references = d.box(10, 240, 150, "references", "images, clips", source=True)
    encoder = d.box(230, 240, 150, "VAE encoder", "vae.py")
    d.arrow(references.right, (228, 268))
    strategy = d.box(10, 318, 150, "mask strategy", "0;0,1,0,-1,1", source=True)
    mask = d.box(230, 318, 150, "frame mask", "masks.py")
    d.arrow(strategy.right, (228, 346))
    # the loop
    d.frame(440, 108, 250, 142, "sampler: repeat for every step")
    d.box(460, 150, 210, "STDiT2", "stdit2.py", lit=True)
    d.text(565, 232, "x_t → ε → x_t−1", 13, "faint", mono=True)
    d.arrow(noise.right, (458, 178), label="x_T [C, T, H, W]")
    d.arrow(t5.right, (565, 48), (565, 106), label="y [L, D]", at=(620, 80))
    d.arrow(encoder.right, (520, 268), (520, 252), label="x_0 of given frames", at=(464, 289))
    d.arrow(mask.right, (610, 346), (610, 252), label="0 given … 1 generated [T]", at=(495, 337))
    # the result
    decoder = d.box(757, 150, 130, "VAE decoder", "vae.py")
    d.arrow((690, 178), (755, 178), label="x_0")
    d.arrow(decoder.right, (933, 178))
    d.frames(936, 143)
    d.text(968, 234, "frames", 16)
    d.text(968, 252, "[T, 8H, 8W, 3]", 12, "faint", mono=True)
    return d


def noise_training() -> Drawing:
    """01_noise: one step of training."""
    d = Drawing(900, 254, "One step of training")
    noise = d.box(16, 18, 140, "noise ε", "drawn at random", source=True)
    data = d.box(16, 98, 140, "data x_{0}", "a batch", source=True)
    time = d.box(16, 178, 140, "time t", "drawn at random", source=True)
    mix = d.box(250, 98, 190, "mix", "√ᾱ_{t}·x_{0} + √(1−ᾱ_{t})·ε")
    network = d.box(546, 98, 130, "network", "ε_{θ}(x_{t}, t)", lit=True)
    loss = d.box(782, 98, 104, "loss", "(ε_{θ} − ε)²")
    d.arrow(
        noise.right, (loss.top[0], 46), (loss.top[0], 96), label="ε [B, 2]: the right answer is known", at=(640, 37)
    )
    d.arrow((mix.top[0], 46), (mix.top[0], 96), label="[B, 2]", at=(204, 37))
    d.arrow(data.right, (248, 126), label="[B, 2]")
    d.arrow(time.right, (network.bottom[0], 206), (network.bottom[0], 156), label="[B]", at=(204, 197))
    d.arrow((mix.bottom[0], 206), (mix.bottom[0], 156))
    d.arrow(mix.right, (544, 126), label="x_{t} [B, 2]")
    d.arrow(network.right, (780, 126), label="ε_{θ} [B, 2]")
    return d


def noise_sampling() -> Drawing:
    """01_noise: one step of sampling, in its loop."""
    d = Drawing(900, 262, "Sampling: a step and its loop")
    noise = d.box(12, 104, 96, "noise", "t = 999", source=True)
    d.frame(146, 12, 632, 238, "repeat 50 times: t = 999, 979, …, 20, 0")
    x_t = d.box(164, 104, 92, "x_{t}", "time t")
    network = d.box(320, 104, 124, "network", "ε_{θ}(x_{t}, t)", lit=True)
    clean = d.box(506, 104, 116, "take away", "all the noise")
    back = d.box(676, 104, 90, "put back", "less noise")
    data = d.box(812, 104, 76, "data", "t = 0", source=True)
    d.arrow(noise.right, x_t.left)
    d.arrow(x_t.right, network.left, label="[B, 2]")
    d.arrow(network.right, clean.left, label="ε_{θ}", at=(462, 123))
    d.arrow(clean.right, back.left, label="x̂_{0}")
    d.arrow(back.right, data.left)
    d.arrow((488, 132), (488, 64), (back.top[0], 64), (back.top[0], 102), label="the same ε_{θ}", at=(590, 56))
    d.arrow(
        (x_t.right[0] - 20, 160),
        (236, 190),
        (clean.bottom[0], 190),
        (clean.bottom[0], 162),
        label="x_{t}",
        at=(400, 182),
    )
    d.arrow(
        back.bottom,
        (back.bottom[0], 232),
        (190, 232),
        (190, 162),
        label="x_{s}, a little cleaner: the x_{t} of the next step, at the time s < t",
        at=(450, 224),
    )
    return d


def latents_vae() -> Drawing:
    """02_latents: encoder and decoder of the small model, heights and widths to scale."""
    d = Drawing(900, 226, "Encoder and decoder")
    layers = [  # channels, side, x of the middle
        *((3, 64, 78), (16, 64, 172), (16, 32, 232), (32, 16, 288), (64, 8, 352), (8, 8, 412)),
        (4, 8, 468),
        *((64, 8, 530), (64, 16, 598), (64, 32, 664), (16, 64, 728), (3, 64, 822)),
    ]
    edges = []
    for channels, side, x in layers:
        picture = channels == 3
        width, height = (2 * side if picture else max(channels * 0.6, 6), 2 * side)
        if channels == 4:
            width = height
        edges.append(d.plain(x - width / 2, 116 - height / 2, width, height, lit=channels == 4))
        name = {3: "3×64×64", 8: "μ, σ"}.get(channels, f"{channels}×{side}×{side}")
        d.text(x, 116 + height / 2 + 16, name, 11, "ink" if channels == 4 else "faint", mono=True)
    for before, after in pairwise(edges):
        d.arrow((before.right[0] + 1, 116), (after.left[0] - 1, 116))
    d.text(78, 40, "a frame", 13)
    d.text(290, 30, "encoder: halves the side three times", 13)
    d.text(468, 96, "latents", 13)
    d.text(630, 30, "decoder: doubles it three times", 13)
    d.text(822, 40, "a frame again", 13)
    return d


def denoising_step() -> Drawing:
    """03_denoising: one step of sampling, with its loop."""
    d = Drawing(900, 268, "One step of sampling")
    x_t = d.box(16, 96, 84, "x_{t}", "noisy", source=True)
    with_caption = d.box(170, 54, 150, "transformer", "with caption", lit=True)
    without = d.box(170, 138, 150, "transformer", "without caption", lit=True)
    guidance = d.box(384, 96, 104, "guidance")
    clean = d.box(548, 96, 140, "clean guess", "x̂_{0}", lit=True)
    step = d.box(758, 96, 126, "sampler", "DDIM, …")
    x, y = x_t.right
    d.arrow((x, y), (135, y), (135, 82), (168, 82), label="x_{t}, t", at=(135, 70))
    d.arrow((135, y), (135, 166), (168, 166))
    d.arrow(with_caption.right, (436, 82), (436, 94))
    d.arrow(without.right, (436, 166), (436, 154))
    d.arrow(guidance.right, clean.left, label="ε")
    d.arrow((518, y), (518, 190), (790, 190), (790, 154), label="ε", at=(640, 182))
    d.arrow(clean.right, step.left, label="x̂_{0}")
    d.arrow(x_t.top, (58, 26), (618, 26), (618, 94), label="x_{t} [C, T, H, W]", at=(338, 18))
    d.arrow((618, 26), (821, 26), (821, 94))
    d.arrow(
        step.bottom,
        (821, 240),
        (58, 240),
        (58, 154),
        label="x_{s}, less noisy: the next x_{t}, at t ← s",
        at=(440, 232),
    )
    return d


def words_encoding() -> Drawing:
    """04_words: from a caption to the vectors of the transformer."""
    d = Drawing(904, 250, "From a caption to vectors")
    caption = d.box(16, 34, 108, "caption", "“a red car”", source=True)
    tokens = d.box(196, 34, 120, "tokenizer", "87 tokens")
    table = d.box(396, 34, 90, "table", "87 × 96")
    t5 = d.box(568, 34, 104, "T5", "2 blocks", lit=True)
    cross = d.box(766, 34, 126, "transformer", "cross_attn")
    d.arrow(caption.right, (194, 62), label="cleaned")
    d.arrow(tokens.right, (394, 62), label="ids [L]")
    d.arrow(table.right, (566, 62), label="[L, 96]")
    d.arrow(t5.right, (764, 62), label="y [L, 96]")
    mask = (tokens.bottom[0], 124)
    d.arrow(
        tokens.bottom,
        mask,
        (t5.bottom[0], 124),
        (t5.bottom[0], 92),
        label="mask [L]: 1 token, 0 padding",
        at=(438, 116),
    )
    d.arrow((t5.bottom[0], 124), (cross.x + 40, 124), (cross.x + 40, 92))
    null = d.box(568, 170, 126, "null caption", "[L, 96]", source=True)
    d.arrow(null.right, (cross.x + 90, 198), (cross.x + 90, 92), label="second evaluation", at=(786, 222))
    return d


def words_guidance() -> Drawing:
    """04_words: classifier-free guidance."""
    d = Drawing(904, 226, "Classifier-free guidance")
    x_t = d.box(16, 85, 104, "x_{t}", "[C, T, H, W]", source=True)
    cond = d.box(236, 22, 160, "transformer", "with the caption")
    uncond = d.box(236, 148, 160, "transformer", "null caption")
    difference = d.box(516, 22, 130, "difference", "ε_{y} − ε_{∅}")
    scaled = d.box(736, 22, 90, "× s", "scale", lit=True)
    d.box(736, 148, 90, "+", "ε, guided")
    d.arrow(x_t.right, (178, 113), (178, 50), (234, 50), label="t", at=(150, 105))
    d.arrow((178, 113), (178, 176), (234, 176))
    d.arrow(cond.right, (514, 50), label="ε_{y}")
    d.arrow(uncond.right, (734, 176), label="ε_{∅}", at=(660, 167))
    d.arrow((580, 176), (580, 80))
    d.arrow(difference.right, (734, 50))
    d.arrow(scaled.bottom, (781, 146))
    d.text(862, 181, "→ step", 13, "faint", mono=True)
    return d


def attention_trace() -> Drawing:
    """07_attention: where a trace reads the weights."""
    d = Drawing(904, 250, "Where the weights come from")
    x = d.box(16, 30, 120, "video tokens", "[N, D]", source=True)
    y = d.box(16, 160, 120, "caption", "[L, D]", source=True)
    q = d.box(206, 30, 100, "queries", "[N, h, d]")
    kv = d.box(206, 160, 120, "keys, values", "[L, h, d]")
    weights = d.box(432, 30, 120, "softmax", "q·k / √d")
    d.box(690, 30, 130, "mix values", "weights · v")
    d.box(690, 160, 130, "Trace", "trace.py", lit=True)
    d.arrow(x.right, (204, 58))
    d.arrow(y.right, (204, 188))
    d.arrow(q.right, (430, 58), label="q")
    d.arrow(kv.right, (470, 188), (470, 88), label="k", at=(400, 179))
    d.arrow((266, 216), (266, 236), (862, 236), (862, 58), (822, 58), label="v", at=(560, 229))
    d.arrow(weights.right, (688, 58), label="weights [h, N, L]")
    d.arrow((620, 58), (620, 188), (688, 188))
    return d


def stdit_model() -> Drawing:
    """05_stdit: the whole transformer."""
    d = Drawing(904, 316, "STDiT2")
    x_t = d.box(16, 130, 104, "x_{t}", "[C, T, H, W]", source=True)
    patches = d.box(156, 130, 112, "patches", "x_embedder")
    blocks = d.box(366, 130, 124, "6 blocks", "blocks", lit=True)
    final = d.box(588, 130, 114, "final layer", "final_layer")
    out = d.box(762, 130, 126, "ε, variance", "[2C, T, H, W]", source=True)
    d.arrow(x_t.right, (patches.x - 2, 158))
    d.arrow(patches.right, (blocks.x - 2, 158), label="[T, S, D]")
    d.arrow(blocks.right, (final.x - 2, 158), label="[T, S, D]")
    d.arrow(final.right, (out.x, 158))
    positions = d.box(156, 232, 112, "positions", "[S, D]", source=True)
    d.arrow(positions.top, (212, 188), label="+", at=(226, 212))
    time = d.box(98, 26, 170, "time, size, length", "", source=True)
    vectors = d.box(366, 26, 124, "adaLN", "t_block")
    d.arrow(time.right, (vectors.x - 2, 54), label="numbers")
    d.arrow(vectors.bottom, (428, 128), label="[6, D], [3, D]", at=(486, 111))
    d.arrow(vectors.right, (645, 54), (645, 128), label="[D]", at=(568, 45))
    caption = d.box(588, 232, 114, "T5 vectors", "[L, 96]", source=True)
    y = d.box(366, 232, 124, "caption", "y_embedder")
    d.arrow(caption.left, (492, 260))
    d.arrow(y.top, (428, 188), label="[L, D]", at=(456, 214))
    return d


def stdit_block() -> Drawing:
    """05_stdit: one block, with adaLN from the side."""
    d = Drawing(904, 546, "One block of STDiT2")
    line = 66  # where the tokens go down
    d.text(line, 28, "x [T, S, D]", 13, "ink", mono=True)
    d.arrow((line, 38), (line, 512))
    d.text(line, 534, "x [T, S, D]", 13, "ink", mono=True)
    rows = {
        "spatial attention": ("attn", "T × [S, D]", "time, size", "3 of [6, D]"),
        "temporal attention": ("attn_temp", "S × [T, D]", "time, length", "[3, D]"),
        "cross-attention": ("cross_attn", "", "caption", "[L, D]"),
        "MLP": ("mlp", "[T, S, D]", "time, size", "3 of [6, D]"),
    }
    for i, (name, (module, shape, side, vectors)) in enumerate(rows.items()):
        y = 64 + 114 * i
        layer = d.box(360, y, 180, name, module, lit=True)
        source = d.box(768, y, 120, side, vectors, source=True)
        middle, back = y + 28, y + 76
        d.text(line - 14, back + 5, "+", 16)
        if not shape:
            d.arrow((line, middle), (358, middle), label="[T · S, D]")
            d.arrow(source.left, (542, middle), label="keys and values")
            d.arrow(layer.bottom, (layer.bottom[0], back), (line + 2, back))
            continue
        norm = d.box(152, y, 124, "norm", "×(1+scale)+shift")
        gate = d.box(612, y, 70, "gate", "×")
        d.arrow((line, middle), (150, middle), label="[T, S, D]")
        d.arrow(norm.right, (358, middle), label=shape)
        d.arrow(layer.right, (610, middle))
        d.arrow(source.left, (684, middle))
        d.arrow(source.top, (source.top[0], y - 14), (norm.top[0], y - 14), (norm.top[0], y - 2))
        d.text(450, y - 19, "adaLN: shift, scale", 12, "faint", mono=True)
        d.arrow(gate.bottom, (gate.bottom[0], back), (line + 2, back))
    return d


def quickstart_course() -> Drawing:
    """00_quickstart: the lessons, in their four parts."""
    d = Drawing(900, 306, "Map of the course")
    rows = {
        ("I  Diffusion", "how it works"): {
            "01 Noise": "the idea",
            "02 Latents": "what it sees",
            "03 Denoising": "one step",
            "04 Words": "the caption",
            "05 STDiT": "the network",
        },
        ("II  Control", "what you decide"): {
            "06 Masks": "given frames",
            "07 Attention": "who looks where",
            "08 Loops": "long videos",
        },
        ("III  Training", "how it learns"): {"11 Training": "your own loop", "12 Evaluation": "how good is it"},
        ("IV  At work", "many videos"): {
            "13 Generate": "papermill",
            "14 Sweep": "many settings",
            "15 Full size": "real weights",
        },
    }
    for i, (part, lessons) in enumerate(rows.items()):
        y = 14 + 72 * i
        d.box(14, y, 140, *part, source=True)
        boxes = [d.box(170 + 144 * k, y, 130, *lesson, lit=i + k == 0) for k, lesson in enumerate(lessons.items())]
        for before, after in pairwise(boxes):
            d.arrow(before.right, after.left)
    return d


def quickstart_tasks() -> Drawing:
    """00_quickstart: which frames of the five tasks are given, generated and edited."""
    d = Drawing(900, 246, "Five tasks")
    rows = {
        "1  text to video": "." * 16,
        "2  image as condition": "A" + "." * 15,
        "3  connecting": "A" + "." * 14 + "B",
        "4  extending": "A" * 8 + "." * 8,
        "5  editing": "~" * 16,
    }
    for i, (task, frames) in enumerate(rows.items()):
        y = 16 + 38 * i
        d.text(110, y + 20, task, 14)
        for k, letter in enumerate(frames):
            d.plain(226 + 41 * k, y, 36, 30, lit=letter in "AB")
            if letter != ".":
                d.text(244 + 41 * k, y + 20, letter, 14, mono=True)
    d.text(554, 226, "blue, A and B: given frames of a reference · empty: generated · ~: edited", 13, "faint")
    return d


def full_size_models() -> Drawing:
    """15_full_size: the three released models, areas to scale by their parameters."""
    d = Drawing(936, 262, "The three released models")
    caption = d.box(16, 93, 110, "caption", source=True)
    t5 = d.plain(190, 38, 166, 166)
    stdit = d.plain(524, 87.5, 67, 67, lit=True)
    vae = d.plain(740, 110, 22, 22)
    for box, name, size in ((t5, "T5 encoder", 4762), (stdit, "STDiT2", 768), (vae, "VAE", 84)):
        x = box.x + box.w / 2
        d.text(x, box.y + box.h + 26, name, 16)
        d.text(x, box.y + box.h + 44, f"{size:,} million", 12, "faint", mono=True)
    d.text(273, 26, "once per caption", 13, "faint")
    d.text(557, 26, "noise [4, 16, 32, 32]", 12, "faint", mono=True)
    d.text(682, 75, "100 steps, twice", 13, "faint")
    d.arrow((591, 104), (618, 104), (618, 64), (576, 64), (576, 85))
    d.arrow(caption.right, (188, 121))
    d.arrow((356, 121), (522, 121), label="[200, 4096]")
    d.arrow((557, 34), (557, 85))
    d.arrow((591, 121), (738, 121), label="[4, 16, 32, 32]", at=(682, 112))
    d.arrow((762, 121), (824, 121))
    d.frames(828, 86)
    d.text(863, 183, "frames", 16)
    d.text(863, 201, "[16, 256, 256, 3]", 12, "faint", mono=True)
    return d


def masks_loop() -> Drawing:
    """06_masks: what the frame mask does in one step of the loop."""
    d = Drawing(900, 334, "The frame mask in one step of sampling")
    x = d.box(16, 98, 100, "x", "all T frames", source=True)
    join = d.box(196, 98, 130, "1. join", "add noise")
    network = d.box(402, 98, 132, "2. STDiT2", "guess the noise", lit=True)
    step = d.box(606, 98, 104, "3. step", "DDIM, eq. 12")
    wait = d.box(776, 98, 108, "4. wait", "old or new")
    d.arrow(x.right, (194, 126), label="[C,T,H,W]")
    d.arrow(join.right, (400, 126), label="x_t")
    d.arrow(network.right, (604, 126), label="noise")
    d.arrow(step.right, (774, 126), label="new x")
    d.arrow(
        (364, 126), (364, 64), (wait.top[0], 64), (wait.top[0], 96), label="x_t: frames that wait stay", at=(580, 56)
    )
    d.arrow(
        (wait.right[0] - 20, 98),
        (wait.right[0] - 20, 24),
        (68, 24),
        (68, 96),
        label="the x of the next step",
        at=(450, 17),
    )
    d.frame(16, 238, 868, 84, "frame mask r [T], one number per frame; start step k = int(r · n); the steps count down")
    for box, line in (
        (join, "here, if k = step"),
        (network, "time t if k > step,"),
        (wait, "new, if k ≥ step"),
    ):
        d.arrow((box.bottom[0], 236), (box.bottom[0], 156))
        d.text(min(box.bottom[0], 812), 284, line, 12, "ink", mono=True)
    d.text(network.bottom[0], 302, "otherwise time 0", 12, "ink", mono=True)
    d.text(join.bottom[0], 302, "r between 0 and 1", 12, "faint", mono=True)
    d.text(812, 302, "otherwise x_t", 12, "ink", mono=True)
    return d


def long_videos_chain() -> Drawing:
    """08_long_videos: how frames go from one loop to the next."""
    d = Drawing(900, 316, "From one loop to the next")
    first = d.box(16, 40, 150, "loop 0", "noise, caption 0", lit=True)
    decode = d.box(262, 40, 130, "VAE decoder")
    d.frames(474, 30)
    d.text(640, 60, "T frames", 16)
    d.text(640, 80, "[T, 64, 64, 3]", 12, "faint", mono=True)
    d.arrow(first.right, (260, 68), label="[4,T,8,8]")
    d.arrow(decode.right, (472, 68), label="pixels")
    encode = d.box(444, 136, 130, "VAE encoder")
    d.arrow((509, 103), (509, 134), label="the last c", at=(562, 123))
    mask = d.box(204, 136, 140, "mask", "1,0,-4,0,4")
    d.arrow(encode.left, (346, 164), label="[4,c,8,8]")
    second = d.box(16, 226, 150, "loop 1", "noise, caption 1", lit=True)
    d.arrow(mask.left, (91, 164), (91, 224), label="c given frames", at=(140, 155))
    decode_2 = d.box(262, 226, 130, "VAE decoder")
    d.frames(474, 216)
    d.text(660, 246, "T − c new frames", 16)
    d.text(660, 266, "the c given ones are dropped", 12, "faint", mono=True)
    d.arrow(second.right, (260, 254), label="[4,T,8,8]")
    d.arrow(decode_2.right, (472, 254), label="pixels")
    d.frame(782, 20, 102, 280, "the video")
    d.text(833, 74, "T", 16)
    d.text(833, 172, "+", 16)
    d.text(833, 260, "T − c", 16)
    return d


def training_step() -> Drawing:
    """11_training: one step of training of the video model."""
    d = Drawing(900, 414, "One step of training of the video model")
    noise = d.box(16, 18, 130, "noise ε", "drawn at random", source=True)
    clip = d.box(16, 98, 130, "clip", "T pictures", source=True)
    time = d.box(16, 178, 130, "time, mask", "drawn at random", source=True)
    caption = d.box(16, 258, 130, "caption", "1 of 10 left out", source=True)
    vae = d.box(190, 98, 132, "VAE encoder", "frozen")
    t5 = d.box(190, 258, 132, "T5", "frozen")
    mix = d.box(386, 98, 110, "mix", "data, noise")
    model = d.box(566, 98, 124, "transformer", "STDiT2", lit=True)
    d.box(776, 98, 108, "loss", "one number")
    average = d.box(330, 340, 166, "moving average", "what is kept")
    optimizer = d.box(626, 340, 138, "optimizer", "AdamW")
    d.arrow(noise.right, (830, 46), (830, 96), label="ε [B, C, T, H, W]: the right answer is known", at=(640, 37))
    d.arrow((441, 46), (441, 96))
    d.arrow(clip.right, vae.left)
    d.arrow(vae.right, mix.left, label="x_0")
    d.arrow(mix.right, model.left, label="x_t")
    d.arrow((690, 114), (774, 114), label="ε_θ", at=(728, 107))
    d.arrow((776, 140), (692, 140), label="dL/dε_θ", at=(733, 156))
    d.arrow(time.right, (830, 206), (830, 156), label="which frames count", at=(756, 197))
    d.arrow((441, 206), (441, 156))
    d.arrow((612, 206), (612, 156))
    d.arrow(caption.right, t5.left)
    d.arrow(t5.right, (644, 286), (644, 156), label="y [B, L, D]", at=(372, 277))
    d.arrow((676, 154), (676, 338))
    d.text(774, 290, "backward: a gradient", 12, "faint", mono=True)
    d.text(774, 306, "for each parameter", 12, "faint", mono=True)
    d.arrow(optimizer.left, average.right, label="new parameters", at=(560, 388))
    d.arrow((580, 368), (580, 156))
    return d


def evaluation() -> Drawing:
    """12_evaluation: what is measured, and against what."""
    d = Drawing(900, 340, "Three measurements of generated videos")
    prompts = d.box(16, 128, 130, "prompts", "and seeds", source=True)
    model = d.box(196, 128, 110, "model", lit=True)
    d.frames(366, 118)
    d.text(402, 206, "videos", 13)
    real = d.box(196, 208, 110, "real clips", "not trained on", source=True)
    references = d.box(346, 268, 130, "references", "given frames", source=True)
    words = d.box(536, 48, 140, "describe", "a video's words")
    features = d.box(536, 148, 140, "features", "a few numbers")
    kept = d.box(536, 248, 140, "compare", "pixel by pixel")
    share = d.box(754, 48, 130, "share right", "91 of 100")
    distance = d.box(754, 148, 130, "Fréchet", "a distance")
    decibels = d.box(754, 248, 130, "PSNR", "decibels")
    d.arrow(prompts.right, model.left)
    d.arrow(model.right, (364, 156))
    d.arrow((440, 156), (490, 156), (490, 76), words.left)
    d.arrow((490, 156), (490, 168), (534, 168))
    d.arrow((490, 156), (490, 268), (534, 268))
    d.arrow((real.right[0], 228), (514, 228), (514, 184), (534, 184))
    d.arrow((references.right[0], 290), (534, 290))
    d.arrow(prompts.top, (81, 24), (819, 24), (819, 46), label="the words that were asked for", at=(290, 40))
    d.arrow(words.right, share.left)
    d.arrow(features.right, distance.left)
    d.arrow(kept.right, decibels.left)
    return d


def generate_papermill() -> Drawing:
    """13_generate: what papermill makes of a notebook."""
    d = Drawing(900, 336, "papermill runs a copy of a notebook with other values")
    d.frame(16, 46, 204, 250, "13_generate.ipynb")
    d.box(32, 82, 172, "imports")
    d.box(32, 152, 172, "parameters", "steps: int = 12")
    d.box(32, 222, 172, "the program")
    options = d.box(230, 12, 260, "options", "-p steps 50 -p output boat.mp4", source=True)
    papermill = d.box(290, 152, 140, "papermill", "copies, runs")
    code = d.box(301, 256, 118, "exit code", "0, or 1", source=True)
    d.frame(500, 12, 204, 316, "boat.ipynb, executed")
    d.box(516, 46, 172, "imports")
    d.box(516, 116, 172, "parameters", "steps: int = 12")
    d.box(516, 186, 172, "injected", "steps = 50 …", lit=True)
    program = d.box(516, 256, 172, "the program", "outputs, record")
    video = d.box(766, 256, 118, "video", "boat.mp4", source=True)
    d.arrow(options.bottom, papermill.top)
    d.arrow((220, 180), papermill.left)
    d.arrow(papermill.right, (498, 180))
    d.arrow(papermill.bottom, code.top)
    d.arrow(program.right, video.left)
    return d


def sweep_table() -> Drawing:
    """14_sweep: from a grid to intervals."""
    d = Drawing(900, 250, "A sweep: from a grid to intervals")
    grid = d.box(16, 97, 150, "grid", "3 s · 2 n · 2 seeds", source=True)
    d.text(91, 180, "s: guidance scale", 12, "faint", mono=True)
    d.text(91, 196, "n: steps", 12, "faint", mono=True)
    d.frame(232, 12, 190, 226, "runs, several at a time")
    runs = [d.box(252, y, 150, "run", text) for y, text in ((46, "s 1, n 4, seed 0"), (176, "s 8, n 12, seed 1"))]
    d.text(327, 130, "⋮", 16)
    d.text(327, 156, "12 runs", 12, "faint", mono=True)
    table = d.box(490, 97, 140, "table", "a row per video", lit=True)
    scores = d.box(706, 97, 178, "share right", "with its interval")
    d.arrow(grid.right, (230, 125))
    for run in runs:
        d.arrow(run.right, (456, run.right[1]), (456, 125), table.left)
    d.arrow(table.right, scores.left, label="group", at=(668, 116))
    d.text(560, 180, "settings, seed, what", 12, "faint", mono=True)
    d.text(560, 196, "the video shows", 12, "faint", mono=True)
    d.text(795, 180, "over its videos", 12, "faint", mono=True)
    return d


def files() -> dict[str, str]:
    """name -> content of every svg file of this folder."""
    return {
        "pipeline_light.svg": pipeline().svg("light"),
        "pipeline_dark.svg": pipeline().svg("dark"),
        "noise_training.svg": noise_training().svg(),
        "noise_sampling.svg": noise_sampling().svg(),
        "quickstart_course.svg": quickstart_course().svg(),
        "quickstart_tasks.svg": quickstart_tasks().svg(),
        "latents_vae.svg": latents_vae().svg(),
        "denoising_step.svg": denoising_step().svg(),
        "words_encoding.svg": words_encoding().svg(),
        "words_guidance.svg": words_guidance().svg(),
        "attention_trace.svg": attention_trace().svg(),
        "stdit_model.svg": stdit_model().svg(),
        "stdit_block.svg": stdit_block().svg(),
        "full_size_models.svg": full_size_models().svg(),
        "masks_loop.svg": masks_loop().svg(),
        "long_videos_chain.svg": long_videos_chain().svg(),
        "training_step.svg": training_step().svg(),
        "evaluation.svg": evaluation().svg(),
        "generate_papermill.svg": generate_papermill().svg(),
        "sweep_table.svg": sweep_table().svg(),
        **{f"map_{lesson[3:]}.svg": pipeline_map(*lit).svg() for lesson, lit in MAPS.items()},
    }


if __name__ == "__main__":
    for name, content in files().items():
        (ASSETS / name).write_text(content, encoding="utf-8", newline="\n")
