"""What each opcode of a pickle does to a machine, and the loop that runs them."""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Callable, Mapping
from struct import unpack

from brainsurgery_jax.store.torch.pickle_machine import Damaged, Excessive, Name, Object, PickleMachine

MOST_STEPS = 20_000_000
"""Opcodes of a pickle. A tensor takes about 25."""

_NAME = 500  # characters; the longest name of a global


def run(m: PickleMachine) -> object:
    """The object that the next pickle describes. Raises Damaged or Excessive."""
    m.stack, m.marks, m.memo = [], [], {}
    try:
        while True:
            m.steps += 1
            if m.steps > MOST_STEPS:
                raise Excessive(f"it has more than {MOST_STEPS:,} opcodes")
            if m.at == len(m.data):
                m.fill(1)
            code = m.data[m.at]
            m.at += 1
            if code == _STOP:
                return m.stack.pop()
            _STEPS[code](m)
    except KeyError as error:
        raise Damaged(f"there is no opcode or memo {error}") from error
    except (IndexError, ValueError, OverflowError) as error:  # of the stack, of numbers and of encoded text
        raise Damaged(str(error)) from error


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _old_text(raw: bytes) -> str:
    """The text of Python 2, which was bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin1")


def _unquote(line: bytes) -> str:
    quoted = line.strip()
    if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[:1] not in (b"'", b'"'):
        raise Damaged("a text has no quotes around it")
    return _old_text(codecs.escape_decode(quoted[1:-1])[0])


def _integer(line: bytes) -> int:
    return line == b"01" if line in (b"00", b"01") else int(line)


def _read_signed(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _global(m: PickleMachine, module: object, name: object) -> None:
    if type(module) is not str or type(name) is not str or len(module) + len(name) > _NAME:
        raise Damaged("a global has no name, or an absurd one")
    found = Name("builtins" if module == "__builtin__" else module, name)  # the latter is that of Python 2
    m.push(m.values.get(found, found))


def _call(m: PickleMachine, function: object, given: object) -> None:
    """The result of a call that is known, or an object that stands for it."""
    known = m.calls.get(function) if isinstance(function, Name) else None
    made = known(m, given) if known is not None and type(given) is tuple else None
    m.push_made(Object(function, given) if made is None else made)


def _reduce(m: PickleMachine) -> None:
    given, function = m.stack.pop(), m.stack.pop()
    _call(m, function, given)


def _new(m: PickleMachine) -> None:
    given, kind = m.stack.pop(), m.stack.pop()
    _call(m, kind, given)


def _new_extended(m: PickleMachine) -> None:
    named, given, kind = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.push_made(Object(kind, (given, named)))


def _instance(m: PickleMachine) -> None:
    module, name = _text(m.take_line()), _text(m.take_line())
    m.push_made(Object(Name(module, name), tuple(m.since_mark())))


def _old_instance(m: PickleMachine) -> None:
    kind, *given = m.since_mark()
    m.push_made(Object(kind, tuple(given)))


def _build(m: PickleMachine) -> None:
    """A state concerns an object alone: what is data already stays as it is."""
    state = m.stack.pop()
    if isinstance(m.stack[-1], Object):
        m.stack[-1].state = state


def _append(m: PickleMachine) -> None:
    item = m.stack.pop()
    _extend(m.stack[-1], [item])


def _appends(m: PickleMachine) -> None:
    items = m.since_mark()
    _extend(m.stack[-1], items)


def _extend(target: object, items: list[object]) -> None:
    if isinstance(target, Object):
        target.items = [] if target.items is None else target.items
        target.items += items
    elif type(target) is list:
        target += items
    else:
        raise Damaged(f"a {type(target).__name__} is appended to")


def _set_item(m: PickleMachine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _update(m, m.stack[-1], [key, value])


def _set_items(m: PickleMachine) -> None:
    items = m.since_mark()
    _update(m, m.stack[-1], items)


def _update(m: PickleMachine, target: object, items: list[object]) -> None:
    if isinstance(target, Object):
        target.entries = {} if target.entries is None else target.entries
        target = target.entries
    if type(target) is not dict or len(items) % 2:
        raise Damaged(f"entries are set in a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[m.key(key)] = value


def _dict(m: PickleMachine) -> None:
    made: dict[object, object] = {}
    _update(m, made, m.since_mark())
    m.push_made(made)


def _frozenset(m: PickleMachine) -> None:
    made = Object(Name("builtins", "frozenset"))
    made.items = m.since_mark()
    m.push_made(made)


def _last(m: PickleMachine, count: int) -> None:
    """The last values as a tuple."""
    if len(m.stack) < count:
        raise Damaged("the stack is empty")
    made = tuple(m.stack[-count:])
    del m.stack[-count:]
    m.push_made(made)


def _pop(m: PickleMachine) -> None:
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.stack.pop()


def _remember(m: PickleMachine, place: int) -> None:
    m.memo[place] = m.stack[-1]


def _recall(m: PickleMachine, place: int) -> None:
    m.stack.append(m.memo[place])


def _stack_global(m: PickleMachine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    _global(m, module, name)


def _protocol(m: PickleMachine) -> None:
    if m.take_number(1) > pickle.HIGHEST_PROTOCOL:
        raise Damaged("its protocol is newer than any")


def _bytearray(m: PickleMachine) -> None:
    m.push_made(Object(Name("builtins", "bytearray"), (m.take_sized(8),)))


def _refuse(m: PickleMachine) -> None:
    raise Damaged("it uses a registry of extensions, or buffers that are not in the file")


_STOP = pickle.STOP[0]

_OPCODES: Mapping[bytes, Callable[[PickleMachine], object]] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: lambda m: m.take(8),
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.POP: _pop,
    pickle.POP_MARK: lambda m: m.since_mark(),
    pickle.DUP: lambda m: m.push(m.stack[-1]),
    # Atoms
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.INT: lambda m: m.push(_integer(m.take_line())),
    pickle.LONG: lambda m: m.push(int(m.take_line().removesuffix(b"L"))),
    pickle.BININT: lambda m: m.push(_read_signed(m.take(4))),
    pickle.BININT1: lambda m: m.stack.append(m.take(1)[0]),
    pickle.BININT2: lambda m: m.push(m.take_number(2)),
    pickle.LONG1: lambda m: m.push(_read_signed(m.take_sized(1))),
    pickle.LONG4: lambda m: m.push(_read_signed(m.take_sized(4))),
    pickle.FLOAT: lambda m: m.push(float(m.take_line())),
    pickle.BINFLOAT: lambda m: m.push(unpack(">d", m.take(8))[0]),
    pickle.STRING: lambda m: m.push(_unquote(m.take_line())),
    pickle.BINSTRING: lambda m: m.push(_old_text(m.take_sized(4))),
    pickle.SHORT_BINSTRING: lambda m: m.push(_old_text(m.take_sized(1))),
    pickle.UNICODE: lambda m: m.push(m.take_line().decode("raw-unicode-escape")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(_text(m.take_sized(1))),
    pickle.BINUNICODE: lambda m: m.push(_text(m.take_sized(4))),
    pickle.BINUNICODE8: lambda m: m.push(_text(m.take_sized(8))),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.take_sized(1)),
    pickle.BINBYTES: lambda m: m.push(m.take_sized(4)),
    pickle.BINBYTES8: lambda m: m.push(m.take_sized(8)),
    pickle.BYTEARRAY8: _bytearray,
    # Containers
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: _last(m, 1),
    pickle.TUPLE2: lambda m: _last(m, 2),
    pickle.TUPLE3: lambda m: _last(m, 3),
    pickle.TUPLE: lambda m: m.push_made(tuple(m.since_mark())),
    pickle.EMPTY_LIST: lambda m: m.push_made([]),
    pickle.LIST: lambda m: m.push_made(m.since_mark()),
    pickle.APPEND: _append,
    pickle.APPENDS: _appends,
    pickle.EMPTY_DICT: lambda m: m.push_made({}),
    pickle.DICT: _dict,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.EMPTY_SET: lambda m: m.push_made(Object(Name("builtins", "set"))),
    pickle.ADDITEMS: _appends,
    pickle.FROZENSET: _frozenset,
    # Memory
    pickle.PUT: lambda m: _remember(m, int(m.take_line())),
    pickle.BINPUT: lambda m: _remember(m, m.take(1)[0]),
    pickle.LONG_BINPUT: lambda m: _remember(m, int.from_bytes(m.take(4), "little")),
    pickle.MEMOIZE: lambda m: _remember(m, len(m.memo)),
    pickle.GET: lambda m: _recall(m, int(m.take_line())),
    pickle.BINGET: lambda m: _recall(m, m.take(1)[0]),
    pickle.LONG_BINGET: lambda m: _recall(m, int.from_bytes(m.take(4), "little")),
    # What an ordinary reader would import, call or create
    pickle.GLOBAL: lambda m: _global(m, _text(m.take_line()), _text(m.take_line())),
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _new,
    pickle.NEWOBJ_EX: _new_extended,
    pickle.INST: _instance,
    pickle.OBJ: _old_instance,
    pickle.BUILD: _build,
    pickle.PERSID: lambda m: m.push(m.persistent(_text(m.take_line()))),
    pickle.BINPERSID: lambda m: m.push_made(m.persistent(m.stack.pop())),
    **dict.fromkeys((pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), _refuse),
}

_STEPS = {code[0]: step for code, step in _OPCODES.items()}
