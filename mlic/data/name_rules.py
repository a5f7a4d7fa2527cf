"""Which image each name of a label file means: by exact forms of its path first, then by rules that are counted."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.errors import DataError

Array = np.ndarray[Any, Any]

_EXTENSION = r"\.[^./]*$"
_IMAGE_EXTENSION = r"(?i)\.(jpe?g|jfif|jpe|png|webp|bmp|tiff?|gif|avif|heic|heif|jp2)$"
_NUMBERS_IN_STEM = 5  # numbers before the last one that are compared too
_DEEPEST = 12  # folders that are taken off a name at most
EXACT, BY_NUMBER = "name", "number in the name"
_ABOVE = "folders above those named left out"
_FOLDERS = "folders in front left out"
# Rules for names that no exact form explains, in their order; each is tried on top of those before it.
RULES = (
    "\\ read as /",
    "Unicode normalised",
    "%XX decoded",
    _ABOVE,
    _FOLDERS,
    ".0 left out",
    "prefix of an upload left out",
    "another extension",
    "upper and lower case",
)


@dataclass(frozen=True)
class Names:
    """M names in label files, and how an error calls them: `where` says in which file and line each stands.

    With `may_share`, several names may mean one image, as in folders of labels. With `in_folders`, a name with folders
    is never an image in other folders.
    """

    names: pa.Array
    where: Callable[[int], str]
    may_share: bool = False
    in_folders: bool = False


@dataclass(frozen=True)
class Matches:
    """The image (M,) that each name means, -1 for none, and how many names each rule explains."""

    image: Array
    rules: dict[str, int]


def match(asked: Names, paths: pa.Array) -> Matches:
    """Find the image of each name among `paths` (N,), which are bytes.

    The exact forms are, in this order: relative path, path without extension, file name, file name without extension,
    bare number ("12" is im12.jpg). Then the rules follow. A rule never gives an image that a stricter one has
    explained. Raises DataError when a name could mean two images, or when a rule gives two names one image.
    """
    names = asked.names
    if pc.any(pc.starts_with(names, "./")).as_py():
        names = pc.replace_substring_regex(names, r"^\./", "")
    image = np.full(len(names), -1, dtype=np.int64)
    binary = names.cast(pa.large_binary())
    for column in _forms(paths):
        if (image >= 0).all():
            break
        open_ = np.flatnonzero(image < 0)
        image[open_] = _look_up(asked, open_, binary.take(pa.array(open_)), column, paths)
    rules = {EXACT: int((image >= 0).sum())}
    open_ = np.flatnonzero((image < 0) & are_numbers(asked.names))
    if len(open_):
        image[open_] = _by_number(asked, open_, asked.names.take(pa.array(open_)), as_text(stems(paths)), paths)
        rules[BY_NUMBER] = int((image[open_] >= 0).sum())
    if (image < 0).any():
        rules |= _by_rules(asked, names, paths, image)
    return Matches(image, {rule: count for rule, count in rules.items() if count})


def _forms(paths: pa.Array) -> Iterator[pa.Array]:
    """The forms of paths that names are compared with, the most specific first."""
    yield paths
    yield without_extension(paths)
    yield file_names(paths)
    yield stems(paths)


def _by_rules(asked: Names, names: pa.Array, paths: pa.Array, image: Array) -> dict[str, int]:
    """Apply the rules to the names that are left, in place; returns how many names each explains."""
    open_, column = np.flatnonzero(image < 0), as_text(paths)
    left, counts, by_tail = names.take(pa.array(open_)), dict[str, int](), False
    for rule in RULES:
        changed, new_column = _changed(rule, left, column)
        if rule == _FOLDERS:
            if asked.in_folders:
                continue
            by_tail = True
        elif rule != _ABOVE and changed.equals(left) and new_column is column:
            continue
        column = new_column
        if rule == _ABOVE:
            hits = _ends(asked, open_, changed, column)
        else:
            hits = _tails(asked, open_, changed, column, by_tail)
        if by_tail:
            hits = _of_the_same_split(changed, hits, column)
            hits = _of_the_same_folders(names, image, changed, hits, column)
        counts[rule] = _take(asked, image, open_, hits, paths)
        still = image[open_] < 0
        open_, left = open_[still], changed.filter(pa.array(still))
        if not len(open_):
            break
    return counts


def _changed(rule: str, names: pa.Array, column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Names and paths as a rule writes them."""
    if rule == "\\ read as /":
        return pc.replace_substring(names, "\\", "/"), column
    if rule == "Unicode normalised":
        if pc.all(pc.string_is_ascii(names)).as_py() or pc.all(pc.string_is_ascii(column)).as_py():
            return names, column
        return pc.utf8_normalize(names, "NFC"), pc.utf8_normalize(column, "NFC")
    if rule == "%XX decoded":
        names = pc.replace_substring_regex(names, r"(://[^?#]*)[?#].*$", r"\1")  # the query of a URL is no name
        if not pc.any(pc.match_substring(names, "%")).as_py():
            return names, column
        return pa.array([urllib.parse.unquote(name) for name in names.to_pylist()], pa.large_string()), column
    if rule == ".0 left out":
        return pc.replace_substring_regex(names, r"^([0-9]+)\.0$", r"\1"), column
    if rule == "prefix of an upload left out":  # Label Studio's; digits alone in all names are dates
        if not pc.any(pc.match_substring_regex(names, r"(^|/)[0-9]{0,7}[a-f][0-9a-f]*-[^/]+$")).as_py():
            return names, column
        return pc.replace_substring_regex(names, r"(^|/)[0-9a-f]{8}-([^/]+)$", r"\1\2"), column
    if rule == "another extension":
        return pc.replace_substring_regex(names, _IMAGE_EXTENSION, ""), column
    if rule == "upper and lower case":
        return pc.utf8_lower(names), pc.utf8_lower(column)
    return names, column


