"""Read a pickle as data. Its opcodes are listed by the standard library's `pickletools`, which runs nothing, and followed here.

A pickle is a small program: it names functions, calls them, and changes what they return. The names that a reader allows stand
for the reader's own functions. Nothing is ever imported, and nothing that the file does can reach beyond its own data:

* lengths and numbers of memo entries are compared with the file before anything is reserved for them;
* a file is bounded in operations, in nesting, and in what it stands for when a shared part counts as often as it is used;
* keys of dicts are strings and numbers, as hashing a nested tuple can take forever;
* only objects that say so (`Built`) can be given a state.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

MAX_OPERATIONS = 5_000_000  # of one pickle; COCO's label table has 3.2 million
MAX_DEPTH = 50
MAX_INTEGER = 1 << 128
KEYS = (str, bytes, int, float, bool)


class RefusedError(ValueError):
    """The file asks for something that a plain table of numbers does not need; the message says what."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a pickle names; it is a string and nothing else."""

    module: str
    name: str


class Built:
    """What a function of the reader returns when the pickle has to give it a state."""

    def build(self, state: Any) -> None:
        """Take the state; one that does not fit is refused."""


class BoundedStream:
    """A file that is never asked for more bytes than it has.

    Args:
        file: opened for reading bytes, and able to tell its position.
        size: of the file in bytes.
    """

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        """Return exactly so many bytes.

        Raises:
            RefusedError: the file ends before.
        """
        if not 0 <= count <= self.size - self.file.tell():
            raise RefusedError(f"it ends where {count} more bytes should follow")
        return self.file.read(count)

    def readline(self) -> bytes:
        """Return the rest of a line."""
        return self.file.readline()

    def tell(self) -> int:
        """Return the number of bytes before the next."""
        return self.file.tell()


class Budget:
    """How many bytes a file may still become.

    Args:
        left: this many.
    """

    def __init__(self, left: int):
        self.left = left

    def spend(self, count: int) -> None:
        """Take some of it.

        Raises:
            RefusedError: not that much is left.
        """
        self.left -= count
        if self.left < 0:
            raise RefusedError("it would grow to many times its size")


def table(pairs: Any) -> dict:
    """Return a dict of (key, value) pairs.

    Raises:
        RefusedError: a key is neither a string nor a number.
    """
    result = {}
    for key, value in pairs:
        if type(key) not in KEYS:
            raise RefusedError(f"a key is a {type(key).__name__.lower()}")
        result[key] = value
    return result


def read_pickle(
    stream: BoundedStream, calls: Mapping[Name, Callable[..., Any]], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Follow a pickle up to its end.

    Args:
        stream: at the pickle's first byte; afterwards after its last.
        calls: the names that it may use, and what stands for them.
        persistent: what stands for objects outside the pickle; None: there are none.

    Returns:
        what the pickle holds; lists, tuples and dicts in it can be shared, and can contain themselves.

    Raises:
        RefusedError: it does what is not allowed. Damaged pickles raise nearly every type.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def since_mark() -> list:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    def top(kind: type) -> Any:
        if type(stack[-1]) is not kind:
            raise RefusedError(f"it adds to a {type(stack[-1]).__name__.lower()} as to a {kind.__name__}")
        return stack[-1]

    def named(module: str, name: str) -> Name:
        found = Name(module.replace("numpy._core", "numpy.core"), name)  # its name since NumPy 2
        if found not in calls:
            raise RefusedError(f"it asks for {module}.{name}, which such a file does not need")
        return found

    operations = pickletools.genops(stream)  # type: ignore[arg-type]  # it calls the stream's three methods only
    for number, (opcode, argument, _) in enumerate(operations):
        if number > MAX_OPERATIONS:
            raise RefusedError(f"it has more than {MAX_OPERATIONS} parts")
        match opcode.name:
            case "PROTO":
                pass
            case "FRAME":
                if argument > stream.size:
                    raise RefusedError("a frame is longer than the file")
            case "STOP":
                (result,) = stack
                return result
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                if abs(argument) >= MAX_INTEGER:
                    raise RefusedError("it holds a number of more than 128 bits")
                stack.append(argument)
            case (
                "FLOAT"
                | "BINFLOAT"
                | "STRING"
                | "BINSTRING"
                | "SHORT_BINSTRING"
                | "BINBYTES"
                | "SHORT_BINBYTES"
                | "BINBYTES8"
                | "UNICODE"
                | "BINUNICODE"
                | "SHORT_BINUNICODE"
                | "BINUNICODE8"
            ):
                stack.append(argument)
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT":
                stack.append({"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}[opcode.name]())
            case "LIST" | "TUPLE":
                stack.append((list if opcode.name == "LIST" else tuple)(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                parts = tuple(stack[-length:])
                del stack[-length:]
                stack.append(parts)
            case "DICT":
                items = since_mark()
                stack.append(table(zip(items[::2], items[1::2], strict=True)))
            case "APPEND":
                item = stack.pop()
                top(list).append(item)
            case "APPENDS":
                items = since_mark()
                top(list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                top(dict).update(table([(key, value)]))
            case "SETITEMS":
                items = since_mark()
                top(dict).update(table(zip(items[::2], items[1::2], strict=True)))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if argument > number:
                    raise RefusedError(f"it notes part {argument} before it has so many")
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(named(*argument.split(" ")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(named(str(module), str(name)))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if type(function) is not Name or type(arguments) is not tuple:
                    raise RefusedError("it calls what is not a function")
                stack.append(calls[function](*arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Built):
                    stack[-1].build(state)
                elif type(stack[-1]) is not dict:  # torch notes versions at its dicts, which nobody here asks for
                    raise RefusedError(f"it changes a {type(stack[-1]).__name__.lower()}")
            case "BINPERSID" if persistent:
                stack.append(persistent(stack.pop()))
            case _:
                raise RefusedError(f"it uses {opcode.name}, which such a file does not need")
    raise RefusedError("it has no end")


def plain(content: Any, leaf: Callable[[Any], Any]) -> Any:
    """Turn what `read_pickle` returns into plain dicts, lists and tuples.

    Args:
        content: of the pickle.
        leaf: what becomes of everything else; it may return another container, which is also turned.

    Returns:
        the same, where shared parts stay shared.

    Raises:
        RefusedError: it is nested too deeply, contains itself, or stands for more parts than a pickle may have, shared ones
            counted as often as they are used; errors of `leaf` pass through.
    """
    done: dict[int, tuple[Any, int] | None] = {}

    def turn(value: Any, depth: int) -> tuple[Any, int]:
        if depth > MAX_DEPTH:
            raise RefusedError(f"it is nested more than {MAX_DEPTH} deep")
        if id(value) not in done:
            done[id(value)] = None
            found: tuple[Any, int] | None
            if type(value) is dict:
                pairs = {key: turn(item, depth + 1) for key, item in value.items()}
                found = {key: item for key, (item, _) in pairs.items()}, 1 + sum(count for _, count in pairs.values())
            elif type(value) in (list, tuple):
                items = [turn(item, depth + 1) for item in value]
                found = type(value)(item for item, _ in items), 1 + sum(count for _, count in items)
            else:
                found = leaf(value), 1
                if type(found[0]) in (dict, list, tuple):
                    found = turn(found[0], depth + 1)
            if found[1] > MAX_OPERATIONS:
                raise RefusedError(f"it stands for more than {MAX_OPERATIONS} parts")
            done[id(value)] = found
        found = done[id(value)]
        if found is None:
            raise RefusedError("it contains itself")
        return found

    return turn(content, 0)[0]
