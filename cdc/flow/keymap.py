"""Which row an element of an index is: keys to labels and back, in arrays where keys have a fixed width.

Labels count up from 0 and are never used again, so the keys by label are one array. A key of integers or UUIDs takes
its own width twice and no Python object; any other is a byte string in a dictionary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cdc.flow.keycodec import IndexKey, KeyCodec, Keys

Labels = NDArray[np.int64]


class KeyMap(ABC):
    """Keys by label, labels by key. Not thread-safe, but that :meth:`keys` may be called beside a change."""

    def __init__(self) -> None:
        self._live = np.zeros(1024, np.bool_)
        self._count = 0

    @property
    def live(self) -> NDArray[np.bool_]:
        """By label, whether it stands for a row."""
        return self._live[: self._count]

    def put(self, keys: Sequence[IndexKey] | Keys) -> tuple[Labels, Labels]:
        """Give each key a new label; return these, and the labels they had (-1: none). No key may come twice."""
        old = np.fromiter((self.find(key) for key in _scalars(keys)), np.int64, len(keys))
        self._live[old[old >= 0]] = False
        labels = self._new_labels(len(keys))
        self._store(labels, keys)
        for key, label in zip(_scalars(keys), labels.tolist(), strict=True):
            self._point(key, label)
        return labels, old

    def append(self, keys: Keys) -> Labels:
        """Give keys that are not there yet a label each: a base is loaded so."""
        labels = self._new_labels(len(keys))
        self._store(labels, keys)
        self._appended(labels, keys)
        return labels

    def drop(self, key: IndexKey) -> int:
        """Forget a key; return the label it had, -1 if none."""
        label = self.find(key)
        if label >= 0:
            self._live[label] = False
            self._point(key, -1)
        return label

    def rename(self, old: IndexKey, new: IndexKey) -> tuple[int, int]:
        """Let ``new`` have the label of ``old``; return it and the label that ``new`` had, -1 where there is none."""
        label = self.find(old)
        if label < 0 or old == new:
            return label, -1
        displaced = self.drop(new)
        self._point(old, -1)
        self._store(np.array([label]), [new])
        self._point(new, label)
        return label, displaced

    def _new_labels(self, count: int) -> Labels:
        first, self._count = self._count, self._count + count
        if self._count > len(self._live):
            self._live = _grown(self._live, self._count)
        self._live[first : self._count] = True
        return np.arange(first, self._count, dtype=np.int64)

    @abstractmethod
    def find(self, key: IndexKey) -> int:
        """Return the label of a key, -1 if there is none."""

    @abstractmethod
    def keys(self, labels: Labels) -> list[IndexKey]:
        """Return the keys of labels, deleted ones too."""

    @abstractmethod
    def take(self, labels: Labels) -> Keys:
        """Return the same as an array."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all that :meth:`restore` needs, as arrays that hold no Python object."""

    @abstractmethod
    def _store(self, labels: Labels, keys: Sequence[IndexKey] | Keys) -> None: ...

    @abstractmethod
    def _point(self, key: IndexKey, label: int) -> None: ...

    @abstractmethod
    def _appended(self, labels: Labels, keys: Keys) -> None: ...