def _ends(asked: Names, open_: Array, names: pa.Array, column: pa.Array) -> Array:
    """The image whose path ends in each open name that has folders, with or without the extension."""
    hits = np.full(len(open_), -1, dtype=np.int64)
    depths = pc.count_substring(names, "/").fill_null(0).to_numpy()
    for depth in range(1, min(int(depths.max(initial=0)), _DEEPEST) + 1):
        rows = np.flatnonzero(depths == depth)
        if len(rows):
            ends = last_parts(column, depth)
            for form in (None, without_extension, numbered):
                left = rows[hits[rows] < 0]
                if len(left):
                    form_of_ends = ends if form is None else form(ends)
                    hits[left] = _look_up(asked, open_[left], names.take(pa.array(left)), form_of_ends, column)
    return hits


def last_parts(paths: pa.Array, depth: int) -> pa.Array:
    """File names with `depth` folders above them; null for paths with fewer folders."""
    ends = pc.extract_regex(paths, rf"(?s)(?:^|/)(?P<end>(?:[^/]+/){{{depth}}}[^/]+)$")
    return pc.struct_field(ends, [0])


def numbered(paths: pa.Array) -> pa.Array:
    """Paths with nothing but the number at the end of the file's stem behind the last folder, null without one."""
    numbers = as_numbers(stems(paths)).cast(pa.large_string())
    folders = pc.replace_substring_regex(paths, r"[^/]*$", "")
    return pc.binary_join_element_wise(folders, numbers, pa.scalar("", pa.large_string()))


def _tails(asked: Names, open_: Array, names: pa.Array, column: pa.Array, by_tail: bool) -> Array:
    """The image of each open name, or of the longest part of its end that is one image."""
    hits = np.full(len(open_), -1, dtype=np.int64)
    forms = list(_forms(column))
    for _ in range(_DEEPEST if by_tail else 1):
        for form in forms:
            left = np.flatnonzero(hits < 0)
            if not len(left):
                return hits
            hits[left] = _look_up(asked, open_[left], names.take(pa.array(left)), form, column)
        left = np.flatnonzero((hits < 0) & are_numbers(names))
        if len(left):
            hits[left] = _by_number(asked, open_[left], names.take(pa.array(left)), forms[-1], column)
        shorter = pc.replace_substring_regex(names, r"^[^/]*/", "")
        if shorter.equals(names):
            return hits
        names = shorter
    return hits


def _of_the_same_split(names: pa.Array, hits: Array, column: pa.Array) -> Array:
    """The images of names, without those whose folders are another split's: val/1.jpg is not train/1.jpg."""
    rows = np.flatnonzero(hits >= 0)
    of_name = _split_folder(names.take(pa.array(rows)))
    of_image = _split_folder(column.take(pa.array(hits[rows])))
    hits[rows[pc.not_equal(of_name, of_image).fill_null(False).to_numpy(zero_copy_only=False)]] = -1
    return hits


