"""The predictive-coding network: golden numbers of loss, energy, Hessian and equilibrium, and that it learns."""

import pytest
import torch
from _pc_network import PARAMETRISATIONS, PCNetwork, Penalties, half_squared_error
from torch import Tensor

from muon_kernels import Muon
from muon_kernels.diagnostics import hessian, hessian_eigenvalues

# activation, parametrisation, skips: loss, lambda min, lambda max, |max| / |min|, equilibrium energy, loss / energy
GOLDEN = """
linear sp   no  1.739275614  0.2095914343  5.373146639 25.63628927 0.3058361832 5.686951741
linear sp   yes 2.517260234  0.1226543677  8.842536703 72.09312533 0.4326233788 5.818595011
linear mupc no  0.5200364318 0.3772871669  2.495847843 6.615247116 0.4695290848 1.10757022
linear mupc yes 0.5389094715 0.1516241039  4.017837104 26.49867006 0.4460087329 1.208293542
tanh   sp   no  1.188807301  -0.2262682315 4.7894744   21.16724195
tanh   sp   yes 1.001745144  -0.2685367171 6.469207131 24.09058695
tanh   mupc no  0.5182861625 0.3738801816  2.474001809 6.617098018
tanh   mupc yes 0.5318249611 0.1354446305  3.955448531 29.2034355
relu   sp   no  0.558139801  0.3158685417  3.084451179 9.764983757
relu   sp   yes 1.371362686  0.1500269631  5.241886878 34.93963198
relu   mupc no  0.5014428165 0.5174628543  1.819978455 3.517119035
relu   mupc yes 0.5182186063 0.1759362421  3.545402595 20.15163307
"""


def network(activation: str, parametrisation: str, skips: bool) -> PCNetwork:
    net = PCNetwork(5, 4, 3, 2, activation=activation, parametrisation=parametrisation, skips=skips).double()
    for layer, weight in enumerate(net.weights):
        r, c = torch.arange(weight.shape[0])[:, None], torch.arange(weight.shape[1])
        weight.data = (((3 * r + 5 * c + 2 * layer + r * c) % 7 - 3) / 4).double()
    return net


def data() -> tuple[Tensor, Tensor]:
    b, i = torch.arange(3)[:, None], torch.arange(5)
    return (((2 * b + 3 * i) % 5 - 2) / 2).double(), torch.tensor([[1.0, 0], [0, 1], [1, 0]], dtype=torch.float64)


def activity_hessian_eigenvalues(net: PCNetwork, x: Tensor, y: Tensor) -> Tensor:
    states = net.states(x[:1])[:-1]
    return hessian_eigenvalues(lambda *z: net.energy(x[:1], y[:1], torch.stack(z)), *states)


@pytest.mark.parametrize("line", GOLDEN.strip().splitlines(), ids=lambda line: "-".join(line.split()[:3]))
def test_golden(line: str) -> None:
    activation, parametrisation, skips, *numbers = line.split()
    wanted = [float(number) for number in numbers]
    net = network(activation, parametrisation, skips == "yes")
    x, y = data()
    loss = half_squared_error(net(x), y).item()
    assert net.energy(x, y, torch.stack(net.states(x)[:-1])).item() == pytest.approx(loss, rel=1e-12)
    values = activity_hessian_eigenvalues(net, x, y)
    found = [loss, values[0].item(), values[-1].item(), abs(values[-1] / values[0]).item()]
    if activation == "linear":
        energy = net.equilibrium_energy(x, y).item()
        found += [energy, loss / energy]
    assert found == pytest.approx(wanted, rel=1e-9)
    assert len(found) == len(wanted)


@pytest.mark.parametrize("hidden", [1, 2, 4])
@pytest.mark.parametrize("skips", [False, True])
def test_the_energy_is_that_of_layer_by_layer(skips: bool, hidden: int) -> None:
    net = PCNetwork(5, 4, hidden, 2, activation="tanh", skips=skips).double()
    x, y = data()
    z = torch.randn(hidden, 3, 4, dtype=torch.float64)
    wanted = (z[0] - x @ net.weights[0].mT / 5**0.5).square().sum() + (
        y - z[-1].tanh() @ net.weights[-1].mT / 4
    ).square().sum()
    for layer in range(1, hidden):
        prediction = z[layer - 1].tanh() @ net.weights[layer].mT / (4 * (hidden + 1 if skips else 1)) ** 0.5
        wanted += (z[layer] - prediction - (z[layer - 1] if skips else 0)).square().sum()
    torch.testing.assert_close(net.energy(x, y, z), wanted / 6)


