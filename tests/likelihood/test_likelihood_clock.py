"""The bound does not depend on the schedule in whose time its places are drawn; how far it scatters does."""

import pytest
import torch
from fixed import Fixed, cubature, legendre, mean_over_copies

from backdrift import schedule as sch
from backdrift.errors import UserError
from backdrift.exact import Gaussian, Mixture
from backdrift.likelihood import Continuous, bound
from backdrift.noise import Noise
from backdrift.objective import fit_schedule
from backdrift.process import Gaussian as Corruption

MEAN = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
VARIANCE = torch.tensor([0.09, 0.5, 1.7], dtype=torch.float64)
X = torch.tensor([[0.1, -0.2, 2.0], [0.7, -1.5, -0.4]], dtype=torch.float64)
TABLE = (0.0, 0.001, 0.3, 0.6, 1.0), (0.0, 0.0012, 0.09, 0.5, 1.0)


@pytest.mark.parametrize("clock", [sch.Cosine(), sch.Trig(), sch.Flow(), sch.Learned(sch.Cosine(), *TABLE)], ids=str)
def test_the_continuous_bound_is_the_integral_in_closed_form_by_every_clock(clock):
    first = float(sch.Cosine().time(3.0))
    # every copy at every node of the strata; strata that kinks of the table do not cut much
    nodes, weights = legendre(8)
    x, noise = cubature(X)
    x, eps, level = x.repeat(8, 1), noise.eps.repeat(8, 1), nodes.repeat_interleave(6)
    denoiser = Gaussian(MEAN, VARIANCE).denoiser(Corruption(sch.Cosine()))
    found = bound(denoiser, x, Continuous(30, first, clock), noise=Fixed(eps, level))
    cost = (weights[:, None] * mean_over_copies(found.denoising.sum(1), 3).view(8, 2)).sum(0)

    def primitive(g):
        c = 1 + VARIANCE * g
        return (c.log() + 1 / c - (X - MEAN) ** 2 / VARIANCE / c) / 2

    expected = (primitive(torch.tensor(3.0).exp()) - primitive(0.0)).sum(1)
    torch.testing.assert_close(cost, expected, rtol=1e-4 if isinstance(clock, sch.Learned) else 1e-8, atol=0)


def test_the_learned_clock_scatters_less():
    """One time for a whole estimate: the error is what the choice of times adds."""
    mixture = Mixture(
        torch.tensor([1.0, 2.0]), torch.tensor([[-0.6], [0.5]], dtype=torch.float64), torch.tensor([0.002, 0.06])
    )
    denoiser = mixture.denoiser(Corruption(sch.Cosine()))
    learned = fit_schedule(denoiser, mixture.draw(2000), steps=100)
    x, noise = mixture.draw(30, seed=1), Noise.of(1, 30)
    cosine, own = (bound(denoiser, x, Continuous(1, clock=c), draws=40, noise=noise) for c in (sch.Cosine(), learned))
    assert cosine.error.square().mean() > 5 * own.error.square().mean()
    exact = mixture.log_prob(x).mean()
    assert float(own.nats.mean()) == pytest.approx(
        float(exact), abs=4 * float(own.error.square().mean().sqrt()) / 30**0.5
    )


def test_a_clock_that_stops_short_is_refused():
    denoiser = Gaussian(MEAN, VARIANCE).denoiser(Corruption(sch.Cosine()))
    for clock in (sch.VP(), sch.VE(0.01, 50.0)):
        with pytest.raises(UserError, match="does not reach"):
            bound(denoiser, X, Continuous(4, clock=clock))
