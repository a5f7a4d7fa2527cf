"""Images and archives as other programs leave them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlic.data.pixels import images
from mlic.data.sources.image_sources import list_images


def picture(format: str = "JPEG", size: tuple[int, int] = (12, 8)) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (*size[::-1], 3), np.uint8)).save(data, format)
    return data.getvalue()


def names(folder: Path) -> list[str]:
    listing = list_images(folder)
    return sorted(listing.path(i) for i in range(len(listing)))


@pytest.mark.parametrize(
    ("format", "ending"),
    [("JPEG", ".jfif"), ("JPEG", ""), ("PNG", ".1"), ("AVIF", ".avif"), ("JPEG2000", ".jp2"), ("HEIF", ".heic")],
)
def test_images_by_ending_or_content(tmp_path: Path, format: str, ending: str) -> None:
    (tmp_path / f"photo{ending}").write_bytes(picture(format))
    (tmp_path / "notes").write_text("no image")
    (tmp_path / "list.txt").write_bytes(picture())
    assert names(tmp_path) == [f"photo{ending}"]
    assert images.decode((tmp_path / f"photo{ending}").read_bytes(), "rgb", 1000).shape == (8, 12, 3)


def test_heic_without_its_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_HAS_HEIF", False)
    with pytest.raises(images.BadImage, match="needs the package pillow-heif"):
        images.decode(b"\0\0\0\x18ftypheic" + bytes(20), "rgb", 1000)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jpg").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "z").symlink_to(tmp_path / "real")
    (tmp_path / "photos" / "y").symlink_to(tmp_path / "real")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "real" / "inner").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "photos") == ["y/a.jpg", "y/inner/b.jpg"]


def test_thumbnails_of_storage_boxes_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "@eaDir" / "a.jpg").mkdir(parents=True)
    (tmp_path / "@eaDir" / "a.jpg" / "SYNOPHOTO_THUMB.jpg").touch()
    (tmp_path / "a.jpg").touch()
    assert names(tmp_path) == ["a.jpg"]


def test_names_in_zip_files(tmp_path: Path) -> None:
    """Windows writes backslashes; macOS writes UTF-8 without saying so."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("photos/one.jpg", "M_ller.jpg"):
            archive.writestr(name, picture())
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(
        data.replace(b"photos/one", b"photos\\one").replace(b"M_ller.jpg", "Mäler.jpg".encode())
    )
    assert names(tmp_path / "a.zip") == ["Mäler.jpg", "photos/one.jpg"]


def test_a_tar_that_is_cut_off_keeps_what_is_before_the_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for i in range(4):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = len(picture())
            tar.addfile(info, io.BytesIO(picture()))
    (tmp_path / "a.tar").write_bytes(data.getvalue()[: 2 * (512 + 512 * -(-len(picture()) // 512)) + 700])
    assert names(tmp_path / "a.tar") == ["0.jpg", "1.jpg", "2.jpg"]
    assert "a.tar is cut off after 3 members" in caplog.text


def test_half_a_jpeg_is_bad_though_it_ends_as_a_whole_one() -> None:
    whole = picture(size=(64, 64))
    with pytest.raises(images.BadImage, match="cut off within its image data"):
        images.decode(whole[: len(whole) // 2] + b"\xff\xd9", "rgb", 10_000)
    assert images.decode(whole + b"text behind the end", "rgb", 10_000).shape == (64, 64, 3)


def test_orientation_behind_other_segments() -> None:
    plain, exif = picture(), Image.Exif()
    exif[274] = 6
    tag = exif.tobytes()
    app1 = b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag
    other = b"\xff\xed" + (6002).to_bytes(2, "big") + bytes(6000)
    assert images.decode(plain[:2] + other + app1 + plain[2:], "rgb", 1000).shape == (12, 8, 3)
    assert images.decode(plain[:2] + other + plain[2:], "rgb", 1000).shape == (8, 12, 3)
