"""One photograph in the folders of several labels is one image with several labels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace

import numpy as np

from mlic.data.label_join import Joined
from mlic.data.pixels.images import BadImage
from mlic.data.sources.image_listing import Listing

FORMAT = "one folder per label"


def merged(listing: Listing, joined: Joined) -> tuple[Listing, Joined, list[tuple[str, str]]]:
    """Keep the first of the images with the same bytes, with the labels of all of them.

    Returns the listing and the targets of the images that stay, and the copies as (name, reason). Only images of equal
    size are read.
    """
    order = np.argsort(listing.sizes, kind="stable")
    same_size = np.flatnonzero(np.diff(listing.sizes[order]) == 0)
    candidates = np.unique(np.concatenate([order[same_size], order[same_size + 1]]))
    by_digest = defaultdict[bytes, list[int]](list)
    with listing.opened() as read:
        for row in candidates.tolist():
            try:
                by_digest[hashlib.sha256(read(row)).digest()].append(row)
            except BadImage:
                continue  # pack counts it when it reads it
    targets, copies, kept = joined.targets.copy(), list[tuple[str, str]](), np.ones(len(listing), bool)
    for first, *others in by_digest.values():
        for row in others:
            targets[first] = np.maximum(targets[first], joined.targets[row])
            kept[row] = False
            copies.append((listing.path(row), f"is the same photograph as {listing.path(first)}, which has its labels"))
    rows = np.flatnonzero(kept)
    names, annotated = joined.names[rows], joined.annotated[rows]
    return listing.take(rows), replace(joined, targets=targets[rows], annotated=annotated, names=names), copies
