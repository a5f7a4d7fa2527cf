"""Other loaders and writers, each set up as its own documentation recommends, with one thread or process to decode.

An engine is a function from a corpus to uint8 batches (B, H, W, 3), with a None after each of EPOCHS + 1 epochs. What a
peer needs is imported in its function, so that all the others run without it.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

EPOCHS = 2
BATCH = 64
SHUFFLE = 1000  # samples in a shuffle buffer, where an engine has one


@dataclass(frozen=True)
class Corpus:
    """The training images as `folder`/shards and `folder`/files, JPEG named .jpg; engines give them `size` x `size`."""

    folder: Path
    size: int
    resize: bool

    @cached_property
    def files(self) -> list[Path]:
        return sorted((self.folder / "files").iterdir())

    @property
    def shards(self) -> list[str]:
        return sorted(str(path) for path in (self.folder / "shards").glob("train-*.tar"))


def pixels(image: Any, corpus: Corpus) -> Any:
    """A Pillow image through torchvision's transforms to a uint8 tensor (H, W, 3)."""
    from torchvision.transforms.v2 import functional

    return resized(functional.to_image(image.convert("RGB")), corpus)


def resized(image: Any, corpus: Corpus) -> Any:
    """A uint8 tensor (3, H, W) to (size, size, 3), resized only where the corpus asks for it."""
    from torchvision.transforms.v2 import functional

    if corpus.resize:
        image = functional.resize(image, [corpus.size, corpus.size], antialias=True)
    return image.permute(1, 2, 0)


def stacked(images: Iterable[Any]) -> Iterator[Any]:
    """Single images to batches."""
    import torch

    found: list[Any] = []
    for image in images:
        found.append(image)
        if len(found) == BATCH:
            yield torch.stack(found)
            found = []
    if found:
        yield torch.stack(found)


def pytorch(corpus: Corpus) -> Iterator[Any]:
    import torch
    from PIL import Image

    class Photographs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(corpus.files)

        def __getitem__(self, i: int) -> Any:
            return pixels(Image.open(corpus.files[i]), corpus)

    for _ in range(EPOCHS + 1):
        yield from torch.utils.data.DataLoader(Photographs(), batch_size=BATCH, shuffle=True)
        yield None


def webdataset(corpus: Corpus) -> Iterator[Any]:
    import webdataset

    for _ in range(EPOCHS + 1):
        data = webdataset.WebDataset(corpus.shards, shardshuffle=len(corpus.shards)).shuffle(SHUFFLE).decode("pil")
        yield from stacked(pixels(image, corpus) for (image,) in data.to_tuple("jpg"))
        yield None


def ray_data(corpus: Corpus) -> Iterator[Any]:
    import numpy as np
    import ray
    from PIL import Image

    def decode(batch: dict[str, Any]) -> dict[str, Any]:
        images = [pixels(Image.open(io.BytesIO(data)), corpus).numpy() for data in batch["jpg"]]
        return {"image": np.stack(images)}

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_webdataset(corpus.shards, decoder=None, suffixes=["jpg"], shuffle="files").map_batches(decode)
    for _ in range(EPOCHS + 1):
        for batch in data.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=SHUFFLE):
            yield batch["image"]
        yield None
    ray.shutdown()


