from encoders import matrix_pb2 as _matrix_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNSPECIFIED: _ClassVar[Status]
    HIT: _ClassVar[Status]
    OOV: _ClassVar[Status]
    FAILED: _ClassVar[Status]
    UNAVAILABLE: _ClassVar[Status]
UNSPECIFIED: Status
HIT: Status
OOV: Status
FAILED: Status
UNAVAILABLE: Status

class LookupRequest(_message.Message):
    __slots__ = ("view", "keys")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    view: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, view: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("vectors", "status", "embedding_id", "event_time", "failures", "weights")
    class FailuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    vectors: _matrix_pb2.Matrix
    status: bytes
    embedding_id: _containers.RepeatedScalarFieldContainer[int]
    event_time: _containers.RepeatedScalarFieldContainer[int]
    failures: _containers.ScalarMap[int, str]
    weights: str
    def __init__(self, vectors: _Optional[_Union[_matrix_pb2.Matrix, _Mapping]] = ..., status: _Optional[bytes] = ..., embedding_id: _Optional[_Iterable[int]] = ..., event_time: _Optional[_Iterable[int]] = ..., failures: _Optional[_Mapping[int, str]] = ..., weights: _Optional[str] = ...) -> None: ...
