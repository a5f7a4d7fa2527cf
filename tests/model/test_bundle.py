from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mlic.config.data import Preprocessing
from mlic.errors import DataError
from mlic.model import bundle, losses, zoo
from mlic.model.ensemble import joined
from mlic.model.ensemble_member import Member

PREP = Preprocessing(image_size=64, color="rgb", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), resize="squash")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    model = zoo.build("b-final", 3, 3, 64, {"hidden": 16})
    spec = bundle.Bundle(
        "b-final",
        {"hidden": 16},
        ("c", "a", "b"),
        PREP,
        "sigmoid",
        (0.1, 0.25, 0.7),
        {"policy": "global"},
        {"method": "none", "scale": [], "shift": [], "knots": []},
        {"run": "x"},
    )
    bundle.save(spec, model.state_dict(), tmp_path / "run" / "model")
    return tmp_path / "run", model


def test_round_trip(saved: tuple[Path, torch.nn.Module]) -> None:
    run, model = saved
    for path in (run, run / "model"):
        spec, loaded = bundle.load_model(path)
        assert (spec.labels, spec.thresholds, spec.preprocessing) == (("c", "a", "b"), (0.1, 0.25, 0.7), PREP)
        x = torch.rand(2, 3, 64, 64)
        assert torch.equal(loaded(x), model.eval()(x))
        assert not loaded.training
    assert sorted(p.name for p in (run / "model").iterdir()) == ["model.json", "weights.safetensors"]
    assert [p.name for p in run.iterdir()] == ["model"]


def test_an_average_scores_as_the_mean_of_its_members(tmp_path: Path) -> None:
    """Each of which has its own activation and its own normalisation of the same images."""
    torch.manual_seed(1)
    members = (
        Member("b-final", {"hidden": 16}, "sigmoid", PREP.mean, PREP.std),
        Member("a-cnn1", {}, "softmax", (0.1, 0.4, 0.9), (0.5, 0.25, 0.125)),
    )
    nets = [zoo.build(member.arch, 3, 3, 64, member.arch_options).eval() for member in members]
    spec = bundle.Bundle(
        "average", {}, ("c", "a", "b"), PREP, "none", (0.1, 0.25, 0.7), {"policy": "global"}, {}, {}, members=members
    )
    bundle.save(spec, joined([net.state_dict() for net in nets]), tmp_path / "model")
    read, loaded = bundle.load_model(tmp_path)
    assert read.members == members
    images = torch.rand(4, 3, 64, 64)
    seen = [(images - torch.tensor(m.mean).view(-1, 1, 1)) / torch.tensor(m.std).view(-1, 1, 1) for m in members]
    expected = [torch.sigmoid(nets[0](seen[0])), torch.softmax(nets[1](seen[1]), dim=1)]
    found = losses.scores(read.activation, loaded(seen[0]))
    assert torch.allclose(found, (expected[0] + expected[1]) / 2, atol=1e-6)


def test_saving_again_replaces(saved: tuple[Path, torch.nn.Module]) -> None:
    run, model = saved
    before = bundle.read(run)
    spec = bundle.Bundle(
        "b-final", {"hidden": 16}, ("c", "a", "b"), PREP, "sigmoid", (0.2, 0.25, 0.7), {"policy": "fixed"}, {}, {}
    )
    bundle.save(spec, model.state_dict(), run / "model")
    assert bundle.read(run).thresholds[0] == 0.2
    assert bundle.read(run).fingerprint != before.fingerprint


def test_weights_of_another_model_are_refused(saved: tuple[Path, torch.nn.Module]) -> None:
    run, _ = saved
    weights = run / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="is not the file that model.json was written with"):
        bundle.load_model(run)
    weights.unlink()
    with pytest.raises(DataError, match="cannot be loaded: .*No such file"):
        bundle.load_model(run)


@pytest.mark.parametrize("change", [{"format": 2}, {"labels": ["c", "d"]}, {"preprocessing": {}}, {"thresholds": None}])
def test_a_broken_spec_is_refused(saved: tuple[Path, torch.nn.Module], change: dict[str, object]) -> None:
    path = saved[0] / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=r"bundle"):
        bundle.read(saved[0])


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no model"):
        bundle.read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        bundle.read(tmp_path / "run")
    (tmp_path / "run").write_text("")
    with pytest.raises(DataError, match="is a file, not a run"):
        bundle.read(tmp_path / "run")


def test_rewriting_changes_the_fingerprint_and_not_the_weights(saved: tuple[Path, torch.nn.Module]) -> None:
    run, _ = saved
    before = bundle.read(run)
    changed = dataclasses.replace(before, thresholds=(0.2, 0.25, 0.7))
    bundle.rewrite(changed, run / "model")
    after = bundle.load_model(run)[0]
    assert after == changed
    assert after.fingerprint != before.fingerprint
    assert bundle.read(run).top_k == 0
    bundle.rewrite(dataclasses.replace(before, threshold_fit={"policy": "top-k=2"}), run / "model")
    assert bundle.read(run).top_k == 2
    assert bundle.read(run).fingerprint not in (before.fingerprint, after.fingerprint)
    assert sorted(p.name for p in (run / "model").iterdir()) == ["model.json", "weights.safetensors"]
