"""The values in a pickle, read without unpickling: nothing that it names is imported, called or built.

A pickle is a program for a stack machine. This one pushes plain values (numbers, texts, lists, tuples, dicts); a class
or function is its name, and what a call of it would make is decided by `calls`, or is a `Foreign`, which takes whatever
is done to it. So a file from elsewhere can be read for its tensors, whatever else lies in it.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_COLLECTED: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "FROZENSET": list,  # as are sets, so that nothing in them is hashed
    "DICT": lambda items: _set_items({}, items),
}


class Damaged(ValueError):
    """Not a pickle, or not a whole one."""


@dataclass(frozen=True)
class Name:
    """A class or function, by its name: never looked up."""

    text: str


class Foreign:
    """In the place of an object that only foreign code could make."""


def read(data: bytes, calls: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> Any:
    """The value that a pickle describes. Raises `Damaged`.

    calls: what is called instead of the functions and classes of these names, with the pickle's arguments;
    persistent: what stands for an object that is kept outside the pickle, from its id.
    """
    try:
        return _run(data, calls, persistent)
    except Damaged:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
        raise Damaged(" ".join(str(error).split()) or "not a whole pickle") from None


def _run(data: bytes, calls: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    def call(function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name):
            return Foreign()
        if function.text == "collections.OrderedDict":
            return _set_items({}, [part for pair in (arguments[0] if arguments else []) for part in pair])
        return calls[function.text](*arguments) if function.text in calls else Foreign()

    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name in _COLLECTED:
            items = since_mark()
            stack.append(_COLLECTED[name](items))
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name == "POP_MARK":
            since_mark()
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("APPENDS", "ADDITEMS"):
            items = since_mark()
            _append(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _append(stack[-1], [item])
        elif name == "SETITEMS":
            items = since_mark()
            _set_items(stack[-1], items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == "GLOBAL":
            stack.append(Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            named = isinstance(module, str) and isinstance(attribute, str)
            stack.append(Name(f"{module}.{attribute}") if named else Foreign())
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(call(function, arguments))
        elif name == "NEWOBJ_EX":
            del stack[-3:]
            stack.append(Foreign())
        elif name in ("INST", "OBJ"):
            since_mark()
            stack.append(Foreign())
        elif name == "BUILD":
            stack.pop()  # attributes: of a foreign object, or of a dict, which needs none
        elif name == "PERSID":
            stack.append(persistent(argument))
        elif name == "BINPERSID":
            stack.append(persistent(stack.pop()))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise Damaged(f"it has the instruction {name}")
    raise Damaged("it has no end")


def _append(container: Any, items: list[Any]) -> None:
    if isinstance(container, list):
        container += items


def _set_items(container: Any, items: list[Any]) -> Any:
    """Keys that are neither text nor numbers are left out: hashing one could run away."""
    if isinstance(container, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str | int):
                container[key] = value
    return container
