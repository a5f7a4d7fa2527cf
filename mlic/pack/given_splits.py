"""The splits that images have already: by a column, by files, by folders, or by earlier shards."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from mlic.config.data import PackConfig, is_split_name
from mlic.config.types import Location
from mlic.data import label_join, shards
from mlic.data.annotations.files.table_files import Table, is_table, open_table
from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.profiles import profiles_of
from mlic.data.annotations.read import read_annotations
from mlic.data.annotations.tables import read_table
from mlic.data.image_labels import Annotations, Array
from mlic.data.label_join import ImageNames, Joined
from mlic.data.sources import parquet_images
from mlic.data.sources.image_listing import Listing
from mlic.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# What the splits are called elsewhere.
_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    "unassigned": "",
}
_SPLIT_WORD = re.compile(r"[a-z]+")
_CELEBA = frozenset({"partition", "evaluation"})  # 0 is train, 1 val, 2 test; elsewhere only if there are all three
_NUMBERED = frozenset({"split", "subset", "set"})
_NONE = frozenset({"nan", "none", "null", "na", "n/a", "-"})
_COLUMNS = ("split", "partition", "subset", "set", "fold", "phase", "usage")


def given_splits(
    config: PackConfig, annotations: Annotations, joined: Joined, listing: Listing
) -> tuple[tuple[str, ...], Array]:
    """The names of the splits, and the split (N,) that an image has already, -1 for none. Raises DataError."""
    fixed = np.full(len(listing), -1, np.int64)
    names = tuple(config.split)
    if config.split_names and config.split_files is None and "split" not in annotations.columns:
        raise ConfigError(
            "--split-names renames splits of a column or of files, and none is named.",
            "give --split-column or --split-files.",
        )
    if config.split_files is not None and config.split_files == config.images:
        names, fixed = _by_folders(config, listing, names)
    elif config.split_files is not None:
        names, fixed = _by_files(config, config.split_files, listing, names)
    elif config.keep_test is not None:
        fixed = _earlier_test(config.keep_test, listing, names.index("test"))
    elif "split" in annotations.columns:
        encoded = annotations.columns["split"].dictionary_encode()
        found = encoded.dictionary.to_pylist()
        meaning = split_names(found, config.split_column or "split", config.split_names)
        names = _all_splits(names, [meaning[name] for name in found])
        number = np.array([names.index(meaning[name]) if meaning[name] else -1 for name in found] + [-1])
        split_of = encoded.indices.to_numpy()
        fixed = np.where(joined.names >= 0, number[split_of[joined.names]], -1)
    elif _have_labels(listing, annotations) and (named := _by_archives(listing)) is not None:
        names, fixed = _all_splits(names, named[0]), named[1]
        logger.info("splits from the names of the files: %s", ", ".join(named[0]))
        fixed = np.array([names.index(name) for name in named[0]])[fixed]
    if (fixed >= 0).any() and (fixed < 0).any() and config.keep_test is None:
        logger.info("%s images have no given split and are assigned at random", f"{int((fixed < 0).sum()):,}")
    return names, fixed


def _have_labels(listing: Listing, annotations: Annotations) -> bool:
    """Whether the labels are in the archives of the images, so that both were written together."""
    in_cells = all(archive.suffix.lower() == ".parquet" for archive in listing.archives)
    return annotations.format == "WebDataset shards" or in_cells


def _by_archives(listing: Listing) -> tuple[list[str], Array] | None:
    """The splits that all archives are named after, and the split (N,) of each image; None where some are not."""
    found = [split_of_name(parquet_images.stem(listing.root, archive)) for archive in listing.archives]
    names = [name for name in found if name is not None]
    if listing.members is None or len(names) < len(found):
        return None
    splits = list(dict.fromkeys(names))
    if len(splits) < 2:
        return None
    return splits, np.array([splits.index(name) for name in names])[listing.members["container"]]


def split_of_name(path: str) -> str | None:
    """The split that the name of a file or its folder says, such as `imagenet-val-000001`; None if not just one."""
    for part in reversed(path.lower().split("/")):
        splits = {_WORDS[word] for word in _SPLIT_WORD.findall(part) if _WORDS.get(word)}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def split_names(values: Sequence[str], column: str, said: Mapping[str, str]) -> dict[str, str]:
    """What each value of a column of splits is called here. Raises DataError for numbers whose meaning is open."""
    plain = {value: value.strip() for value in values}
    filled = {text.lower() for text in plain.values() if text}
    numbered = _numbered(column.lower(), filled)
    meaning = dict[str, str]()
    unknown = sorted(set(said) - {*plain.values(), *(text.lower() for text in plain.values())})
    if unknown:
        there = ", ".join(sorted(set(plain.values()) - {""})[:10])
        raise DataError(
            f"--split-names names {unknown[0]!r}, and the splits are {there}.", "name those that there are."
        )
    for value, text in plain.items():
        low = text.lower()
        if text in said or low in said:
            meaning[value] = said.get(text, said.get(low, text))
        elif low in numbered:
            meaning[value] = numbered[low]
        elif low in ("0", "1", "2", "true", "false"):
            example = "1=train,0=val" if "train" in column.lower() else "0=train,1=val"
            raise DataError(
                f"the column {column!r} of splits holds {', '.join(sorted(filled))}, which do not say what they mean.",
                f"name them by --split-names, such as {example}.",
            )
        else:
            meaning[value] = "" if low in _NONE else _WORDS.get(low, text)
    renamed = {text: new for text, new in meaning.items() if new != text and text}
    if renamed:
        logger.info("splits: %s", ", ".join(f"{old} is {new or 'none'}" for old, new in sorted(renamed.items())))
    return meaning


def _numbered(column: str, values: set[str]) -> dict[str, str]:
    """The splits that numbers and truth values mean, by what their column is called."""
    if not values <= {"0", "1", "2", "true", "false"}:
        return {}
    words = set(_SPLIT_WORD.findall(column))
    if any(word.startswith(("train", "fold", "kfold")) for word in words):
        return {}
    if words & {"val", "valid", "validation", "isval", "dev"}:
        return {"0": "train", "1": "val", "false": "train", "true": "val"}
    if words & {"test", "istest", "testing"}:
        return {"0": "train", "1": "test", "false": "train", "true": "test"}
    if values <= {"0", "1", "2"} and (words & _CELEBA or (words & _NUMBERED and len(values) == 3)):
        return {"0": "train", "1": "val", "2": "test"}
    return {}


def _by_files(
    config: PackConfig, files: Location, listing: Listing, names: tuple[str, ...]
) -> tuple[tuple[str, ...], Array]:
    options = LabelOptions(image_names=ImageNames(listing.paths), of_splits=True)
    table = open_table(files, options.is_image) if isinstance(files, Path) and files.is_file() else None
    column = _split_column(table) if table is not None else None
    if table is not None and column is not None:
        listed = read_table(table, LabelOptions(label_column=column, delimiter="none", image_names=options.image_names))
        word = column or files.name
    else:
        listed, word = read_annotations(files, options), files.name
    joined = label_join.join(listed, listing.paths)
    if len(joined.missing):
        logger.warning(
            "%s of %s names in %s are of no image, such as %r",
            f"{len(joined.missing):,}",
            f"{len(listed.names):,}",
            files,
            listed.names[int(joined.missing[0])].as_py(),
        )
    members = joined.targets == 1
    twice = np.flatnonzero(members.sum(axis=1) > 1)
    if len(twice):
        both = [listed.labels[i] for i in np.flatnonzero(members[twice[0]])]
        raise DataError(f"{files}: {listing.path(int(twice[0]))} is in {' and '.join(both)}.", "keep one of them.")
    meaning = split_names(listed.labels, word, config.split_names)
    names = _all_splits(names, list(meaning.values()))
    number = np.array([names.index(meaning[name]) if meaning[name] else -1 for name in listed.labels])
    return names, np.where(members.any(axis=1), number[members.argmax(axis=1)], -1)


def _by_folders(config: PackConfig, listing: Listing, names: tuple[str, ...]) -> tuple[tuple[str, ...], Array]:
    """The splits that the folders of the images are named after. Raises DataError if none is."""
    folders = pc.replace_substring_regex(listing.paths, "[^/]*$", b"").dictionary_encode()
    splits = [split_of_name(folder.decode("utf-8", "replace")) for folder in folders.dictionary.to_pylist()]
    if not any(splits):
        raise DataError(f"no folder in {config.images} is called like a split.", "give files that list the images.")
    names = _all_splits(names, [name for name in splits if name])
    number = np.array([names.index(name) if name else -1 for name in splits])
    logger.info("splits from the names of folders: %s", ", ".join(sorted({name for name in splits if name})))
    return names, number[folders.indices.to_numpy()]


def folder_splits(listing: Listing) -> set[str]:
    """The splits that folders of images are named after."""
    folders = pc.unique(pc.replace_substring_regex(listing.paths, "[^/]*$", b"")).to_pylist()
    return {name for folder in folders if (name := split_of_name(folder.decode("utf-8", "replace"))) is not None}


def _split_column(table: Table) -> str | None:
    """The column of a table that says the split of each image; None where each split has a column of 0 and 1."""
    if not is_table(table.file) or not table.has_header:
        return None
    names = [name.strip().lower() for name in table.columns]
    named = next((name for name in _COLUMNS if name in names), None)
    if named is not None:
        return table.columns[names.index(named)]
    if len(names) == 2:
        profile = profiles_of(table)[1]
        is_split = any(word in names[1] for word in ("train", "val", "test"))
        return table.columns[1] if not profile.is_binary(False) or is_split else None
    return None


def _all_splits(names: tuple[str, ...], splits_given: Sequence[str]) -> tuple[str, ...]:
    wrong = [name for name in splits_given if name and not is_split_name(name)]
    if wrong:
        raise DataError(
            f"a split is named {wrong[0]!r}.", f"name it by one lower-case word: --split-names '{wrong[0]}=train'."
        )
    return (*names, *(name for name in dict.fromkeys(splits_given) if name and name not in names))


def _earlier_test(folder: Location, listing: Listing, number: int) -> Array:
    """The fixed splits (N,): `number` for the test images of earlier shards, else -1; warns if some are gone."""
    import pyarrow as pa

    index = shards.read_index(folder)
    shards.check_splits(folder, index, "test")
    files = shards.read_table(folder, ["file"], shards.rows_of_split("test")).column("file").combine_chunks()
    files = files.cast(pa.large_binary())
    again = pc.is_in(listing.paths, value_set=files).to_numpy(zero_copy_only=False)
    lost = len(files) - int(again.sum())
    if lost:
        logger.warning("%s of the %s test images of %s are no longer there", f"{lost:,}", f"{len(files):,}", folder)
    return np.where(again, number, -1)
