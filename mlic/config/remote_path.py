"""The location of a file or a folder in an object store, with the operations that `Path` has on names."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class RemotePath:
    """A URL such as s3://bucket/folder?endpoint_override=localhost:9000; what follows the `?` stays at its end.

    `mlic.data.storage` reads and writes such files. Raises ValueError for a text without `://`.
    """

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        if "://" not in url:
            raise ValueError(f"{url!r} is no URL")
        self._url = url

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> RemotePath:
        """The location of `name` below this one; `name` may hold slashes."""
        parts = urlsplit(self._url)
        return RemotePath(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}")))

    @property
    def parent(self) -> RemotePath:
        """The folder that holds this location."""
        parts = urlsplit(self._url)
        return RemotePath(urlunsplit(parts._replace(path=parts.path.rstrip("/").rpartition("/")[0])))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(urlsplit(self._url).path).name

    @property
    def suffix(self) -> str:
        """The extension of the name with its dot; empty when there is none."""
        return PurePosixPath(urlsplit(self._url).path).suffix

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A string in files and JSON schemas, an object in Python."""
        from_text = core_schema.chain_schema(
            [core_schema.str_schema(pattern="://"), core_schema.no_info_plain_validator_function(cls)]
        )
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), from_text]),
            serialization=core_schema.to_string_ser_schema(),
        )