class FixedKeyMap(KeyMap):
    """Keys in one array: a sorted copy of those that were appended answers, and a dictionary of those changed since."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        super().__init__()
        self._keys = np.zeros(1024, dtype)
        self._sorted: Keys = np.empty(0, dtype)
        self._order: Labels = np.empty(0, np.int64)
        self._unsorted = False
        self._since: dict[IndexKey, int] = {}

    @classmethod
    def restore(cls, arrays: dict[str, NDArray[Any]]) -> FixedKeyMap:
        """Return the map that :meth:`arrays` told of."""
        made = cls(arrays["keys"].dtype)
        made._count = len(arrays["keys"])
        made._keys, made._live = _grown(arrays["keys"], made._count), _grown(arrays["live"], made._count)
        made._unsorted = True
        return made

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"keys": self._keys[: self._count].copy(), "live": self.live.copy()}

    def find(self, key: IndexKey) -> int:
        if self._unsorted:
            self._sort()
        label = self._since.get(key)
        if label is not None:
            return label
        place = int(np.searchsorted(self._sorted, np.array(key, self._keys.dtype)))
        if place < len(self._sorted) and self._sorted[place].item() == key:
            return int(self._order[place])
        return -1

    def _sort(self) -> None:
        """Sort what lives; every label in ``_since`` is in the array by then."""
        labels = np.flatnonzero(self.live)
        keys = self._keys[labels]
        order = np.argsort(keys, kind="stable")
        self._sorted, self._order = keys[order], labels[order]
        self._since.clear()
        self._unsorted = False

    def keys(self, labels: Labels) -> list[IndexKey]:
        return cast(list[IndexKey], self._keys[labels].tolist())

    def take(self, labels: Labels) -> Keys:
        return self._keys[labels]

    def _store(self, labels: Labels, keys: Sequence[IndexKey] | Keys) -> None:
        if self._count > len(self._keys):
            self._keys = _grown(self._keys, self._count)
        self._keys[labels] = keys

    def _point(self, key: IndexKey, label: int) -> None:
        self._since[key] = label

    def _appended(self, labels: Labels, keys: Keys) -> None:
        self._unsorted = True


class TextKeyMap(KeyMap):
    """Keys of any width."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: list[bytes] = []
        self._labels: dict[bytes, int] = {}

    @classmethod
    def restore(cls, arrays: dict[str, NDArray[Any]]) -> TextKeyMap:
        """Return the map that :meth:`arrays` told of."""
        made = cls()
        blob, ends = arrays["blob"].tobytes(), arrays["ends"].tolist()
        made._keys = [blob[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        made._count = len(made._keys)
        made._live = _grown(arrays["live"], made._count)
        made._labels = {made._keys[label]: label for label in np.flatnonzero(made.live).tolist()}
        return made

    def arrays(self) -> dict[str, NDArray[Any]]:
        ends = np.cumsum([len(key) for key in self._keys], dtype=np.int64)
        blob = np.frombuffer(b"".join(self._keys), np.uint8)
        return {"blob": blob, "ends": ends, "live": self.live.copy()}

    def find(self, key: IndexKey) -> int:
        return self._labels.get(cast(bytes, key), -1)

    def keys(self, labels: Labels) -> list[IndexKey]:
        return [self._keys[label] for label in labels.tolist()]

    def take(self, labels: Labels) -> Keys:
        return np.array(self.keys(labels), object)

    def _store(self, labels: Labels, keys: Sequence[IndexKey] | Keys) -> None:
        for label, key in zip(labels.tolist(), keys, strict=True):
            if label == len(self._keys):
                self._keys.append(key)
            else:
                self._keys[label] = key

    def _point(self, key: IndexKey, label: int) -> None:
        if label < 0:
            self._labels.pop(cast(bytes, key), None)
        else:
            self._labels[cast(bytes, key)] = label

    def _appended(self, labels: Labels, keys: Keys) -> None:
        self._labels.update(zip(keys, labels.tolist(), strict=True))


def new_map(codec: KeyCodec) -> KeyMap:
    """Return an empty map for keys of ``codec``."""
    return FixedKeyMap(codec.dtype) if codec.is_fixed else TextKeyMap()


def restore(codec: KeyCodec, arrays: dict[str, NDArray[Any]]) -> KeyMap:
    """Return the map of keys of ``codec`` that ``arrays`` tells of."""
    return FixedKeyMap.restore(arrays) if codec.is_fixed else TextKeyMap.restore(arrays)


def _scalars(keys: Sequence[IndexKey] | Keys) -> Sequence[IndexKey]:
    return cast(Sequence[IndexKey], keys.tolist()) if isinstance(keys, np.ndarray) else keys


def _grown(array: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a copy with room for ``count`` elements and half as many more."""
    grown = np.zeros(max(1024, count * 3 // 2), array.dtype)
    grown[: len(array)] = array
    return grown
