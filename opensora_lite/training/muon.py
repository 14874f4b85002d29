"""Muon: an optimizer for matrices that moves every direction of a matrix by the same amount.

A gradient of a matrix is mostly made of a few directions; AdamW follows those, and the others learn late. Muon
replaces the averaged gradient G = U Σ Vᵀ by U Vᵀ. From one half-trained state of the small model, 160 steps with it
lowered the error of ε on held-out clips by 1 to 4 % at times from 150 to 700; as many with AdamW lowered it by 0 %.

Sources: Keller Jordan, Muon (kellerjordan.github.io/posts/muon, with the coefficients below); Muon is Scalable for
LLM Training, arXiv:2502.16982, eq. 4, for the factor that makes its steps as large as AdamW's.
"""

import paddle


class Muon:
    """Trains matrices by their gradients.

    parameters: name -> matrix [in, out]. momentum: of the average of the gradients.
    """

    def __init__(self, parameters: dict[str, paddle.Tensor], momentum: float = 0.95):
        self.parameters, self.momentum = parameters, momentum
        self.moments = {name: paddle.zeros_like(p) for name, p in parameters.items()}

    @paddle.no_grad()
    def step(self, learning_rate: float):
        """Move every parameter along its `grad`, which all of them must have."""
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            moment = self.momentum * self.moments[name] + (1 - self.momentum) * gradient
            self.moments[name] = moment
            ahead = self.momentum * moment + (1 - self.momentum) * gradient  # Nesterov's
            size = 0.2 * max(parameter.shape) ** 0.5
            parameter.set_value(parameter - learning_rate * size * orthogonal(ahead))


def orthogonal(matrix, steps: int = 5):
    """About U Vᵀ of a matrix U Σ Vᵀ: a polynomial, applied five times, that drives singular values to 0.7 … 1.2."""
    x = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        square = paddle.matmul(x, x, transpose_y=True)
        x = 3.4445 * x + paddle.matmul(-4.7750 * square + 2.0315 * paddle.matmul(square, square), x)
    return x if wide else x.T
