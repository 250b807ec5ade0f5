"""Extractors: against scikit-learn's PCA, determinism, and refusals."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from backdrift.errors import UserError
from backdrift.evaluate.features import ClassifierFeatures, PixelPCA, Pixels, extract


def pictures(n, side, seed=0):
    scale = torch.linspace(0.1, 1, side * side).view(1, 1, side, side)
    return torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(seed)) * scale


def bars(n, seed=0):
    """Label 0: a horizontal bar, label 1: a vertical one, at random places, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels, places = torch.randint(2, (n,), generator=generator), torch.randint(8, (n,), generator=generator)
    x = -torch.ones(n, 1, 8, 8)
    for picture, label, place in zip(x, labels, places, strict=True):
        picture[0].select(int(label), int(place)).fill_(1.0)
    return x + 0.2 * torch.randn(x.shape, generator=generator), labels


@pytest.mark.parametrize(("n", "side"), [(200, 4), (30, 6)])  # more pictures than pixels, and fewer
def test_pca_is_scikit_learns_up_to_signs(n, side):
    train, test = pictures(n, side), pictures(10, side, seed=1)
    ours = PixelPCA.fit(train, components=5)
    theirs = PCA(5, svd_solver="full").fit(train.flatten(1).double().numpy())
    expected = theirs.transform(test.flatten(1).double().numpy())[:, ::-1]
    np.testing.assert_allclose(np.abs(ours(test).numpy()), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose((ours.components @ ours.components.T).numpy(), np.eye(5), atol=1e-12)
    assert ours.name == "pixel PCA 5"


def test_pca_refuses_more_components_than_there_are():
    with pytest.raises(UserError, match="fewer components"):
        PixelPCA.fit(pictures(200, 4), components=17)
    with pytest.raises(UserError, match="fewer components"):
        PixelPCA.fit(pictures(10, 4), components=10)


def test_extract_does_not_depend_on_the_block():
    x = pictures(23, 4)
    pca = PixelPCA.fit(x, components=3)
    torch.testing.assert_close(extract(pca, x, block=5), pca(x))
    assert torch.equal(extract(Pixels(), x, block=5), x.flatten(1).double())


def test_classifier_learns_is_repeatable_and_leaves_the_global_random_state_alone():
    x, y = bars(300)
    before = torch.get_rng_state()
    first, second = (ClassifierFeatures.fit(x, y, steps=60) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    test, labels = bars(200, seed=1)
    assert (first.predict(test, block=64) == labels).float().mean() > 0.97
    features = first(test)
    assert features.shape == (200, 64) and not features.requires_grad
    assert torch.equal(features, second(test))
    assert torch.equal(first.head(features).argmax(1), first.predict(test))


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 33, 20), (2, 4, 4)])
def test_classifier_takes_any_picture_size(shape):
    x = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0))
    assert ClassifierFeatures.fit(x, torch.arange(20) % 3, steps=1, batch=4)(x).shape == (20, 64)


def test_classifier_refuses_labels_that_cannot_be():
    x = pictures(6, 4)
    with pytest.raises(UserError, match="one label per picture"):
        ClassifierFeatures.fit(x, torch.arange(5))
    with pytest.raises(UserError, match="whole numbers"):
        ClassifierFeatures.fit(x, torch.arange(6) - 1)
    with pytest.raises(UserError, match="two classes"):
        ClassifierFeatures.fit(x, torch.zeros(6, dtype=torch.long))
