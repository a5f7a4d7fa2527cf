"""Images in the cells of Parquet files."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mlic.config.data import PackConfig
from mlic.data import storage
from mlic.data.sources import parquet_images
from mlic.data.sources.image_listing import Listing
from mlic.data.sources.image_sources import list_images
from mlic.errors import ClusterError, DataError
from mlic.pack.inputs import find

LABELS = ("cat", "dog")


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 16), (shade, 90, 90)).save(out, "JPEG")
    return out.getvalue()


def marks(number: int) -> list[int]:
    return [[0], [0, 1], [1], []][number % 4]


def write(file: Path, numbers: range, named: bool = True, classes: tuple[str, ...] = LABELS) -> None:
    """A file as Hugging Face's `datasets` writes it, in small groups of rows."""
    rows = [
        {
            "image": {"bytes": jpeg(i), "path": f"p{i:02d}.jpg" if named else None},
            "labels": marks(i),
        }
        for i in numbers
    ]
    feature = {"labels": {"feature": {"names": classes, "_type": "ClassLabel"}, "_type": "Sequence"}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": feature}})}
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=3)


def read_all(listing: Listing) -> dict[str, bytes]:
    with listing.opened() as read:
        return {listing.path(i): read(i) for i in range(len(listing))}


def targets_of(images: Path, labels: Path) -> dict[str, list[int]]:
    found = find(PackConfig(images=images, labels=labels))
    assert found.labels == LABELS
    return {found.listing.path(i): found.targets[i].tolist() for i in range(len(found.targets))}


def expected(number: int) -> list[int]:
    return [int(label in marks(number)) for label in (0, 1)]


def test_images_and_labels_of_one_file(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", range(16))
    assert read_all(list_images(tmp_path / "train.parquet")) == {f"p{i:02d}.jpg": jpeg(i) for i in range(16)}
    targets = targets_of(tmp_path / "train.parquet", tmp_path / "train.parquet")
    assert targets == {f"p{i:02d}.jpg": expected(i) for i in range(16)}


def test_images_without_names_are_called_by_their_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(5), named=False)
    named = {f"a/{i:06d}": i for i in range(5)}
    assert read_all(list_images(tmp_path / "a.parquet")) == {name: jpeg(i) for name, i in named.items()}
    targets = targets_of(tmp_path / "a.parquet", tmp_path / "a.parquet")
    assert targets == {name: expected(i) for name, i in named.items()}


def test_a_column_of_bytes_alone(tmp_path: Path) -> None:
    table = pa.table({"label": ["cat", "dog"], "jpg": [jpeg(1), jpeg(2)], "digest": [b"ab", b"cd"]})
    pq.write_table(table, tmp_path / "b.parquet")
    assert parquet_images.column_of_images(tmp_path / "b.parquet") == "jpg"
    assert list(read_all(list_images(tmp_path / "b.parquet")).values()) == [jpeg(1), jpeg(2)]
    assert targets_of(tmp_path / "b.parquet", tmp_path / "b.parquet") == {"b/000000": [1, 0], "b/000001": [0, 1]}


@pytest.mark.parametrize("below", ["", "data/"])
def test_the_parts_of_a_data_set_keep_their_splits(tmp_path: Path, below: str) -> None:
    for part, numbers in {
        "train-00000-of-00002": range(8),
        "train-00001-of-00002": range(8, 12),
        "validation-00000-of-00001": range(12, 16),
    }.items():
        write(tmp_path / "set" / below / f"{part}.parquet", numbers)
    found = find(PackConfig(images=tmp_path / "set", labels=tmp_path / "set"))
    names = [found.listing.path(i) for i in range(len(found.targets))]
    assert names == [f"p{i:02d}.jpg" for i in range(16)]
    assert found.targets.tolist() == [expected(i) for i in range(16)]
    assert [found.splits[i] for i in found.fixed] == ["train"] * 12 + ["val"] * 4


def test_parts_with_the_same_names_keep_their_own_labels(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", range(4))
    table = pq.read_table(tmp_path / "train-0.parquet")
    rows = table.to_pylist()
    for i, row in enumerate(rows):
        row["labels"], row["image"]["bytes"] = marks(i + 1), jpeg(100 + i)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "train-1.parquet")
    targets = targets_of(tmp_path, tmp_path)
    assert targets == {f"train-{part}/p{i:02d}.jpg": expected(i + part) for part in (0, 1) for i in range(4)}


def test_files_of_the_same_name_in_folders_keep_their_own_labels_and_splits(tmp_path: Path) -> None:
    """The layout of Hugging Face's own conversion to Parquet."""
    write(tmp_path / "set" / "default" / "train" / "0000.parquet", range(4), named=False)
    write(tmp_path / "set" / "default" / "test" / "0000.parquet", range(1, 4), named=False)
    found = find(PackConfig(images=tmp_path / "set", labels=tmp_path / "set"))
    targets = {found.listing.path(i): found.targets[i].tolist() for i in range(len(found.targets))}
    assert targets == {
        **{f"default/train/0000/{i:06d}": expected(i) for i in range(4)},
        **{f"default/test/0000/{i:06d}": expected(i + 1) for i in range(3)},
    }
    splits = {found.splits[i] for i, path in zip(found.fixed, targets, strict=True) if "test" in path}
    assert splits == {"test"}


