"""Protobuf's wire format, as far as replies are written by hand: numbers of fields, and what stands before bytes."""

from encoders.matrix_pb2 import Matrix
from serving.embark_pb2 import LookupReply

BYTES_FIELD = 2  # protobuf's wire type of what has a length
# Numbers of fields, as in the .proto files.
DATA = Matrix.DATA_FIELD_NUMBER
VECTORS = LookupReply.VECTORS_FIELD_NUMBER
STATUS = LookupReply.STATUS_FIELD_NUMBER
EMBEDDING_ID = LookupReply.EMBEDDING_ID_FIELD_NUMBER
EVENT_TIME = LookupReply.EVENT_TIME_FIELD_NUMBER
VIEW, REPLY, VIEWS = 1, 2, 1  # of ViewReply and LookupManyReply


def head(number: int, length: int, *, wide: bool = False) -> bytes:
    """The tag and the length of a field of bytes; six bytes of them where it is `wide`, as protobuf allows."""
    out = bytearray((number << 3 | BYTES_FIELD,))
    while length > 0x7F or (wide and len(out) < 5):
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