def litdata(corpus: Corpus) -> Iterator[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    class Photographs(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return resized(super().__getitem__(index)["image"], corpus)

    data = Photographs(str(corpus.folder / "litdata"), shuffle=True, drop_last=False)
    loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=0)
    for _ in range(EPOCHS + 1):
        yield from loader
        yield None


def mosaicml(corpus: Corpus) -> Iterator[Any]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Photographs(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return pixels(super().__getitem__(index)["image"], corpus)

    data = Photographs(local=str(corpus.folder / "mds"), shuffle=True, batch_size=BATCH)
    loader: DataLoader[Any] = DataLoader(data, batch_size=BATCH)
    for _ in range(EPOCHS + 1):
        yield from loader
        yield None


def ffcv(corpus: Corpus) -> Iterator[Any]:
    from ffcv.fields.rgb_image import ResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    class Squash(ResizedCropRGBImageDecoder):  # type: ignore[misc]
        scale = ratio = None

        @property
        def get_crop_generator(self) -> Any:
            return lambda height, width, _scale, _ratio: (0, 0, height, width)

    decoder = Squash((corpus.size, corpus.size)) if corpus.resize else SimpleRGBImageDecoder()
    loader = Loader(
        str(corpus.folder / "train.beton"),
        batch_size=BATCH,
        num_workers=1,
        os_cache=True,
        order=OrderOption.RANDOM,
        pipelines={"image": [decoder, ToTensor()]},
        drop_last=False,
    )
    for _ in range(EPOCHS + 1):
        for (images,) in loader:
            yield images
        yield None


def dali(corpus: Corpus) -> Iterator[Any]:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def  # type: ignore[untyped-decorator]
    def images() -> Any:
        data = fn.readers.webdataset(
            paths=corpus.shards, ext=["jpg"], random_shuffle=True, initial_fill=SHUFFLE, name="reader"
        )
        found = fn.decoders.image(data, device="cpu", output_type=types.RGB)
        if corpus.resize:
            found = fn.resize(found, resize_x=corpus.size, resize_y=corpus.size, interp_type=types.INTERP_LINEAR)
        return found

    pipeline = images(batch_size=BATCH, num_threads=1, device_id=None)
    loader = DALIGenericIterator(
        [pipeline], ["image"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=True
    )
    for _ in range(EPOCHS + 1):
        for (batch,) in loader:
            yield batch["image"]
        yield None


def write_litdata(files: Sequence[Path], out: Path) -> None:
    import litdata

    litdata.optimize(
        open_jpeg,
        [str(file) for file in files],
        str(out),
        chunk_bytes="64MB",
        num_workers=1,
        mode="overwrite",
        verbose=False,
    )


def open_jpeg(path: str) -> dict[str, Any]:
    """A sample for litdata, which stores the bytes of an image that Pillow opened from a file as they are."""
    from PIL import Image

    return {"image": Image.open(path)}


def write_mosaicml(files: Sequence[Path], out: Path) -> None:
    from PIL import Image
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"image": "jpeg"}, exist_ok=True) as writer:
        for file in files:
            with Image.open(file) as image:
                writer.write({"image": image})


def write_ffcv(files: Sequence[Path], out: Path) -> None:
    """Write a .beton that holds the files as they are: ffcv's own field would decode and encode them again."""
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    class Files:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> tuple[bytes]:
            return (files[i].read_bytes(),)

    field = RGBImageField(write_mode="jpg")
    field.encode = _jpeg_as_it_is
    DatasetWriter(str(out), {"image": field}, num_workers=1).from_indexed_dataset(Files())
    for worker in multiprocessing.active_children():  # it may hang when it is done, and its parent would wait for it
        worker.terminate()


def _jpeg_as_it_is(destination: Any, data: bytes, malloc: Callable[[int], tuple[int, Any]]) -> None:
    import numpy as np
    import simplejpeg
    from ffcv.fields.rgb_image import IMAGE_MODES

    destination["height"], destination["width"], _, _ = simplejpeg.decode_jpeg_header(data)
    destination["mode"] = IMAGE_MODES["jpg"]
    destination["data_ptr"], storage = malloc(len(data))
    storage[:] = np.frombuffer(data, np.uint8)


# What has to be written before an engine can read: its form of the files, and the name of that in the corpus's folder.
FORMATS: dict[str, tuple[Callable[[Sequence[Path], Path], None], str]] = {
    "litdata": (write_litdata, "litdata"),
    "MosaicML streaming with Pillow": (write_mosaicml, "mds"),
    "FFCV": (write_ffcv, "train.beton"),
}

ENGINES: dict[str, Callable[[Corpus], Iterator[Any]]] = {
    "PyTorch dataset with Pillow": pytorch,
    "webdataset with Pillow": webdataset,
    "Ray Data with Pillow": ray_data,
    "litdata": litdata,
    "MosaicML streaming with Pillow": mosaicml,
    "FFCV": ffcv,
    "DALI on the CPU": dali,
}
