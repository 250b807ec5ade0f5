"""A user's network files: both formats load, everything else is refused in one sentence."""

import hashlib
import os
import zipfile

import pytest
import torch

from backdrift.errors import UserError
from backdrift.evaluate import exported
from backdrift.evaluate.exported import ExportedFeatures
from backdrift.evaluate.report import frechet_name


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


class EightBitNet(torch.nn.Module):
    def forward(self, x, return_features: bool = False):
        if not return_features:
            raise RuntimeError("features were not asked for")
        if x.dtype != torch.uint8:
            raise RuntimeError("8-bit pictures were expected")
        return x.float().mean((2, 3))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    net, x = Net().eval(), torch.randn(2, 1, 8, 8)
    torch.jit.save(torch.jit.trace(net, x), folder / "scripted.pt")
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: batch},)), folder / "exported.pt2")
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(net, folder / "pickled.pt")
    return folder, net


@pytest.mark.parametrize("name", ["scripted.pt", "exported.pt2"])
def test_both_formats_give_the_networks_features(files, name):
    folder, net = files
    extractor, x = ExportedFeatures(folder / name), torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(extractor(x), net(x))
    assert frechet_name(extractor) == f"FD ({name.split('.')[0]})"


@pytest.mark.parametrize("name", ["weights.pt", "pickled.pt"])
def test_pickles_are_refused(files, name):
    with pytest.raises(UserError, match="not a feature network"):
        ExportedFeatures(files[0] / name)


def test_missing_and_broken_files_are_refused(files, tmp_path):
    with pytest.raises(UserError, match="There is no feature network"):
        ExportedFeatures(tmp_path / "none.pt")
    for name in ("scripted.pt", "exported.pt2"):
        broken = tmp_path / name
        broken.write_bytes((files[0] / name).read_bytes()[:500])
        with pytest.raises(UserError, match="cannot be read"):
            ExportedFeatures(broken)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_export_whose_inputs_are_a_pickle_is_refused_unread(files, tmp_path):
    torch.save(Bomb(tmp_path / "crater"), tmp_path / "bomb.pt")
    with (
        zipfile.ZipFile(files[0] / "exported.pt2") as source,
        zipfile.ZipFile(tmp_path / "evil.pt2", "w") as target,
    ):
        for name in source.namelist():
            inputs = "sample_inputs" in name and name.endswith(".pt")
            target.writestr(name, (tmp_path / "bomb.pt").read_bytes() if inputs else source.read(name))
    with pytest.raises(UserError, match="holds code"):
        ExportedFeatures(tmp_path / "evil.pt2")
    assert not (tmp_path / "crater").exists()


def test_a_network_that_does_not_fit_says_so(files):
    extractor = ExportedFeatures(files[0] / "scripted.pt")
    with pytest.raises(UserError, match="failed on pictures of shape"):
        extractor(torch.zeros(2, 3, 8, 8))
    with pytest.raises(UserError, match="not finite"):
        extractor(torch.full((2, 1, 8, 8), torch.inf))


def test_only_the_published_weights_are_called_fid(tmp_path, monkeypatch):
    path = tmp_path / "inception-2015-12-05.pt"  # the right name proves nothing
    torch.jit.save(torch.jit.script(EightBitNet()), path)
    assert frechet_name(ExportedFeatures(path)) == "FD (inception-2015-12-05)"
    monkeypatch.setattr(exported, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    extractor = ExportedFeatures(path)
    assert frechet_name(extractor) == "FID"
    grey = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert extractor(grey).tolist() == [[0.0] * 3, [255.0] * 3]
    with pytest.raises(UserError, match="grey or RGB"):
        extractor(torch.zeros(2, 4, 4, 4))