def _split_folder(paths: pa.Array) -> pa.Array:
    """The first folder of each path that is called like a split, null if none is."""
    found = pc.extract_regex(pc.utf8_lower(paths), r"(?:^|/)(?P<split>train|val|test)(?:id|idation|ing)?[^/a-z]*/")
    return pc.struct_field(found, 0)


def _of_the_same_folders(names: pa.Array, image: Array, left: pa.Array, hits: Array, column: pa.Array) -> Array:
    """The images of the names that are `left`, without those in other folders, where folders tell images apart.

    They do if most names that have images agree with the images' folders: p1/s9/a.jpg is then not p1/s1/a.jpg. `image`
    are the images of all `names` so far.
    """
    known, rows = np.flatnonzero(image >= 0), np.flatnonzero(hits >= 0)
    before = _agreement(names.take(pa.array(known)), column.take(pa.array(image[known])))
    now = _agreement(left.take(pa.array(rows)), column.take(pa.array(hits[rows])))
    agreeing, differing = (int((before == value).sum() + (now == value).sum()) for value in (1, -1))
    if agreeing > differing:
        hits[rows[now == -1]] = -1
    return hits


def _agreement(names: pa.Array, paths: pa.Array) -> Array:
    """Whether the folders of each name and path agree: 1 if the end of one is the other, -1 if not, 0 without one."""
    plain = (pc.utf8_lower(pc.replace_substring(column, "\\", "/")) for column in (names, paths))
    folders = (pc.replace_substring_regex(column, r"[^/]*$", "").to_pylist() for column in plain)
    values: dict[tuple[str, str], int] = {}
    return np.array([values.setdefault(pair, _fitting(*pair)) for pair in zip(*folders, strict=True)], np.int64)


def _fitting(one: str, two: str) -> int:
    if not one.strip("/") or not two.strip("/"):
        return 0
    short, long = sorted((f"/{one.strip('/')}", f"/{two.strip('/')}"), key=len)
    return 1 if long.endswith(short) else -1


def _take(asked: Names, image: Array, open_: Array, hits: Array, paths: pa.Array) -> int:
    """Give the open names the images that a rule found, in place; returns for how many."""
    good = hits >= 0
    if not asked.may_share:
        taken = np.zeros(len(paths), bool)
        taken[image[image >= 0]] = True
        good &= ~taken[hits]
        unique, counts = np.unique(hits[good], return_counts=True)
        if (counts > 1).any():
            twice = open_[good & (hits == unique[counts > 1][0])][:2]
            one, two = (asked.names[int(i)].as_py() for i in twice)
            raise DataError(
                f"{asked.where(int(twice[1]))}: {one!r} and {two!r} both seem to mean the image "
                f"{show(paths[int(unique[counts > 1][0])])}.",
                "give the folder above the images, in which the two names differ.",
            )
    image[open_[good]] = hits[good]
    return int(good.sum())


def _by_number(asked: Names, open_: Array, names: pa.Array, column: pa.Array, paths: pa.Array) -> Array:
    """The image of each bare number: that whose stem, of `column` (N,), has this number at its end.

    Raises DataError where stems have several numbers and another one of them explains all these names too.
    """
    numbers = as_numbers(names)
    hits = _look_up(asked, open_, numbers, as_numbers(column), paths)
    named = np.flatnonzero(hits >= 0)
    if not len(named):
        return hits
    asked_for = pc.unique(numbers.take(pa.array(named)))
    for before in range(_NUMBERS_IN_STEM):
        others = _inner_numbers(column, before)
        if others.null_count == len(others):
            break
        rows = pc.index_in(asked_for, value_set=others, skip_nulls=True)
        if rows.null_count:
            continue
        other = rows.take(pc.index_in(numbers.take(pa.array(named)), value_set=asked_for)).to_numpy()
        differing = np.flatnonzero(other != hits[named])
        if len(differing):
            at = int(named[differing[0]])
            last, inner = (show(paths[int(row)]) for row in (hits[at], other[differing[0]]))
            raise DataError(
                f"{asked.where(int(open_[at]))}: {names[at].as_py()!r} could mean {last} by the last number of its "
                f"name, or {inner} by another one.",
                "name the images by their file names.",
            )
    return hits


def _inner_numbers(stems: pa.Array, before: int) -> pa.Array:
    """The number (N,) in each stem that has `before` numbers in front of it, int64; null if it would be the last."""
    digits = pc.extract_regex(stems, rf"(?s)^[^0-9]*(?:[0-9]+[^0-9]+){{{before}}}(?P<digits>[0-9]+)[^0-9]+.*[0-9]$")
    return as_numbers(pc.struct_field(digits, [0]))


