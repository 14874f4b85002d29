"""How the temporal VAE of a small Open-Sora 1.2 starts: as the best linear code of four frames.

A latent frame stands for four frames of spatial latents, 4 · C numbers at every place. A linear code keeps K of their
combinations, as principal component analysis does, which for LiteWorld's clips gives more of the picture back than some
thousand steps of training from random weights: 32.0 dB against 30.4. Training starts from it and adds what is not
linear, and what happens at other places.

Without Paddle: the PyTorch twins (tests/peers) start from it too.

Axes: K channels of the code · C channels of the spatial latents · T frames · h, w height and width in latents.
"""

import numpy as np

from opensora_lite.latent_time import FACTOR as FRAMES

PRECISION = -7.8  # log variance of the latents at the start, where their own variance is about 2
CLIPS = 300  # their latents decide the code
REFERENCE = 32.0  # a constant channel so large that it alone decides what a group norm divides by


def best_linear_code(latents: list[np.ndarray], channels: int, rounds: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """(E [K, 4C + 1], D [4C, K + 1]): z = E (x, 1) for four frames x [4 · C], and x ≈ D (z, 1), float64.

    latents: [C, T, h, w] each, T = 4n + 1. The first latent frame of a clip holds one frame and three zeros, of which
    only the frame has to come back. E and D are found in turn by least squares, from the principal components.
    """
    four, one = (_moments(x) for x in (_fours(latents), _ones(latents)))
    size, frame = len(four) - 1, slice((FRAMES - 1) * len(latents[0]), None)
    mean = four[-1, :-1]
    U = np.linalg.svd(four[:-1, :-1] - np.outer(mean, mean))[0][:, :channels]
    E = np.c_[U.T, -U.T @ mean]
    wanted = np.zeros(size)
    wanted[frame] = 1
    for _ in range(rounds):
        D = _decoder(E, four, one, frame)
        left, right = np.zeros((channels * (size + 1),) * 2), np.zeros_like(E)
        for moments, rows in ((four, np.ones(size)), (one, wanted)):
            weighted = D[:, :-1].T * rows
            left += np.kron(weighted @ D[:, :-1], moments)
            right += weighted @ (moments[:-1] - np.outer(D[:, -1], moments[-1]))
        left += 1e-12 * np.trace(left) * np.eye(len(left))
        E = np.linalg.solve(left, right.ravel()).reshape(E.shape)
    # Any invertible mix of the channels is as good. Orthogonal directions: equal errors of z are equal errors of x.
    # Turned, so that no channel is nearly empty: a diffusion model sees each divided by its standard deviation.
    U, S, V = np.linalg.svd(D[:, :-1], full_matrices=False)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((channels, channels)))[0]
    E = turn @ np.diag(S) @ V @ E
    E[:, -1] = -E[:, :-1] @ mean
    return E, _decoder(E, four, one, frame)


def _fours(latents):
    """All but the first frames, by fours: [n, 4 · C]."""
    fours = [x[:, 1:].reshape(len(x), -1, FRAMES, *x.shape[2:]).transpose(1, 3, 4, 2, 0) for x in latents]
    return np.concatenate([x.reshape(-1, FRAMES * len(latents[0])) for x in fours])


def _ones(latents):
    """The first frames behind three zeros: [n, 4 · C]."""
    frames = np.concatenate([x[:, 0].reshape(len(x), -1).T for x in latents])
    return np.pad(frames, ((0, 0), ((FRAMES - 1) * len(latents[0]), 0)))


def _moments(x):
    """Mean of (x, 1) (x, 1)ᵀ."""
    x = np.c_[x, np.ones(len(x))].astype(np.float64)
    return x.T @ x / len(x)


def _decoder(E, four, one, frame):
    """The best D for E."""
    encode = np.r_[E, np.eye(len(four))[-1:]]  # (z, 1) = encode (x, 1)
    D = np.empty((len(four) - 1, len(encode)))
    for rows, moments in ((slice(0, frame.start), four), (frame, four + one)):
        ridge = 1e-9 * np.eye(len(encode))
        D[rows] = np.linalg.solve(encode @ moments @ encode.T + ridge, encode @ moments[:, :-1][:, rows]).T
    return D


