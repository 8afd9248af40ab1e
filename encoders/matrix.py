"""Arrays on the wire: packed little-endian bytes with dtype and shape. Free of torch."""

import numpy as np
from numpy.typing import NDArray

from encoders.matrix_pb2 import Matrix


def pack(array: NDArray[np.float32]) -> Matrix:
    """`array` (rows, columns) float32 as a message: one copy."""
    packed = np.ascontiguousarray(array, dtype="<f4")
    return Matrix(data=packed.tobytes(), dtype="float32", shape=packed.shape)


def unpack(message: Matrix) -> NDArray[np.float32]:
    """The array (rows, columns) float32 of a message: a read-only view of its bytes.

    Raises:
        ValueError: another dtype, or a size that does not fit the shape.
    """
    if message.dtype != "float32":
        raise ValueError(f"dtype {message.dtype!r} is not supported, float32 is")
    array = np.frombuffer(message.data, dtype="<f4")
    return array.reshape(tuple(message.shape))