def test_hidden_folders_are_read_for_neither_images_nor_labels(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", range(4))
    write(tmp_path / "set" / ".old" / "a.parquet", range(1, 5))
    (tmp_path / "set" / "README.txt").write_text("about cats\n")
    (tmp_path / "set" / "dataset_infos.json").write_text("{}")
    assert targets_of(tmp_path / "set", tmp_path / "set") == {f"p{i:02d}.jpg": expected(i) for i in range(4)}


def test_parts_whose_classes_are_in_another_order_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", range(4))
    write(tmp_path / "set" / "test.parquet", range(4, 8), classes=("dog", "cat"))
    with pytest.raises(DataError, match="has other names of classes than"):
        find(PackConfig(images=tmp_path / "set", labels=tmp_path / "set"))


def test_names_that_lead_out_of_a_folder_are_names_all_the_same(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": jpeg(i), "path": path}, "label": "cat"}
        for i, path in enumerate(["/data/a.jpg", "../b.jpg", "C:\\x\\c.jpg", "./d//e.jpg"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = read_all(list_images(tmp_path / "a.parquet"))
    assert read == {"data/a.jpg": jpeg(0), "b.jpg": jpeg(1), "C:/x/c.jpg": jpeg(2), "d/e.jpg": jpeg(3)}


def test_a_label_of_minus_one_is_not_known(tmp_path: Path) -> None:
    feature = {"label": {"names": LABELS, "_type": "ClassLabel"}}
    table = pa.Table.from_pylist(
        [{"image": {"bytes": jpeg(i), "path": f"{i}.jpg"}, "label": i % 3 - 1} for i in range(6)]
    )
    about = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "a.parquet")
    targets = targets_of(tmp_path / "a.parquet", tmp_path / "a.parquet")
    assert targets == {"1.jpg": [1, 0], "2.jpg": [0, 1], "4.jpg": [1, 0], "5.jpg": [0, 1]}  # the others are left out


@pytest.mark.parametrize("kind", ["dictionary", "large", "null first"])
def test_bytes_of_other_types(tmp_path: Path, kind: str) -> None:
    cells = pa.array([None if kind == "null first" else jpeg(0), jpeg(1), jpeg(2)], pa.binary())
    column = {"dictionary": cells.dictionary_encode, "large": lambda: cells.cast(pa.large_binary())}
    pq.write_table(pa.table({"image": column.get(kind, lambda: cells)()}), tmp_path / "a.parquet")
    read = list(read_all(list_images(tmp_path / "a.parquet")).values())
    assert read == [b"" if kind == "null first" else jpeg(0), jpeg(1), jpeg(2)]


def test_sounds_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(jpeg(3))
    rows = [{"audio": {"bytes": b"RIFF....WAVE", "path": "x.wav"}, "image": "x.jpg"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_all(list_images(tmp_path / "a.parquet")) == {"x.jpg": jpeg(3)}


def test_a_file_rewritten_with_the_same_sizes_is_another_one(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(4))
    first = list_images(tmp_path / "a.parquet").fingerprint()
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    assert list_images(tmp_path / "a.parquet").fingerprint() != first


def test_archives_beside_loose_images_are_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "set" / "a.parquet", range(4))
    (tmp_path / "set" / "cover.jpg").write_bytes(jpeg(9))
    assert len(list_images(tmp_path / "set")) == 1
    assert "holds loose images, such as cover.jpg: its 1 archives, such as a.parquet, are left out" in caplog.text


def test_a_cell_without_an_image_is_a_bad_image(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": jpeg(1), "path": "a.jpg"}},
        {"image": {"bytes": None, "path": "b.jpg"}},
        {"image": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    read = read_all(list_images(tmp_path / "c.parquet"))
    assert read == {"c/000000": jpeg(1), "c/000001": b"", "c/000002": b""}


def test_a_node_unpacks_a_file_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    write(tmp_path / "a.parquet", range(5))
    listing = list_images(tmp_path / "a.parquet")
    file = parquet_images.unpacked(tmp_path / "a.parquet")
    before = file.stat().st_ino
    assert read_all(listing) == {f"p{i:02d}.jpg": jpeg(i) for i in range(5)}
    assert file.stat().st_ino == before
    file.unlink()  # another process has made room
    assert read_all(listing) == {f"p{i:02d}.jpg": jpeg(i) for i in range(5)}
    write(tmp_path / "a.parquet", range(5, 9))
    assert list(read_all(list_images(tmp_path / "a.parquet")).values()) == [jpeg(i) for i in range(5, 9)]


def test_a_node_without_room_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", range(5))
    monkeypatch.setenv("MLIC_CACHE_DIR", str(tmp_path / "node"))
    monkeypatch.setattr(storage, "KEEP_FREE", 2**62)
    with pytest.raises(ClusterError, match="no room for") as caught:
        list_images(tmp_path / "a.parquet")
    assert str(tmp_path / "node") in caught.value.message


def test_a_list_of_paths_is_still_one(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(jpeg(3))
    pq.write_table(pa.table({"path": ["x.jpg"], "label": ["cat"]}), tmp_path / "list.parquet")
    assert read_all(list_images(tmp_path / "list.parquet")) == {"x.jpg": jpeg(3)}


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(DataError, match=r"a\.parquet is not valid Parquet"):
        list_images(tmp_path / "a.parquet")


def test_numbers_are_not_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": np.arange(3)}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match="holds int64, not paths"):
        list_images(tmp_path / "n.parquet")
