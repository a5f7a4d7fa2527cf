from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlic.data.annotations.options import LabelOptions
from mlic.data.annotations.read import read_annotations
from mlic.data.image_labels import Annotations, Builder
from mlic.data.label_join import Joined, as_paths, check_names
from mlic.data.label_join import join as join_columns
from mlic.errors import DataError

PATHS = ["im1.jpg", "im2.jpg", "im12.jpg", "sub/cat 3.png"]


def join(annotations: Annotations, paths: list[str]) -> Joined:
    return join_columns(annotations, as_paths(paths))


def lists(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    return folder


def test_bare_numbers_name_images_by_number_not_by_position(tmp_path: Path) -> None:
    annotations = read_annotations(lists(tmp_path, bird="12\n", baby="1\r\n12\r\n\r\n"))
    assert annotations.labels == ("baby", "bird")
    joined = join(annotations, PATHS)
    assert joined.targets.tolist() == [[1, 0], [0, 0], [1, 1], [0, 0]]
    assert joined.annotated.tolist() == [True, False, True, False]
    assert joined.missing.tolist() == []


@pytest.mark.parametrize("name", ["sub/cat 3.png", "sub/cat 3", "cat 3.png", "cat 3", "./sub/cat 3.png"])
def test_ways_to_name_an_image(tmp_path: Path, name: str) -> None:
    assert join(read_annotations(lists(tmp_path, a=name + "\n")), PATHS).targets[:, 0].tolist() == [0, 0, 0, 1]


def test_the_more_definite_name_wins(tmp_path: Path) -> None:
    annotations = read_annotations(lists(tmp_path, a="im1\n", b="sub/im1\n"))
    assert join(annotations, ["im1.jpg", "sub/im1.jpg"]).targets.tolist() == [[1, 0], [0, 1]]


def test_names_of_no_image_are_counted(tmp_path: Path) -> None:
    annotations = read_annotations(lists(tmp_path, a="1\n99\n98\n"))
    joined = join(annotations, PATHS)
    assert joined.targets[:, 0].tolist() == [1, 0, 0, 0]
    assert annotations.names.take(joined.missing).to_pylist() == ["99", "98"]


@pytest.mark.parametrize(
    ("name", "paths", "rule"),
    [
        ("IM1.jpg", ["im1.jpg"], "upper and lower case"),
        (r"C:\x\img\im1.jpg", ["im1.jpg"], "folders in front left out"),
        (r"sub\im1.jpg", ["sub/im1.jpg", "im1.jpg"], r"\ read as /"),
        ("https://example.org/img/im1.jpg", ["im1.jpg"], "folders in front left out"),
        ("../../sub/im1.jpg", ["sub/im1.jpg", "other/im1.jpg"], "folders in front left out"),
        ("M\u00fcller.jpg", ["Mu\u0308ller.jpg"], "Unicode normalised"),
        ("a%20b.jpg", ["a b.jpg"], "%XX decoded"),
        ("7.0", ["im7.jpg"], ".0 left out"),
        ("im1.png", ["im1.jpg"], "another extension"),
        ("upload/1/0a1b2c3d-im1.jpg", ["im1.jpg"], "prefix of an upload left out"),
    ],
)
def test_rules_for_names_that_no_exact_form_explains(tmp_path: Path, name: str, paths: list[str], rule: str) -> None:
    (tmp_path / "l.csv").write_text(f"image,a\n{name},1\nnothing.jpg,0\n", encoding="utf-8")
    annotations = read_annotations(tmp_path / "l.csv")
    joined = join(annotations, [*paths, "spare.jpg"])
    assert joined.targets[:, 0].tolist() == [1] + [0] * len(paths)
    assert joined.rules == {rule: 1}
    assert annotations.names.take(joined.missing).to_pylist() == ["nothing.jpg"]


def test_a_rule_gives_no_image_twice(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,dog\nim1.jpg,1\nim1.png,0\n")
    joined = join(read_annotations(tmp_path / "l.csv"), ["im1.jpg", "im2.jpg"])
    assert (joined.targets.tolist(), joined.missing.tolist()) == ([[1], [0]], [1])
    (tmp_path / "l.csv").write_text("image,dog\na/im1.jpg,1\nb/im1.jpg,0\n")
    with pytest.raises(DataError, match="'a/im1.jpg' and 'b/im1.jpg' both seem to mean the image im1.jpg"):
        join(read_annotations(tmp_path / "l.csv"), ["im1.jpg", "im2.jpg"])


def test_a_bad_line_among_numbers_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt:2: 'l2' is neither a number nor the name of an image"):
        join(read_annotations(lists(tmp_path, a="1\nl2\n12\n")), PATHS)


@pytest.mark.parametrize(
    ("text", "error"),
    [(b"1\n\x81\xfe\n", "a.txt:2: not UTF-8"), (b"1\n2\x00\n", "a.txt:2: a NUL byte"), (b"1\t2\n", "a.txt:1: '1.t2'")],
)
def test_lines_that_are_no_text(tmp_path: Path, text: bytes, error: str) -> None:
    (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(DataError, match=error):
        read_annotations(tmp_path)


def test_a_name_of_two_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt:1: '1' could mean x/a1.jpg or x/b1.jpg"):
        join(read_annotations(lists(tmp_path, a="1\n")), ["x/a1.jpg", "x/b1.jpg"])
    with pytest.raises(DataError, match="'a1.jpg' could mean x/a1.jpg or y/a1.jpg"):
        join(read_annotations(lists(tmp_path, a="a1.jpg\n")), ["x/a1.jpg", "y/a1.jpg"])


def test_labels_of_another_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 2 annotated images is among the 4 images"):
        join(read_annotations(lists(tmp_path, a="77\n78\n")), PATHS)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot tell the format of the labels"):
        read_annotations(tmp_path)
    with pytest.raises(DataError, match="do not exist"):
        read_annotations(tmp_path / "nowhere")
    with pytest.raises(DataError, match="are all empty"):
        read_annotations(lists(tmp_path, a="\n"))


def test_wide_table(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image_name,dog,ant\nim1.jpg,1,0\nim2.jpg,-1,1.0\nim12.jpg,0,\n")
    annotations = read_annotations(tmp_path / "l.csv")
    assert annotations.labels == ("dog", "ant")
    joined = join(annotations, PATHS)
    assert joined.targets.tolist() == [[1, 0], [-1, 1], [0, 0], [0, 0]]
    assert joined.annotated.tolist() == [True, True, True, False]


def test_wide_table_by_tabs_and_semicolons(tmp_path: Path) -> None:
    (tmp_path / "l.tsv").write_text("Filename\tdog\tant\n1\t1.0\t0.0\n")
    (tmp_path / "l.csv").write_text("\ufeffid;dog;ant\n1;1;0\n", encoding="utf-8")
    for name in ("l.tsv", "l.csv"):
        assert join(read_annotations(tmp_path / name), PATHS).targets[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("cell", "labels"),
    [("dog;ant", ("ant", "dog")), ("fire dog|ant", ("ant", "fire dog")), ("dog, ant", ("ant", "dog"))],
)
def test_delimited_table(tmp_path: Path, cell: str, labels: tuple[str, ...]) -> None:
    (tmp_path / "l.csv").write_text(f'image,labels\nim1.jpg,"{cell}"\nim2.jpg,\n')
    annotations = read_annotations(tmp_path)
    assert annotations.labels == labels
    assert join(annotations, PATHS).targets.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("image,dog\nim1.jpg,1\nim2.jpg\n", "l.csv:3: 1 columns where the first line has 2"),
        ("image,dog,ant\nim2.jpg,0,1\nim1.jpg,1,2\n", "l.csv:3: '2' for the label 'ant' is not 1, 0 or -1"),
        ("image,dog,dog\nim1.jpg,1,1\n", "l.csv:1: the label 'dog' stands twice"),
        ("image,dog\nim1.jpg,1\nim1.jpg,0\n", "l.csv:3: the image 'im1.jpg' has several rows, which differ in 'dog'"),
        ("image,dog\n,1\n", "l.csv:2: the image is not named"),
        ("image,dog\n", "holds a header and nothing else"),
        ("image\nim1.jpg\n", "l.csv:1: a header"),
        ("1,0,1\n2,0,0\n", "l.csv has 2 columns of labels without names"),
    ],
)
def test_malformed_tables(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=error):
        read_annotations(tmp_path / "l.csv")


def test_lines_that_contradict_each_other(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,dog\nim1.jpg,1\nim1,-1\nim2.jpg,0\n")
    with pytest.raises(DataError, match=r"says -1 for 'dog', and another line .* says 1"):
        join(read_annotations(tmp_path / "l.csv"), PATHS)


@given(st.permutations(range(30)), st.sets(st.integers(0, 29), min_size=1))
def test_join_does_not_depend_on_the_order_of_files(order: list[int], positive: set[int]) -> None:
    found = Builder()
    for number in positive:
        found.image(str(number), "x", 1)
        found.mark(0, 1)
    annotations = found.build(("a",), "", bare_numbers=True)
    paths = [f"im{number}.jpg" for number in order]
    targets = join(annotations, paths).targets[:, 0]
    assert {number for number, value in zip(order, targets, strict=True) if value} == positive


@pytest.mark.parametrize("name", ["key", "Filename", "cat_score", " ", "a\nb", "\udcff", ""])
def test_names_that_prediction_files_cannot_hold(name: str) -> None:
    with pytest.raises(DataError, match="cannot be the name of a label"):
        check_names(["cat", name])
    check_names(["cat", "hot dog", "ünï", "<b>"])


def test_spaces_part_labels_only_where_words_come_again(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("image,labels\na.jpg,dog ant\nb.jpg,ant\nc.jpg,dog\n")
    assert read_annotations(path).labels == ("ant", "dog")
    path.write_text("image,label\na.jpg,hot dog\nb.jpg,ice cream\n")
    assert read_annotations(path).labels == ("hot dog", "ice cream")
    path.write_text("image,labels\na.jpg,hot dog\nb.jpg,ice cream\n")
    with pytest.raises(DataError, match="it cannot be told whether 'hot dog' in 'labels' is one label or several"):
        read_annotations(path)
    assert read_annotations(path, LabelOptions(delimiter="none")).labels == ("hot dog", "ice cream")


def test_a_quoted_tab_is_no_delimiter(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('image,"big\tdog",cat\nim1.jpg,1,0\n')
    assert read_annotations(tmp_path / "l.csv").labels == ("big\tdog", "cat")


def test_the_fingerprint_follows_what_is_said_and_not_the_order_of_lines(tmp_path: Path) -> None:
    found = []
    for text in ("1\n2\n", "2\n1\n", "1\n", "1\n3\n"):
        found.append(read_annotations(lists(tmp_path, a=text, b="1\n")).fingerprint())
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_columns_that_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("image,dog,split,patient\na.jpg,1,train,p1\nb.jpg,0,val,p2\n")
    annotations = read_annotations(path, LabelOptions(split_column="split", group_column="patient"))
    assert annotations.labels == ("dog",)
    assert annotations.columns["split"].to_pylist() == ["train", "val"]
    assert annotations.columns["group"].to_pylist() == ["p1", "p2"]
    with pytest.raises(DataError, match="no column 'fold'"):
        read_annotations(path, LabelOptions(split_column="fold"))
    (tmp_path / "l.jsonl").write_text('{"image": "a.jpg", "labels": ["dog"], "set": "val"}\n')
    annotations = read_annotations(tmp_path / "l.jsonl", LabelOptions(split_column="set"))
    assert annotations.columns["split"].to_pylist() == ["val"]
    path.unlink()
    with pytest.raises(DataError, match="lists labels have no columns"):
        read_annotations(lists(tmp_path, a="1\n"), LabelOptions(split_column="set"))


def test_tables_beside_lists_are_named(tmp_path: Path) -> None:
    (tmp_path / "more.csv").touch()
    assert "passed over more.csv" in read_annotations(lists(tmp_path, a="1\n")).source


@pytest.mark.parametrize(
    ("names", "paths", "missing"),
    [
        (["p1/s1/a.jpg", "p1/s2/b.jpg", "p1/s9/c.jpg"], ["p1/s1/a.jpg", "p1/s2/b.jpg", "p1/s3/c.jpg"], 1),
        (["x/S1/a.jpg", "x/S2/b.jpg", "x/S9/c.jpg"], ["s1/a.jpg", "s2/b.jpg", "s3/c.jpg"], 1),
        (["s1/a.jpg", "s2/b.jpg", "s9/c.jpg"], ["all/s1/a.jpg", "all/s2/b.jpg", "all/s3/c.jpg"], 1),
        (["cam1/a.jpg", "cam2/b.jpg"], ["all/a.jpg", "all/b.jpg"], 0),
        (["s1/a.jpg", "s9/c.jpg"], ["a.jpg", "c.jpg"], 0),
    ],
)
def test_folders_that_tell_images_apart(tmp_path: Path, names: list[str], paths: list[str], missing: int) -> None:
    """An image of another folder is another image, unless the folders were changed as a whole."""
    joined = join(read_annotations(lists(tmp_path, a="\n".join(names) + "\n")), paths)
    assert len(joined.missing) == missing
    assert joined.annotated.tolist() == [True] * (len(paths) - missing) + [False] * missing