@pytest.mark.parametrize("skips", [False, True])
def test_linear_hessian_has_the_blocks_of_theory(skips: bool) -> None:
    """Block (l, l) is I + B^T B for the layer's own prediction and the map B above it, block (l, l+1) is -B^T."""
    net = network("linear", "mupc", skips)
    x, y = data()
    found = hessian(lambda *z: net.energy(x[:1], y[:1], torch.stack(z)), *net.states(x[:1])[:-1])
    eye = torch.eye(4, dtype=torch.float64)
    for layer in range(3):
        above = net.scales[layer + 1] * net.weights[layer + 1] + (eye if skips and layer < 2 else 0)
        block = found[4 * layer : 4 * layer + 4]
        torch.testing.assert_close(block[:, 4 * layer : 4 * layer + 4], eye + above.mT @ above)
        if layer < 2:
            torch.testing.assert_close(block[:, 4 * layer + 4 : 4 * layer + 8], -above.mT)
        assert not block[:, 4 * layer + 8 :].any()


@pytest.mark.parametrize("method", ["gd", "adam"])
@pytest.mark.parametrize("skips", [False, True])
def test_inference_reaches_the_equilibrium(method: str, skips: bool) -> None:
    net = network("linear", "mupc", skips)
    x, y = data()
    lr, steps = (0.4, 300) if method == "gd" else (0.01, 800)
    z = net.infer(x, y, steps=steps, lr=lr, method=method)
    assert net.energy(x, y, z).item() == pytest.approx(net.equilibrium_energy(x, y).item(), rel=1e-3)
    assert net.weights[0].grad is None, "inference leaves the weights alone"
    # A sample's activities do not depend on its batch.
    alone = net.infer(x[1:2], y[1:2], steps=steps, lr=lr, method=method)
    if method == "gd":
        torch.testing.assert_close(alone[1], z[1][1:2])


def test_penalties_are_what_they_say() -> None:
    net = network("tanh", "sp", True)
    x, y = data()
    z = torch.randn(3, 3, 4, dtype=torch.float64)
    plain = net.energy(x, y, z)
    squares = sum(w.square().sum() for w in net.weights)
    eyes = sum((w.mT @ w - torch.eye(w.shape[1])).square().sum() for w in net.weights)
    activities = z.square().sum((0, 2)).mean()
    torch.testing.assert_close(net.energy(x, y, z, Penalties(weight_decay=0.3)) - plain, 0.15 * squares)
    torch.testing.assert_close(net.energy(x, y, z, Penalties(spectral=0.3)) - plain, 0.15 * eyes)
    torch.testing.assert_close(net.energy(x, y, z, Penalties(activity_decay=0.3)) - plain, 0.15 * activities)


def test_parametrisations() -> None:
    nets = {p: PCNetwork(30, 200, 4, 10, parametrisation=p, skips=True) for p in PARAMETRISATIONS}
    assert nets["mupc"].scales == pytest.approx([30**-0.5, *[(200 * 5) ** -0.5] * 3, 1 / 200])
    assert nets["sp"].scales == nets["orthogonal"].scales == [1.0] * 5
    for i, fan_in in enumerate((30, 200, 200, 200, 200)):
        assert nets["mupc"].weights[i].std().item() == pytest.approx(1, rel=0.1)
        assert nets["sp"].weights[i].std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
        singular = torch.linalg.svdvals(nets["orthogonal"].weights[i])
        torch.testing.assert_close(singular, torch.full_like(singular, 1.05))
    assert PCNetwork(30, 200, 4, 10, skips=False).scales[1] == pytest.approx(200**-0.5)
    with pytest.raises(ValueError, match=r"sp, mupc, orthogonal, got 'ntp'"):
        PCNetwork(3, 4, 2, 2, parametrisation="ntp")
    with pytest.raises(ValueError, match="linear, tanh, relu, got 'gelu'"):
        PCNetwork(3, 4, 2, 2, activation="gelu")
    with pytest.raises(ValueError, match="linear network, got activation 'tanh'"):
        nets["sp"].equilibrium_energy(*data())


@pytest.mark.parametrize("optimizer", ["Muon", "Adam"])
def test_predictive_coding_learns(optimizer: str) -> None:
    torch.manual_seed(0)
    net = PCNetwork(10, 16, 4, 3)
    centres = torch.randn(3, 10)
    labels = torch.arange(60) % 3
    x, y = centres[labels] + 0.3 * torch.randn(60, 10), torch.eye(3)[labels]
    step = (
        Muon(net.parameters(), lr=0.3, weight_decay=0.0)
        if optimizer == "Muon"
        else torch.optim.Adam(net.parameters(), 0.1)
    )
    before = (net(x).argmax(1) == labels).float().mean().item()
    for _ in range(30):
        z = net.infer(x, y, steps=4, lr=0.5)
        step.zero_grad()
        net.energy(x, y, z).backward()
        step.step()
    assert (net(x).argmax(1) == labels).float().mean().item() > 0.95 > 0.7 > before
