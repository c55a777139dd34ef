"""Rows from a driver's cursor become records without validation, by a function generated for the columns selected.

The database's types have guaranteed what validation would find again. Pydantic's four slots are all filled, so that
comparison, dumping, copying and pickling hold for loaded records as for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sqlalchemy.engine import Dialect

from crosstie.orm.state import LOADED

if TYPE_CHECKING:
    from crosstie.orm.mapping import MappedField
    from crosstie.orm.model import ActiveRecord

__all__ = ["Loader", "make_loader", "result_processors"]

Loader = Callable[[Sequence[Sequence[Any]]], "list[Any]"]


def result_processors(
    fields: Sequence[MappedField], dialect: Dialect, description: Sequence[Sequence[Any]]
) -> list[Callable[[Any], Any] | None]:
    """What turns each raw value into the field's Python value; None where the driver's answer is it already.

    `description` is the cursor's, whose type codes some dialects ask for.
    """
    found: list[Callable[[Any], Any] | None] = []
    for field, about in zip(fields, description, strict=True):
        process: Callable[[Any], Any] | None
        process = field.column.type.dialect_impl(dialect).result_processor(dialect, about[1])
        convert = field.convert
        if convert is not None:
            process = convert if process is None else _chained(process, convert)
        found.append(process)
    return found


def _chained(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: second(first(value))


def make_loader(
    model: type[ActiveRecord],
    fields: Sequence[MappedField],
    processors: Sequence[Callable[[Any], Any] | None],
) -> Loader:
    """Generate the loader of a model for raw rows that hold exactly these fields in this order."""
    cells = [f"c{i}" for i in range(len(fields))]
    values = [cell if process is None else f"p{cell}({cell})" for cell, process in zip(cells, processors, strict=True)]
    items = ", ".join(f"{field.name!r}: {value}" for field, value in zip(fields, values, strict=True))
    mutable = [field.name for field in fields if field.mutable]
    state = f"{{{', '.join(f'{name!r}: deepcopy(values[{name!r}])' for name in mutable)}}}" if mutable else "LOADED"
    # All records of a load may share one set of names only if assigning can add no name to it.
    loaded = {field.name for field in fields}
    complete = loaded >= set(model.model_fields) and model.model_config.get("extra") != "allow"
    extra = "{}" if model.model_config.get("extra") == "allow" else "None"
    source = f"""
def load(rows):
    records = []
    append = records.append
    for {", ".join(cells)}, in rows:
        record = new(model)
        values = {{{items}}}
        set_values(record, values)
        set_names(record, {"names" if complete else "names.copy()"})
        set_extra(record, {extra})
        set_private(record, private())
        set_state(record, {state})
        append(record)
    return records
"""
    slots = BaseModel.__dict__
    namespace: dict[str, Any] = {
        "model": model,
        "new": object.__new__,
        "names": loaded,
        "set_values": slots["__dict__"].__set__,
        "set_names": slots["__pydantic_fields_set__"].__set__,
        "set_extra": slots["__pydantic_extra__"].__set__,
        "set_private": slots["__pydantic_private__"].__set__,
        "set_state": _slot_setter(model, "_state"),
        "deepcopy": deepcopy,
        "LOADED": LOADED,
        **{f"pc{i}": process for i, process in enumerate(processors)},
    }
    private = _private_values(model)
    if private is None:
        source = source.replace("private()", "None")
    else:
        namespace["private"] = private
    exec(compile(source, f"<loader of {model.__qualname__}>", "exec"), namespace)  # noqa: S102 - names of fields only
    load: Loader = namespace["load"]
    return load


def _slot_setter(model: type[ActiveRecord], name: str) -> Callable[[Any, Any], None]:
    for base in model.__mro__:
        if name in base.__dict__.get("__slots__", ()):
            setter: Callable[[Any, Any], None] = base.__dict__[name].__set__
            return setter
    raise AssertionError(f"{model} has no slot {name}")


def _private_values(model: type[ActiveRecord]) -> Callable[[], dict[str, Any]] | None:
    attributes = model.__private_attributes__
    if not attributes:
        return None

    def fresh() -> dict[str, Any]:
        pairs = ((name, attribute.get_default()) for name, attribute in attributes.items())
        return {name: value for name, value in pairs if value is not PydanticUndefined}

    return fresh
