"""Text files as lines with their numbers: encodings by detection, any line ends, gzip."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mlic.data.annotations.files import large_json
from mlic.errors import DataError

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_CHUNK = 1 << 20


def encoding_of(file: Path) -> str:
    """The encoding of a text file: by its byte order mark, else UTF-8, else Windows-1252.

    The whole file is looked at. Raises DataError, with the line, for a file that is not text.
    """
    try:
        with opened(file) as data:
            first = data.read(_CHUNK)
            marked = next((name for mark, name in _BOMS if first.startswith(mark)), None)
            if marked is not None:
                return marked
            decoder, lines = codecs.getincrementaldecoder("utf-8")(), 0
            chunk, wrong = first, None
            while chunk:
                if b"\0" in chunk:
                    line = lines + chunk[: chunk.index(b"\0")].count(b"\n") + 1
                    raise DataError(f"{file}:{line}: a NUL byte; this is not a text file.", "fix that line.")
                if wrong is None:
                    try:
                        decoder.decode(chunk)
                    except UnicodeDecodeError as error:
                        wrong = lines + chunk[: error.start].count(b"\n") + 1
                try:
                    chunk.decode("cp1252") if wrong is not None else None
                except UnicodeDecodeError:
                    raise DataError(f"{file}:{wrong}: not UTF-8 text.", "save the file as UTF-8.") from None
                lines += chunk.count(b"\n")
                chunk = data.read(_CHUNK)
            return "utf-8" if wrong is None else "cp1252"
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read the labels {file}: {reason}.", "check the file.") from None


def opened(file: Path) -> IO[bytes]:
    """The bytes of a file, decompressed when its name ends in .gz."""
    return gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")  # type: ignore[return-value]


def text_lines(file: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Lines of a text file with their numbers; CR, LF and CR LF all end a line. Raises DataError as `encoding_of`."""
    with _readable(file, encoding or encoding_of(file)) as lines:
        yield from enumerate(lines, start=1)


@contextlib.contextmanager
def _readable(file: Path, encoding: str) -> Iterator[IO[str]]:
    """The text of a file. What is raised while it is read becomes DataError."""
    try:
        with opened(file) as data, io.TextIOWrapper(data, encoding=encoding) as text:
            yield text
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not {encoding} text ({error.reason}).", "save the file as UTF-8.") from None
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read the labels {file}: {reason}.", "check the file.") from None


def parsed_json(text: str | bytes, where: str) -> Any:
    """What a JSON text holds. Raises DataError for one that is not JSON, or that holds half of a character."""
    try:
        content = json.loads(text)
        if (b"\\ud" in text.lower()) if isinstance(text, bytes) else ("\\ud" in text.lower()):
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}).", "fix that line.") from None
    return content


def document(file: Path) -> str:
    """The whole text of a file, with any line ends as LF. Raises DataError as `encoding_of`."""
    with _readable(file, encoding_of(file)) as text:
        return "".join(iter(lambda: text.read(_CHUNK), ""))  # in one piece it would be there three times


def viewed_json(file: Path) -> Any:
    """What a file of JSON holds; lists and objects at the top are views of `large_json`. Raises DataError."""
    try:
        return large_json.view(document(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}).", "fix that line.") from None
