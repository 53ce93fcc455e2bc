"""Reader of CTranslate2's `model.bin`, the format in which Whisper is packed for PyPI.

Little-endian, without padding or a checksum:

    uint32  version of the format, 6
    string  specification, for example "WhisperSpec"
    uint32  revision of the specification
    uint32  number of variables, then for each
        string  name
        uint8   rank, then rank x uint32 dimensions
        uint8   type: 0 float32, 1 int8, 2 int16, 3 int32, 4 float16
        uint32  bytes that follow
    uint32  number of aliases, then for each two strings: the alias and the variable it names

A string is a uint16 length that counts the closing zero byte, and the bytes.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smyrf.compare.problem import Problem

Array = npt.NDArray[Any]

VERSION = 6
TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
# Far above what any model has; a corrupted count stops here and not after a long loop.
MOST_VARIABLES = 100_000
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class ModelFile:
    """What a `model.bin` holds: arrays by name, read-only, in the type and shape of the file."""

    path: Path
    specification: str
    revision: int
    variables: dict[str, Array]


class _Cursor:
    """Walks through the bytes; every read names what it was for, and none leaves the file."""

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def problem(self, what: str) -> Problem:
        return Problem(
            f"{self.path}: {what}; the file is damaged or no CTranslate2 model, "
            "install or convert it again"
        )

    def skip(self, count: int, what: str) -> int:
        start = self.position
        if count > len(self.data) - start:
            raise self.problem(
                f"{what} needs {count} bytes at byte {start}, and the file has {len(self.data)}"
            )
        self.position += count
        return start

    def number(self, kind: str, what: str) -> int:
        start = self.skip(struct.calcsize(kind), what)
        return int(struct.unpack_from("<" + kind, self.data, start)[0])

    def string(self, what: str) -> str:
        length = self.number("H", f"the length of {what}")
        start = self.skip(length, what)
        raw = bytes(self.data[start : start + length])
        if len(raw) < 2 or raw.find(b"\0") != length - 1:
            raise self.problem(f"{what} at byte {start} is no string with one closing zero")
        try:
            return raw[:-1].decode("utf-8")
        except UnicodeDecodeError:
            raise self.problem(f"{what} at byte {start} is not UTF-8") from None

    def count(self, what: str) -> int:
        count = self.number("I", f"the number of {what}")
        if count > MOST_VARIABLES:
            raise self.problem(f"it names {count} {what}, more than {MOST_VARIABLES}")
        return count

    def variable(self, name: str) -> Array:
        rank = self.number("B", f"the rank of {name}")
        if rank > MOST_DIMENSIONS:
            raise self.problem(f"{name} has {rank} dimensions, more than {MOST_DIMENSIONS}")
        shape = tuple(self.number("I", f"the shape of {name}") for _ in range(rank))
        code = self.number("B", f"the type of {name}")
        if code not in TYPES:
            raise self.problem(
                f"{name} has the unknown type {code}, known are 0 to {len(TYPES) - 1}"
            )
        dtype = np.dtype(TYPES[code])
        size = self.number("I", f"the size of {name}")
        if size != math.prod(shape) * dtype.itemsize:
            raise self.problem(f"{name} has {size} bytes, which is not {shape} of {dtype.name}")
        start = self.skip(size, f"the values of {name}")
        return np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape)


def read_model_file(path: Path) -> ModelFile:
    """Reads a `model.bin`; its arrays stay mapped to the file and are read-only.

    Raises Problem if the file is missing, truncated, damaged, or of another version.
    """
    try:
        with path.open("rb") as file:
            data: bytes | mmap.mmap = b""
            if file.seek(0, 2) > 0:  # an empty file can't be mapped
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise Problem(f"{path}: can't be read ({error.strerror})") from error

    cursor = _Cursor(path, data)
    version = cursor.number("I", "the version of the format")
    if version != VERSION:
        raise cursor.problem(f"version {version} of the format, this reader knows {VERSION}")
    specification = cursor.string("the specification's name")
    revision = cursor.number("I", "the revision")

    variables: dict[str, Array] = {}
    for index in range(cursor.count("variables")):
        name = cursor.string(f"the name of variable {index}")
        if name in variables:
            raise cursor.problem(f"variable {name} is there twice")
        variables[name] = cursor.variable(name)
    for index in range(cursor.count("aliases")):
        alias = cursor.string(f"the name of alias {index}")
        target = cursor.string(f"the target of alias {alias}")
        if alias in variables or target not in variables:
            raise cursor.problem(f"alias {alias} of {target} does not fit the variables")
        variables[alias] = variables[target]
    if cursor.position != len(data):
        raise cursor.problem(f"{len(data) - cursor.position} bytes follow the last alias")
    return ModelFile(path, specification, revision, variables)
