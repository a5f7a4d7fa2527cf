"""Build a configuration from files, `--set` and flags, and explain what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlic.config.base import cli_kind, near_setting
from mlic.config.recipes import backbones, near_recipe, recipes
from mlic.errors import ConfigError

# What pydantic's errors say that a value should have been.
_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "values with commas between them",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "literal_error": "{expected}",
    "too_short": "{min_length} or more values",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "greater_than": "above {gt:g}",
    "less_than": "below {lt:g}",
}

M = TypeVar("M", bound=BaseModel)


def build(model: type[M], *layers: Mapping[str, Any]) -> M:
    """Make a configuration from layers of values, later ones over earlier ones.

    Raises ConfigError for an unknown key (with the nearest known one) or a value that a setting does not take.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = values.get(key)
            values[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    known = list(model.model_fields)
    for key in values:
        if key not in known:
            near = near_setting(str(key), known)
            hint = f"did you mean {near}?" if near else f"the settings are {', '.join(sorted(known))}."
            raise ConfigError(f"unknown setting {str(key)!r}.", hint)
    try:
        return model(**values)
    except ValidationError as error:
        raise _as_config_error(model, values, error) from None


def _as_config_error(model: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    where = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        flag = f"--{where.replace('_', '-')}" if cli_kind(model.model_fields[where]) == "flag" else where.upper()
        return ConfigError(f"{where} is not given.", f"give {flag} on the command line or in the --config file.")
    hint = "docs/reference/settings.md lists every setting, mlic COMMAND --help the everyday ones."
    about = [item for item in error.errors() if item["loc"][:1] == first["loc"][:1]]
    if where and all(item["type"] in _EXPECTED for item in about):
        # A setting of several types has an error for each of them, and all are what it could have been.
        wanted = [_EXPECTED[item["type"]].format(**item.get("ctx", {})) for item in about]
        wanted = list(dict.fromkeys(wanted))
        return ConfigError(f"{_named(first, values)} should be {' or '.join(wanted)}, not {first['input']!r}.", hint)
    if first["type"] == "extra_forbidden":
        return ConfigError(f"there is no setting {_named(first, values)}.", hint)
    what = first["msg"].removeprefix("Value error, ")
    if where:
        value = first["input"]
        text = f"{_named(first, values)}: {what[0].lower()}{what[1:]}" + (
            "" if repr(value) in what or ", not " in what else f", not {value!r}"
        )
    else:
        text = what
    return ConfigError(text if text.endswith("?") else text.rstrip(".") + ".", hint)


def _named(error: Any, values: Mapping[str, Any]) -> str:
    """The setting that an error is about, with dots into mappings; what else pydantic names are types that it tried."""
    names, within = [], values
    for part in error["loc"]:
        if not isinstance(within, Mapping) or part not in within:
            break
        names.append(str(part))
        within = within[part]
    return ".".join(names)


def find_file(name: str) -> Path:
    """The file that `--config` names: a path, or the name of a recipe where there is no such file."""
    path = Path(name)
    if path.exists() or path.suffix or path.name != name:
        return path
    return next((recipe.path for recipe in (*backbones(), *recipes()) if recipe.name == name), path)


def read_file(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON configuration file. Raises ConfigError when it is missing or not a mapping."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = "check its path." if path.suffix or path.name != str(path) else near_recipe(path.name)
        raise ConfigError(f"there is no configuration file {path}.", hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}.", "check its path.") from None
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_yaml_loader())  # noqa: S506
    except (ValueError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid {path.suffix[1:] or 'YAML'}: {line}.", "fix that line.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings.", "write one `key: value` per line.")
    return values


def read_sets(sets: Sequence[str]) -> dict[str, Any]:
    """Parse `key=value` texts; values are YAML, dots reach into mappings. Raises ConfigError on a malformed one."""
    import yaml

    values: dict[str, Any] = {}
    for text in sets:
        key, sep, raw = text.partition("=")
        if not sep or not key.strip():
            raise ConfigError(f"--set takes key=value, not {text!r}.", "for example --set weight_decay=1e-4.")
        try:
            value = yaml.load(raw, Loader=_yaml_loader())  # noqa: S506
        except yaml.YAMLError:
            value = raw
        *parents, leaf = key.strip().split(".")
        into = values
        for depth, parent in enumerate(parents, 1):
            into = into.setdefault(parent, {})
            if not isinstance(into, dict):
                whole = ".".join(parents[:depth])
                raise ConfigError(f"--set {text}: {whole} is {into!r}, which has no parts.", f"set {whole} once.")
        into[leaf] = value
    return values


def _yaml_loader() -> Any:
    """YAML's safe loader, made to read 1e-4 as a number too, which YAML 1.1 takes for text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
    return Loader
