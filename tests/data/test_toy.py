from __future__ import annotations

from pathlib import Path

from mlic.data import toy
from mlic.data.annotations.read import read_annotations
from mlic.data.label_join import join
from mlic.data.sources.image_sources import list_images


def test_the_corpus_has_the_shape_of_the_reference_one(corpus: Path) -> None:
    annotations = read_annotations(corpus / "annotations")
    assert annotations.labels == toy.LABELS
    assert annotations.bare_numbers
    listing = list_images(corpus / "images")
    assert (len(listing), listing.others) == (240, 0)
    targets = join(annotations, listing.paths).targets
    disc, ring = (targets[:, toy.LABELS.index(name)] for name in ("disc", "ring"))
    assert 0 < ring.sum() < disc.sum()
    assert (disc >= ring).all()
    assert (targets.sum(axis=1) == 0).any()


def test_seeded(tmp_path: Path, corpus: Path) -> None:
    toy.generate(tmp_path, num_samples=240, num_unlabelled=30, seed=7)
    for path in ("images/im1.jpg", "unlabelled/im270.jpg", "annotations/ring.txt"):
        assert (tmp_path / path).read_bytes() == (corpus / path).read_bytes()
