"""Prediction files: .tsv in the reference layout, .csv, .jsonl and .parquet, written in batches and read back.

.tsv      `Filename baby bird ...`: one image a line, by default the decisions as 0 and 1
.txt      `NAME 0 1 ...`, the layout of reference system A: no header, columns separated by spaces
.csv      `key,file,` decisions by label, scores as LABEL_score
.parquet  the same columns; a folder of such files, one after another, is one table
.jsonl    {"key", "file", "labels": [...], "scores": {label: score}}

Scores have six significant digits in text and are float32 in Parquet.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlic.errors import DataError

Values = Literal["decisions", "scores", "both"]
Array = np.ndarray[Any, Any]
_SCORE = "_score"


@dataclass(frozen=True)
class Predictions:
    """Predictions in columns of equal length N: `scores` float32 (N, L) or None, `decisions` bool (N, L) or None.

    `labels` is empty where the file does not name its columns. With `is_lists`, the file lists the labels of each
    image, so that labels that it never names are predicted absent.
    """

    labels: tuple[str, ...]
    keys: tuple[str, ...]
    files: tuple[str, ...]
    scores: Array | None
    decisions: Array | None
    is_lists: bool = False

    def with_labels(self, labels: Sequence[str]) -> Predictions:
        """The same predictions, with all these labels absent that lists never name."""
        new = [label for label in labels if label not in self.labels]
        if not self.is_lists or not new or self.decisions is None:
            return self
        absent = np.zeros((len(self.keys), len(new)), bool)
        return dataclasses.replace(
            self, labels=(*self.labels, *new), decisions=np.concatenate([self.decisions, absent], axis=1)
        )

    @property
    def columns(self) -> int:
        """The number of labels, named or not."""
        values = self.decisions if self.decisions is not None else self.scores
        return 0 if values is None else int(values.shape[1])


def resolve_values(suffix: str, values: Values | Literal["auto"]) -> Values:
    """The default values of a format: decisions in the reference layout, decisions and scores in the others."""
    if values != "auto":
        return values
    return "decisions" if suffix in (".tsv", ".txt") else "both"


def check_plain(files: pa.Array) -> None:
    """Raise DataError when a .txt file cannot hold one of the names (bytes), because of a space in it."""
    odd = files.filter(pc.match_substring_regex(files, r"\s"))
    if len(odd):
        name = odd[0].as_py().decode("utf-8", "backslashreplace")
        raise DataError(f"{name!r} has a space in its name, which a .txt file cannot hold.", "write .tsv or .csv.")


def write(path: Path, suffix: str, labels: Sequence[str], values: Values, parts: Iterable[Predictions]) -> int:
    """Write parts, one after another, as a file of the format that `suffix` names; returns the number of rows."""
    if suffix == ".parquet":
        return _write_parquet(path, labels, values, parts)
    rows = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        if suffix == ".jsonl":
            for part in parts:
                file.writelines(json.dumps(record) + "\n" for record in _records(part, labels, values))
                rows += len(part.keys)
            return rows
        if suffix == ".txt":
            for part in parts:
                rows_of = zip(part.files, _numbers(part, values), strict=True)
                file.writelines(" ".join([name, *numbers]) + "\n" for name, numbers in rows_of)
                rows += len(part.keys)
            return rows
        tab = suffix == ".tsv"
        writer = csv.writer(file, delimiter="\t" if tab else ",", lineterminator="\n")
        writer.writerow([*(["Filename"] if tab else ["key", "file"]), *_columns(labels, values)])
        for part in parts:
            for i, numbers in enumerate(_numbers(part, values)):
                writer.writerow([*([part.files[i]] if tab else [part.keys[i], part.files[i]]), *numbers])
            rows += len(part.keys)
    return rows


def is_folder(path: Path) -> bool:
    """Whether it is a folder of Parquet files, parts of one table."""
    return path.is_dir() and any(path.glob("part-*.parquet"))


def read(path: Path, logits: bool = False) -> Predictions:
    """Read a prediction file of any of the formats, or `NAME 0 1 ...` lines (.txt), whose columns have no names.

    Columns of a table that hold other numbers than 0 and 1 are scores, or logits where `logits` says so. Raises
    DataError when the file is missing or not one.
    """
    if not path.is_file() and not is_folder(path):
        raise DataError(f"the predictions {path} do not exist.", "mlic batch-predict writes them.")
    try:
        if path.suffix == ".parquet" or path.is_dir():
            return _read_parquet(path, logits)
        if path.suffix == ".jsonl":
            return _read_jsonl(path)
        if path.suffix in (".tsv", ".csv", ".txt"):
            return _read_table(path, logits)
    except (ValueError, KeyError, TypeError, OSError, csv.Error) as error:
        hint = "give --logits." if "logits" in str(error) else "write it again by mlic batch-predict."
        raise DataError(f"{path} cannot be read as predictions: {error}.", hint) from None
    raise DataError(f"{path} is no .tsv, .csv, .txt, .jsonl or .parquet file.", "name a predictions file or a run.")


def _columns(labels: Sequence[str], values: Values) -> list[str]:
    decided = [] if values == "scores" else list(labels)
    scored = [] if values == "decisions" else [label + _SCORE for label in labels]
    return decided + scored


def _numbers(part: Predictions, values: Values) -> Iterator[list[str]]:
    for i in range(len(part.keys)):
        row: list[str] = []
        if values != "scores" and part.decisions is not None:
            row += ["1" if value else "0" for value in part.decisions[i]]
        if values != "decisions" and part.scores is not None:
            row += [f"{value:.6g}" for value in part.scores[i]]
        yield row


def _records(part: Predictions, labels: Sequence[str], values: Values) -> Iterator[dict[str, Any]]:
    for i, (key, file) in enumerate(zip(part.keys, part.files, strict=True)):
        record: dict[str, Any] = {"key": key, "file": file}
        if values != "scores" and part.decisions is not None:
            record["labels"] = [label for label, yes in zip(labels, part.decisions[i], strict=True) if yes]
        if values != "decisions" and part.scores is not None:
            record["scores"] = {label: float(f"{s:.6g}") for label, s in zip(labels, part.scores[i], strict=True)}
        if "scores" not in record:
            record["vocabulary"] = list(labels)
        yield record


def _write_parquet(path: Path, labels: Sequence[str], values: Values, parts: Iterable[Predictions]) -> int:
    import pyarrow.parquet as pq

    fields = [pa.field("key", pa.string()), pa.field("file", pa.string())]
    fields += [pa.field(n, pa.float32() if n.endswith(_SCORE) else pa.int8()) for n in _columns(labels, values)]
    schema = pa.schema(fields, metadata={"mlic_labels": json.dumps(list(labels))})
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            columns: list[Any] = [pa.array(part.keys, pa.string()), pa.array(part.files, pa.string())]
            if values != "scores" and part.decisions is not None:
                columns += [pa.array(column.astype(np.int8)) for column in part.decisions.T]
            if values != "decisions" and part.scores is not None:
                columns += [pa.array(column.astype(np.float32)) for column in part.scores.T]
            writer.write_table(pa.table(columns, schema=schema))
            rows += len(part.keys)
    return rows


def _read_parquet(path: Path, logits: bool) -> Predictions:
    import pyarrow.parquet as pq

    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    table = pa.concat_tables([pq.read_table(file) for file in files])
    columns = {name: table.column(name).to_numpy() for name in table.column_names if name not in ("key", "file")}
    keys, names = (tuple(table.column(name).to_pylist()) for name in ("key", "file"))
    return from_columns(keys, names, columns, logits)


def _read_table(path: Path, logits: bool) -> Predictions:
    import pyarrow.csv as pa_csv

    spaces = path.suffix == ".txt"
    parse = pa_csv.ParseOptions(
        delimiter={".tsv": "\t", ".csv": ","}.get(path.suffix, " "),
        newlines_in_values=not spaces,
        quote_char=False if spaces else '"',
    )
    with path.open("rb") as file:
        first = file.readline().decode("utf-8", "replace")
    names = [] if spaces else next(csv.reader([first.rstrip("\r\n")], delimiter=parse.delimiter))
    count = len(first.split()) if spaces else len(names)
    names = names or [str(i) for i in range(count)]
    if count < 2 or len(set(names)) < count:
        raise ValueError("a name and at least one label per line are needed, each label once")
    texts = 2 if names[:2] == ["key", "file"] else 1
    table = pa_csv.read_csv(
        path,
        read_options=pa_csv.ReadOptions(column_names=names, skip_rows=0 if spaces else 1),
        parse_options=parse,
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() if i < texts else pa.float32() for i, name in enumerate(names)},
            null_values=[],
            strings_can_be_null=False,
        ),
    )
    texts_read = [tuple(table.column(i).to_pylist()) for i in range(texts)]
    files = texts_read[-1]
    keys = texts_read[0] if texts == 2 else keys_of(files)
    columns = {name: table.column(i).to_numpy() for i, name in enumerate(names) if i >= texts}
    predictions = from_columns(keys, files, columns, logits)
    return dataclasses.replace(predictions, labels=()) if spaces else predictions


def _read_jsonl(path: Path) -> Predictions:
    with path.open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    if not records:
        raise ValueError("no rows")
    labels = tuple(records[0].get("scores") or records[0]["vocabulary"])
    scores = decisions = None
    if "scores" in records[0]:
        scores = np.array([[record["scores"][label] for label in labels] for record in records], dtype=np.float32)
    if "labels" in records[0]:
        decisions = np.array([[label in record["labels"] for label in labels] for record in records], dtype=bool)
    keys, files = (tuple(record[name] for record in records) for name in ("key", "file"))
    return Predictions(labels, keys, files, scores, decisions)


def from_columns(
    keys: tuple[str, ...], files: tuple[str, ...], columns: dict[str, Array], logits: bool = False
) -> Predictions:
    """Predictions from columns (N,) by name. Raises ValueError for values that are neither decisions nor scores."""
    scored = [name for name in columns if name.endswith(_SCORE)]
    decided = [name for name in columns if not name.endswith(_SCORE)]
    labels = tuple(decided) or tuple(name.removesuffix(_SCORE) for name in scored)
    if scored and tuple(name.removesuffix(_SCORE) for name in scored) != labels:
        raise ValueError("the columns of scores and of decisions have different labels")
    scores = np.stack([columns[name] for name in scored], axis=1).astype(np.float32) if scored else None
    decisions = None
    if decided:
        raw = np.stack([columns[name] for name in decided], axis=1)
        if logits and not scored:
            if raw.min() >= 0 and raw.max() <= 100:
                top = 1 if raw.max() <= 1 else 100
                raise ValueError(
                    f"all values are from 0 to {top}, so they are no log-odds, which are negative for most"
                )
            scores = (1 / (1 + np.exp(-raw.astype(np.float64)))).astype(np.float32)
        elif np.isin(raw, (0, 1)).all():
            decisions = raw.astype(bool)
        elif scores is None and ((raw >= 0) & (raw <= 1)).all():
            scores = raw.astype(np.float32)
        else:
            wrong = ~np.isin(raw, (0, 1)) if scores is not None else ~((raw >= 0) & (raw <= 1))
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{raw[row, column]:g} for {decided[column]!r} is neither 0, 1 nor a score between 0 and 1, as logits "
                "are not"
            )
    return Predictions(labels, keys, files, scores, decisions)


def keys_of(files: Sequence[str]) -> tuple[str, ...]:
    """The keys of files: their names without extension, and whole where two would be the same."""
    keys = [_without_extension(name) for name in files]
    counts = Counter(keys)
    return tuple(key if counts[key] == 1 else file for key, file in zip(keys, files, strict=True))


def _without_extension(name: str) -> str:
    return name[: -len(Path(name).suffix)] if Path(name).suffix else name
