from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from mlic.data.pixels.images import BadImage
from mlic.data.sources import image_listing, image_sources
from mlic.errors import DataError

FILES = {"b.jpg": b"bee", "a.png": b"ay", "x/a.JPG": b"eks" * 500}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in {**FILES, "x/notes.txt": b"", ".hidden.jpg": b"", ".git/c.jpg": b""}.items():
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "photos" / name).write_bytes(data)
    return tmp_path / "photos"


def content(listing: image_listing.Listing) -> dict[str, bytes]:
    with image_listing.Reader(listing) as reader:
        found = {listing.path(i): reader.read(i) for i in range(len(listing))}
    assert [len(data) for data in found.values()] == listing.sizes.tolist()
    return found


def test_a_folder(folder: Path) -> None:
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    listing = image_sources.list_images(folder)
    rows = [(listing.key(i), listing.path(i), int(listing.sizes[i])) for i in range(len(listing))]
    assert rows == [("a", "a.png", 2), ("b", "b.jpg", 3), ("gone", "gone.jpg", 0), ("x/a", "x/a.JPG", 1500)]
    assert listing.others == 1
    with image_listing.Reader(listing) as reader, pytest.raises(BadImage, match="No such file"):
        reader.read(2)


def test_archives_are_read_without_unpacking(folder: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "cf", tmp_path / "p.tar", "-C", folder, "."], check=True)
    for how, name in ((zipfile.ZIP_STORED, "s.zip"), (zipfile.ZIP_DEFLATED, "d.zip")):
        with zipfile.ZipFile(tmp_path / name, "w", how) as archive:
            for path in FILES:
                archive.write(folder / path, path)
    before = {path.name for path in tmp_path.iterdir()}
    for name in ("p.tar", "s.zip", "d.zip"):
        assert content(image_sources.list_images(tmp_path / name)) == FILES
    assert {path.name for path in tmp_path.iterdir()} == before


def test_long_names_in_a_tar(tmp_path: Path) -> None:
    name = "deep/" * 50 + "ünï.jpg"
    with tarfile.open(tmp_path / "p.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert content(image_sources.list_images(tmp_path / "p.tar")) == {name: b"abc"}


def test_names_that_leave_the_archive_are_bad_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        for name in ("../evil.jpg", "/etc/evil.jpg", "good.jpg", "a/../../evil.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    listing = image_sources.list_images(tmp_path / "p.tar")
    reasons = {}
    with image_listing.Reader(listing) as reader:
        for i in range(len(listing)):
            try:
                reasons[listing.path(i)] = reader.read(i).decode()
            except BadImage as error:
                reasons[listing.path(i)] = str(error)[:5]
    assert reasons.pop("good.jpg") == "abc"
    assert set(reasons.values()) == {"no pl"}
    assert len(reasons) == 4


def test_damaged_archives(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    (tmp_path / "no.tar").write_bytes(b"not a tar" * 100)
    for name in ("no.zip", "no.tar"):
        with pytest.raises(DataError, match="does not read as an archive"):
            image_sources.list_images(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "x/a.JPG", "a.jpg")
    listing = image_sources.list_images(tmp_path / "d.zip")
    data = bytearray((tmp_path / "d.zip").read_bytes())
    start = data.index(b"a.jpg") + 5
    data[start : start + 6] = b"\xff" * 6
    (tmp_path / "d.zip").write_bytes(data)
    with image_listing.Reader(listing) as reader, pytest.raises(BadImage, match="in its archive"):
        reader.read(0)
    (tmp_path / "p.tar.gz").touch()
    with pytest.raises(DataError, match="compressed tar"):
        image_sources.list_images(tmp_path / "p.tar.gz")


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"0" * 1_000_000)
    listing = image_sources.list_images(tmp_path / "b.zip")
    listing.sizes[0] = 10
    with image_listing.Reader(listing) as reader, pytest.raises(BadImage, match="cut off"):
        reader.read(0)


def test_a_folder_of_archives_tells_equal_names_apart(tmp_path: Path) -> None:
    for name, members in {"a.tar": ("1.jpg", "2.jpg"), "b.tar": ("3.jpg",)}.items():
        with tarfile.open(tmp_path / name, "w") as tar:
            for member in members:
                tar.addfile(tarfile.TarInfo(member), io.BytesIO())
    assert list(content(image_sources.list_images(tmp_path))) == ["1.jpg", "2.jpg", "3.jpg"]
    with tarfile.open(tmp_path / "b.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("1.jpg"), io.BytesIO())
    assert list(content(image_sources.list_images(tmp_path))) == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/3.jpg"]


def test_lists_of_paths(folder: Path, tmp_path: Path) -> None:
    names = ["photos/b.jpg", str(folder / "a.png"), "./photos/x/a.JPG", "photos/gone.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n\n")
    pd.DataFrame({"path": names}).to_parquet(tmp_path / "list.parquet")
    for file in ("list.txt", "list.parquet"):
        listing = image_sources.list_images(tmp_path / file)
        keys = [listing.key(i) for i in range(len(listing))]
        assert keys == sorted([str(folder)[1:] + "/a", "photos/b", "photos/gone", "photos/x/a"])
        with image_listing.Reader(listing) as reader:
            assert [reader.read(keys.index(key)) for key in ("photos/b", "photos/x/a")] == [b"bee", b"eks" * 500]
            with pytest.raises(BadImage, match="No such file"):
                reader.read(keys.index("photos/gone"))
    pd.DataFrame({"url": names}).to_parquet(tmp_path / "list.parquet")
    with pytest.raises(DataError, match="has no column path"):
        image_sources.list_images(tmp_path / "list.parquet")


def test_nothing_to_list(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match="holds no images \\(only 1 other files\\)"):
        image_sources.list_images(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        image_sources.list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a folder"):
        image_sources.list_images(tmp_path / "notes.md")


def test_keys_that_stand_twice(folder: Path) -> None:
    (folder / "b.png").touch()
    (folder / "b.webp").touch()
    unique, doubled, _ = image_sources.list_images(folder).unique()
    assert [unique.key(i) for i in range(len(unique))] == ["a", "b.jpg", "b.png", "b.webp", "x/a"]
    assert not len(doubled)


def test_the_fingerprint_follows_the_files(folder: Path) -> None:
    first = image_sources.list_images(folder).fingerprint()
    assert image_sources.list_images(folder).fingerprint() == first
    (folder / "b.jpg").write_bytes(b"boo")
    second = image_sources.list_images(folder).fingerprint()
    (folder / "b.jpg").rename(folder / "c.jpg")
    assert len({first, second, image_sources.list_images(folder).fingerprint()}) == 3


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path.joinpath("b\udcff.jpg")
    path.write_bytes(b"abc")
    assert content(image_sources.list_images(tmp_path)) == {"b\udcff.jpg": b"abc"}


def test_a_file_that_grew_is_read_whole(folder: Path) -> None:
    listing = image_sources.list_images(folder)
    with image_listing.Reader(listing) as reader:
        buffer = memoryview(bytearray(10))
        assert reader.read_into(b"b.jpg", 3, buffer)
        assert bytes(buffer[:3]) == b"bee"
        (folder / "b.jpg").write_bytes(b"beef")
        assert not reader.read_into(b"b.jpg", 3, buffer)
        assert reader.read(1) == b"beef"
