"""The I-MMSE integral against exact log-densities: by quadrature to 1e-6, and drawn, within its standard error."""

import math

import pytest
import torch
from fixed import Fixed, hermite, legendre

from backdrift import schedule
from backdrift.exact import Gaussian, Mixture
from backdrift.likelihood import mmse
from backdrift.process import Gaussian as Corruption

G = 1e6  # the largest signal-to-noise ratio, by default


def three(labels=None):
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
    return Mixture(torch.tensor([0.3, 0.5, 0.2]), means, torch.tensor([0.05, 0.1, 0.2]), labels)


@pytest.mark.parametrize("sch", [schedule.Flow(), schedule.VP(), schedule.EDM(sigma_min=1e-3)])
def test_gaussians_element_by_element(sch):
    law = Gaussian(torch.tensor([0.2, -1.0], dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64))
    x = torch.tensor([0.5, -1.4], dtype=torch.float64)
    nodes, weights = legendre(8)
    # eps needs no average: nothing of it is left for a Gaussian
    noise = Fixed(torch.tensor([[0.3, -1.2]], dtype=torch.float64).expand(8, -1), nodes)
    found = mmse(law.denoiser(Corruption(sch)), x.expand(8, -1), evaluations=16, noise=noise).map
    wide = 0.3 + 1 / G
    exact = -(((x - law.means[0]) ** 2 + 1 / G) / wide + math.log(2 * math.pi * wide)) / 2
    torch.testing.assert_close((weights[:, None] * found).sum(0), exact, rtol=1e-6, atol=1e-6)


def test_a_mixture_by_quadrature():
    means = torch.tensor([[-0.6], [0.5]], dtype=torch.float64)
    law = Mixture(torch.tensor([1.0, 2.0]), means, torch.tensor([0.02, 0.06]))
    x = torch.tensor([-0.6, 0.0, 0.7], dtype=torch.float64)
    (level, w), (eps, v) = legendre(4), hermite(24)
    x_all = x[:, None, None].expand(3, 4, 24).reshape(-1, 1)
    noise = Fixed(eps.repeat(12)[:, None], level.repeat_interleave(24).repeat(3))
    found = mmse(law.denoiser(Corruption(schedule.Cosine())), x_all, evaluations=60, noise=noise).nats
    found = torch.einsum("ble,l,e->b", found.view(3, 4, 24), w, v)
    torch.testing.assert_close(found, law.log_prob(x[:, None]), rtol=0, atol=1e-4)


def test_draws_agree_within_their_error():
    law = three(torch.tensor([0, 1, 1]))
    x = law.draw(40, seed=1)
    for cond in (None, {"label": torch.arange(40) % 3}):
        exact = law.log_prob(x, cond)
        found = mmse(law.denoiser(Corruption(schedule.Flow())), x, evaluations=40, draws=8, cond=cond)
        z = (found.nats - exact) / found.error
        assert 0.7 < float(z.square().mean().sqrt()) < 1.5
        # the entropy of these samples: their errors are independent
        assert abs(float((found.nats - exact).mean())) < 4 * float(found.error.square().sum().sqrt()) / 40
        assert float(found.error.mean()) < 0.3
        torch.testing.assert_close(found.map.sum(1), found.nats)