def temporal_vae_start(
    shapes: dict[str, tuple[int, ...]], latents: list[np.ndarray], spread: float, seed: int
) -> dict[str, np.ndarray]:
    """Initial weights of a TemporalVAE with one group in its norms: it computes the best linear code.

    shapes: of its parameters by name. latents: [C, T, h, w] of 4n + 1 frames each; the first CLIPS decide the code.
    spread: their standard deviation, about.

    Residual blocks start as identities. In the convolutions between them, a few channels carry the frames, the latents
    and a constant to the end; the others are uniform in ±1/√inputs, as PyTorch makes them, and carry what training may
    use. Before the last convolution of each half stands SiLU, and silu(x) - silu(-x) = x: what is carried stands there
    twice, with both signs.
    """
    K, C = shapes["post_quant_conv.conv.weight"][0], len(latents[0])
    E, D = best_linear_code([x.astype(np.float32) / spread for x in latents[:CLIPS]], K)
    rng, start = np.random.default_rng([seed, 4]), {}
    for name, shape in sorted(shapes.items()):
        if ".norm" in name:
            start[name] = np.full(shape, name.endswith("weight"), np.float32)
            continue
        inputs = np.prod(shapes[name.replace(".bias", ".weight")][1:])
        start[name] = rng.uniform(-(inputs**-0.5), inputs**-0.5, shape).astype(np.float32)
        if ".conv2." in name and "res_blocks" in name:
            start[name][:] = 0

    def carry(name: str, outputs, matrix, tap: int = -1):
        """The channels `outputs` of a convolution are `matrix` times its first channels, in the frame of a tap."""
        weight = start[f"{name}.weight"]
        weight[outputs] = 0
        if f"{name}.bias" in start:
            start[f"{name}.bias"][outputs] = 0
        centre = weight.shape[-1] // 2
        for output, row in zip(outputs, np.atleast_2d(matrix), strict=True):
            weight[output, : len(row), tap, centre, centre] = row

    def twice(name: str, n: int):
        """The first n channels and the constant, which is input n, with both signs. Nothing else reads the constant."""
        start[f"{name}.weight"][:, n] = 0
        carry(name, range(2 * n + 2), np.kron(np.eye(n + 1), [[1], [-1]]))

    def read(name: str, outputs, matrix, norm: str):
        """The channels `outputs` are `matrix` times what stands before the norm in `twice`; nothing else is read."""
        scale = np.sqrt(2 * (matrix.shape[1] + REFERENCE**2) / len(start[f"{norm}.weight"]))
        carry(name, outputs, np.kron(scale * matrix, [[1, -1]]))

    both, four = 2 * C, FRAMES * C
    carry("encoder.conv_in.conv", range(C), np.eye(C) / spread)
    start["encoder.conv_in.conv.weight"][C:] /= np.float32(spread)
    carry("encoder.block_res_blocks.1.0.conv3.conv", range(C), np.eye(C))
    for name, n in (("encoder.conv_blocks.1.conv", C), ("encoder.conv_blocks.2.conv", both)):  # taps: frames -1, 0, 1
        carry(name, range(n), np.eye(n), tap=1)
        carry(name, range(n, 2 * n), np.eye(n), tap=2)
    carry("encoder.conv_blocks.2.conv", [four], np.zeros(1))
    start["encoder.conv_blocks.2.conv.bias"][four] = REFERENCE
    twice("encoder.block_res_blocks.3.0.conv3.conv", four)
    read("encoder.conv2.conv", range(K), E[:, :-1], "encoder.norm1")
    read("encoder.conv2.conv", range(K, 2 * K), np.zeros((K, four)), "encoder.norm1")
    start["encoder.conv2.conv.bias"][:] = np.r_[E[:, -1], np.full(K, PRECISION)]
    carry("quant_conv.conv", range(2 * K), np.eye(2 * K))
    carry("post_quant_conv.conv", range(K), np.eye(K))

    carry("decoder.conv1.conv", range(four), D[:, :-1])
    start["decoder.conv1.conv.bias"][:four] = D[:, -1]
    for name, n in (("decoder.conv_blocks.2.conv", both), ("decoder.conv_blocks.1.conv", C)):
        interleaved = np.arange(2 * n).reshape(2, n).T.ravel()  # output 2c + k is channel c of frame k
        carry(name, range(2 * n), np.eye(2 * n)[interleaved])
    carry("decoder.block_res_blocks.2.0.conv3.conv", range(both), np.eye(both))
    carry("decoder.conv_blocks.1.conv", [both, both + 1], np.zeros((2, 1)))
    start["decoder.conv_blocks.1.conv.bias"][[both, both + 1]] = REFERENCE
    twice("decoder.block_res_blocks.0.0.conv3.conv", C)
    read("decoder.conv_out.conv", range(C), spread * np.eye(C), "decoder.norm1")
    return start
