"""Reads checked tensors from safetensors files: one file, or shards with an index."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.json_files import read_json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["Checkpoint", "open_checkpoint"]

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_STORED_DTYPES = ("F32", "F16", "BF16")


class Checkpoint:
    """The tensors of a model directory by name; usable while :func:`open_checkpoint` is open.

    It remembers which names were taken, so that :meth:`check_all_taken` can refuse a file
    with weights that the model would silently ignore.
    """

    def __init__(self, path: Path, files: Mapping[str, Any]) -> None:
        self._path = path
        self._files = files
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        rows: Sequence[slice] | None = None,
        columns: slice | None = None,
    ) -> Tensor:
        """Return a copy of a tensor, or of a part of it, converted to ``dtype``.

        Args:
            name: Of the tensor.
            shape: Of all of it.
            dtype: Of the copy.
            rows: To read, one after the other; None for all.
            columns: To read of a matrix; None for all. One of the two is None.

        Raises:
            ModelDirectoryError: It is missing, or has another shape or an unknown dtype.
        """
        if name not in self._files:
            raise ModelDirectoryError(
                f"{self._path}: the tensor {name} {list(shape)} is missing: "
                "download all weight files of the model again"
            )
        file = self._files[name]
        piece = file.get_slice(name)
        found_shape, found_dtype = tuple(piece.get_shape()), str(piece.get_dtype())
        if found_shape != shape:
            raise ModelDirectoryError(
                f"{self._path}: the tensor {name} should have the shape {list(shape)} "
                f"according to config.json, but it has {list(found_shape)}: "
                "use the config.json that belongs to these weights"
            )
        if found_dtype not in _STORED_DTYPES:
            raise ModelDirectoryError(
                f"{self._path}: the tensor {name} has the dtype {found_dtype}, but only "
                f"{', '.join(_STORED_DTYPES)} are supported: use an unquantized checkpoint"
            )
        self._taken.add(name)
        # A copy, because the original is a view of the mapped file: were that truncated
        # later, reading it would kill the process with SIGBUS.
        if rows is not None:
            parts = [cast("Tensor", piece[part]).to(dtype, copy=True) for part in rows]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        if columns is not None:
            return cast("Tensor", piece[:, columns]).to(dtype, copy=True).contiguous()
        tensor = cast("Tensor", file.get_tensor(name))
        return tensor.to(dtype, copy=True)

    def check_all_taken(self, *, ignore: Callable[[str], bool]) -> None:
        """Raise if the files hold a tensor that nobody took and that ``ignore`` denies.

        Raises:
            ModelDirectoryError: There is one, for example the bias of a linear layer.
        """
        left = sorted(n for n in self._files if n not in self._taken and not ignore(n))
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ModelDirectoryError(
                f"{self._path}: the weights hold tensors that this architecture does not "
                f"use ({', '.join(left[:3])}{more}), and ignoring them would change the "
                "results: serve another model"
            )


@contextmanager
def open_checkpoint(path: Path) -> Generator[Checkpoint]:
    """Open the weight files of a model directory for reading.

    Raises:
        ModelDirectoryError: A file is missing, truncated or corrupt.
    """
    with ExitStack() as stack:
        if (path / _SINGLE_FILE).exists():
            file = stack.enter_context(_open_file(path / _SINGLE_FILE))
            yield Checkpoint(path, dict.fromkeys(file.keys(), file))
        else:
            yield Checkpoint(path, _open_shards(path, stack))


def _open_shards(path: Path, stack: ExitStack) -> dict[str, Any]:
    index_path = path / _INDEX_FILE
    if not index_path.exists():
        raise ModelDirectoryError(
            f"{path}: expected {_SINGLE_FILE} or {_INDEX_FILE}, but found neither: "
            "download the weights as safetensors (other formats are not supported)"
        )
    weight_map: object = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelDirectoryError(
            f"{index_path}: weight_map should be an object from tensor to file name, but "
            f"it is {weight_map!r}: download the file again"
        )
    shard_by_tensor = cast("dict[str, Any]", weight_map)
    shards: dict[str, Any] = {}
    for file_name in dict.fromkeys(shard_by_tensor.values()):
        if not _is_plain_file_name(file_name):
            raise ModelDirectoryError(
                f"{index_path}: weight_map should name files of this directory, but it "
                f"names {file_name!r}: download the file again"
            )
        shards[file_name] = stack.enter_context(_open_file(path / file_name))
    names_by_shard = {name: set(shard.keys()) for name, shard in shards.items()}
    for tensor, file_name in shard_by_tensor.items():
        if tensor not in names_by_shard[file_name]:
            raise ModelDirectoryError(
                f"{path / file_name}: the tensor {tensor} is missing, though {_INDEX_FILE} "
                "says that it is here: download the weight files again"
            )
    return {tensor: shards[name] for tensor, name in shard_by_tensor.items()}


def _is_plain_file_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and not set(name) & set("/\\\0")


def _open_file(path: Path) -> Any:
    if not path.is_file():
        raise ModelDirectoryError(
            f"{path}: the weight file is missing: download all shards of the model"
        )
    try:
        return cast("Any", safe_open(str(path), framework="pt", device="cpu"))
    except (SafetensorError, OSError) as error:
        raise ModelDirectoryError(
            f"{path}: expected a complete safetensors file, but it cannot be read "
            f"({error}): download it again"
        ) from error
