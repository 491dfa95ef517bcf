"""The example of convolutions: where each parameter goes in either layout, and that all optimizers learn."""

import conv_net
from digits import separable_digits


def test_learns_and_explains(monkeypatch, capsys):
    # 10 % is chance; measured, seeds 0 to 2: 100 %.
    monkeypatch.setattr(conv_net, "load_images", lambda options: separable_digits(2000, 500))
    results = conv_net.main(["--images", "1920", "--epochs", "2"])
    assert set(results) == set(conv_net.OPTIMIZERS)
    assert all(accuracy > 90 for (accuracy,) in results.values())
    out = capsys.readouterr().out
    assert "1920 train + 500 test images" in out
    table = {line.split()[0]: line.split()[2:] for line in out.splitlines() if "x" in line}
    assert table["conv1.weight"] == ["muon", "9", "x", "32x16", "0.4714", "ok"]
    assert table["conv0.weight"] == ["adamw", "1", "leading_unit_dims"]
    assert table["head.weight"] == ["adamw", "1", "head"]


def test_flattened():
    (group,) = [g for g in conv_net.muon(conv_net.build_model(0), "flatten").param_groups if g["use_muon"]]
    assert group["layout"] == "flatten" and [tuple(p.shape) for p in group["params"]] == [
        (32, 16, 3, 3),
        (64, 32, 3, 3),
    ]