def _look_up(asked: Names, open_: Array, names: pa.Array, column: pa.Array, paths: pa.Array) -> Array:
    """The row of `column` (N,) that equals each of `names`; `open_` are the names' numbers. Null equals nothing."""
    if len(names) * 4 < len(column):
        return _look_up_few(asked, open_, names, column, paths)
    hit: Array = pc.index_in(names, value_set=column, skip_nulls=True).fill_null(-1).to_numpy().astype(np.int64)
    hits = np.flatnonzero(hit >= 0)
    if not len(hits) or column is paths or pc.count_distinct(column).as_py() == len(column) - column.null_count:
        return hit
    encoded = column.dictionary_encode()
    code = encoded.indices.fill_null(-1).to_numpy()
    count = np.bincount(code[code >= 0])
    twice = hits[count[code[hit[hits]]] > 1]
    if len(twice):
        raise _ambiguous(asked, int(open_[twice[0]]), np.flatnonzero(code == code[hit[twice[0]]]), paths)
    return hit


def _look_up_few(asked: Names, open_: Array, names: pa.Array, column: pa.Array, paths: pa.Array) -> Array:
    """As `_look_up`, for few names: the column is read once, and no table of it is made."""
    wanted = pc.unique(names.drop_null())
    place = pc.index_in(column, value_set=wanted, skip_nulls=True).fill_null(-1).to_numpy()
    rows = np.flatnonzero(place >= 0)
    count = np.bincount(place[rows], minlength=len(wanted))
    row_of = np.full(len(wanted) + 1, -1, np.int64)
    row_of[place[rows[::-1]]] = rows[::-1]
    of = pc.index_in(names, value_set=wanted, skip_nulls=True).fill_null(len(wanted)).to_numpy()
    if column is not paths:
        twice = np.flatnonzero(np.append(count, 0)[of] > 1)
        if len(twice):
            raise _ambiguous(asked, int(open_[twice[0]]), rows[place[rows] == of[twice[0]]], paths)
    found: Array = row_of[of]
    return found


def _ambiguous(asked: Names, number: int, rows: Array, paths: pa.Array) -> DataError:
    a, b = (show(paths[int(row)]) for row in rows[:2])
    return DataError(
        f"{asked.where(number)}: {asked.names[number].as_py()!r} could mean {a} or {b}.",
        "name the image by its path within the folder.",
    )


def file_names(paths: pa.Array) -> pa.Array:
    """Paths without their folders."""
    return pc.replace_substring_regex(paths, r"^.*/", "" if pa.types.is_large_string(paths.type) else b"")


def without_extension(paths: pa.Array) -> pa.Array:
    """Paths without the extensions of the files."""
    return pc.replace_substring_regex(paths, _EXTENSION, "" if pa.types.is_large_string(paths.type) else b"")


def stems(paths: pa.Array) -> pa.Array:
    """File names without their extensions."""
    return without_extension(file_names(paths))


def as_text(column: pa.Array) -> pa.Array:
    """Bytes as text; what is not UTF-8 becomes null, since no label file can name it."""
    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = [
            None if (text := value.decode("utf-8", "replace")).count("\ufffd") else text for value in column.to_pylist()
        ]
        return pa.array(texts, pa.large_string())


def are_numbers(names: pa.Array) -> Array:
    """Whether each name (M,) is a bare number."""
    numeric: Array = pc.match_substring_regex(names, r"^[0-9]+$").to_numpy(zero_copy_only=False)
    return numeric


def as_numbers(texts: pa.Array) -> pa.Array:
    """The number at the end of each text as int64, null where there is none or it is too long to be one."""
    digits = pc.struct_field(pc.extract_regex(texts, r"(?s)^.*?(?P<digits>[0-9]+)$"), [0])
    digits = pc.utf8_ltrim(digits, characters="0")
    short = pc.less_equal(pc.utf8_length(digits), 18)
    return pc.if_else(short, pc.if_else(pc.equal(digits, ""), "0", digits), None).cast(pa.int64())


def is_number(name: str) -> bool:
    """Whether a name is a bare image number."""
    return name.isascii() and name.isdigit()


def show(path: Any) -> str:
    """A path of a column of bytes or text, as text."""
    value = path.as_py()
    return value if isinstance(value, str) else str(value.decode("utf-8", "surrogateescape"))
