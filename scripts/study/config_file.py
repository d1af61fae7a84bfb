"""Configs from TOML and YAML files."""

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any

from scripts.study.config import PRESETS, StudyConfig


def from_file(file: Path, base: StudyConfig | None = None) -> StudyConfig:
    """The config that a file describes: the names of `StudyConfig`'s fields with their values.

    What the file does not say is that of `base`; without one, of the preset that a field `preset`
    names (default: "default").

    **Raises:** `ValueError` for a file that is not there or is no TOML or YAML, unknown fields
    and values that make no sense; each names the field and the choices.
    """
    values = _read(file)
    named = preset(values.pop("preset", "default"))
    base = named if base is None else base
    names = [field.name for field in dataclasses.fields(StudyConfig)]
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise ValueError(
                f"`{name}` in {file} is no field of a study, expected `preset` or one of "
                f"{', '.join(names)}.{hint}"
            )
    return _with(base, values)


def from_choices(choices: dict[str, Any]) -> StudyConfig:
    """The config with these `StudyConfig.choices`; what is no field of a study is left out.

    **Raises:** `ValueError` for values that make no sense.
    """
    names = {field.name for field in dataclasses.fields(StudyConfig)}
    return _with(StudyConfig(), {k: v for k, v in choices.items() if k in names})


def _with(base: StudyConfig, values: dict[str, Any]) -> StudyConfig:
    config = dataclasses.replace(base, **{k: _value(k, v) for k, v in values.items()})
    config.check()
    return config


def preset(name: Any) -> StudyConfig:
    """The study of this name.

    **Raises:** `ValueError` for another name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        listed = ", ".join(repr(one) for one in PRESETS)
        raise ValueError(f"`preset` is {name!r}, expected one of {listed}.")
    return PRESETS[name]


def _value(name: str, value: Any) -> Any:
    is_list = isinstance(value, list) or (name == "architectures" and isinstance(value, dict))
    if isinstance(getattr(StudyConfig, name, None), tuple) and not is_list:
        raise ValueError(f"`{name}` is {value!r}, expected a list of values.")
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if name in ("out", "root") and isinstance(value, str) else value


def _read(file: Path) -> dict[str, Any]:
    kinds = (".toml", ".yaml", ".yml")
    if file.suffix not in kinds:
        raise ValueError(f"`config` is {file}, expected a file that ends in {', '.join(kinds)}.")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`config` is {file}, which cannot be read: {error}.") from error
    if file.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"`config` is {file}, expected TOML: {error}.") from error
    import yaml  # the rest of the study needs none

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"`config` is {file}, expected YAML: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"`config` is {file}, expected a mapping of fields to values.")
    return values
