"""A deep network with the scalings of muPC, its predictive-coding energy and inference.

    z_l = a_l W_l phi(z_{l-1})  (+ z_{l-1} for hidden layers after the first, with skips),  l = 1 ... L

phi is the identity at l = 1. Trained by backpropagation through `forward`, or by predictive coding: the activities z of
the hidden layers move down the energy, then the weights do. https://arxiv.org/abs/2505.13124,
https://github.com/thebuckleylab/jpc
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"linear": lambda z: z, "tanh": torch.tanh, "relu": torch.relu}
PARAMETRISATIONS = ("sp", "mupc", "orthogonal")


@dataclass(frozen=True)
class Penalties:
    """Factors of what is added to the energy: wd/2 sum |W|^2, sp/2 sum |W^T W - I|^2, ad/2 sum mean |z|^2."""

    weight_decay: float = 0.0
    spectral: float = 0.0
    activity_decay: float = 0.0


class PCNetwork(nn.Module):
    """`hidden` layers of `width` between `inputs` and `outputs`: L = hidden + 1 matrices, no biases.

    Parametrisations: "sp" has a_l = 1 and weights uniform within 1 / sqrt(fan_in), as torch's layers; "orthogonal" has
    a_l = 1 and orthogonal weights, times 1.05 for tanh; "mupc" has standard normal weights and a_1 = 1 / sqrt(inputs),
    a_L = 1 / width and a_l = 1 / sqrt(width) between (with skips 1 / sqrt(width L)): with backpropagation, Depth-muP.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        hidden: int,
        outputs: int,
        *,
        activation: str = "tanh",
        parametrisation: str = "mupc",
        skips: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if parametrisation not in PARAMETRISATIONS:
            raise ValueError(f"parametrisation must be one of {', '.join(PARAMETRISATIONS)}, got {parametrisation!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation, self.skips, self.width = activation, skips, width
        sizes = [inputs, *[width] * hidden, outputs]
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn if parametrisation != "sp" else torch.rand
        weights = [draw(rows, cols, generator=generator) for cols, rows in itertools.pairwise(sizes)]
        if parametrisation == "sp":
            weights = [(2 * w - 1) / math.sqrt(w.shape[1]) for w in weights]
        elif parametrisation == "orthogonal":
            weights = [_orthogonal(w) * (1.05 if activation == "tanh" else 1.0) for w in weights]
        self.weights = nn.ParameterList(weights)
        between = math.sqrt(width * len(weights)) if skips else math.sqrt(width)
        scales = [1 / math.sqrt(inputs), *[1 / between] * (hidden - 1), 1 / width]
        self.scales = scales if parametrisation == "mupc" else [1.0] * len(weights)

    def predict(self, layer: int, z: Tensor) -> Tensor:
        """The prediction [batch, rows] of a layer's activity from the one below (the input for layer 0)."""
        return self._map(layer, self.weights[layer], z)

    def states(self, x: Tensor) -> list[Tensor]:
        """The activity of every layer in a feed-forward pass; the last is the output."""
        states = []
        for layer in range(len(self.weights)):
            x = self.predict(layer, x)
            states.append(x)
        return states

    def forward(self, x: Tensor) -> Tensor:
        return self.states(x)[-1]

    def energy(self, x: Tensor, y: Tensor, z: Tensor, penalties: Penalties = Penalties()) -> Tensor:
        """The energy of hidden activities z [hidden, batch, width], mean over the batch."""
        below, top = z.split([len(z) - 1, 1])
        predictions = [self.predict(0, x)[None]]
        if len(below):
            # Given z the layers do not wait for each other, and those between hidden layers are alike: one product.
            predictions.append(self._map(1, torch.stack([*self.weights[1:-1]]), below))
        total = (z - torch.cat(predictions)).square().sum() + (y - self.predict(len(z), top)).square().sum()
        total = total / 2 / len(x)
        if penalties.activity_decay:
            total = total + penalties.activity_decay / 2 * z.square().sum() / len(x)
        for weight in self.weights:
            if penalties.weight_decay:
                total = total + penalties.weight_decay / 2 * weight.square().sum()
            if penalties.spectral:
                eye = torch.eye(weight.shape[1], dtype=x.dtype, device=x.device)
                total = total + penalties.spectral / 2 * (weight.mT @ weight - eye).square().sum()
        return total

    def infer(
        self,
        x: Tensor,
        y: Tensor,
        *,
        steps: int,
        lr: float,
        method: str = "gd",
        penalties: Penalties = Penalties(),
    ) -> Tensor:
        """Hidden activities after `steps` steps of gradient descent ("gd") or "adam" on each sample's own energy."""
        z = torch.stack(self.states(x)[:-1]).detach().requires_grad_()
        optimizer = torch.optim.SGD([z], lr) if method == "gd" else torch.optim.Adam([z], lr, capturable=z.is_cuda)
        for _ in range(steps):
            energy = self.energy(x, y, z, penalties) * len(x)
            (z.grad,) = torch.autograd.grad(energy, z)
            optimizer.step()
        return z.detach()

    def equilibrium_energy(self, x: Tensor, y: Tensor) -> Tensor:
        """The energy's minimum over z for a linear network: mean r^T S^-1 r / 2, r = y - forward(x).

        S = I + sum_l P_l P_l^T, where P_l is the product of the layers above hidden layer l. Its gradient in the
        weights is that of the energy at the minimum: what predictive coding steps by if inference is run to its end.
        Of weights that have overflowed it is not finite.
        """
        if self.activation != "linear":
            raise ValueError(f"equilibrium_energy needs a linear network, got activation {self.activation!r}")
        residual = y - self(x)
        s = torch.eye(y.shape[1], dtype=x.dtype, device=x.device)
        product = s
        for layer in range(len(self.weights) - 1, 0, -1):
            matrix = self.scales[layer] * self.weights[layer]
            if self._has_skip(layer):
                matrix = matrix + torch.eye(len(matrix), dtype=x.dtype, device=x.device)
            product = product @ matrix
            s = s + product @ product.mT
        # S is invertible unless something has overflowed, of which a GPU's `solve` would make an error.
        return (residual * torch.linalg.solve_ex(s, residual.mT).result.mT).sum() / 2 / len(x)

    def _map(self, layer: int, weight: Tensor, z: Tensor) -> Tensor:
        """What a layer with this weight makes of z; both may be stacks of several layers with its scale and skip."""
        phi = ACTIVATIONS[self.activation] if layer else ACTIVATIONS["linear"]
        prediction = phi(z) @ (self.scales[layer] * weight).mT
        return prediction + z if self._has_skip(layer) else prediction

    def _has_skip(self, layer: int) -> bool:
        return self.skips and 0 < layer < len(self.weights) - 1


def half_squared_error(output: Tensor, y: Tensor) -> Tensor:
    """The loss: 0.5 sum (y - output)^2 / batch."""
    return (y - output).square().sum() / 2 / len(y)


def _orthogonal(weight: Tensor) -> Tensor:
    """The orthogonal factor of a tall or wide Gaussian matrix, with signs that make it uniformly distributed."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return (q if tall is weight else q.mT).contiguous()
