from encoders import matrix_pb2 as _matrix_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FLOAT32: _ClassVar[Precision]
    FLOAT16: _ClassVar[Precision]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNSPECIFIED: _ClassVar[Status]
    HIT: _ClassVar[Status]
    OOV: _ClassVar[Status]
    FAILED: _ClassVar[Status]
    UNAVAILABLE: _ClassVar[Status]
FLOAT32: Precision
FLOAT16: Precision
UNSPECIFIED: Status
HIT: Status
OOV: Status
FAILED: Status
UNAVAILABLE: Status

class LookupRequest(_message.Message):
    __slots__ = ("view", "keys", "precision")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    view: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    precision: Precision
    def __init__(self, view: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ..., precision: _Optional[_Union[Precision, str]] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("vectors", "status", "embedding_id", "event_time", "failures", "weights", "first")
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
    FIRST_FIELD_NUMBER: _ClassVar[int]
    vectors: _matrix_pb2.Matrix
    status: bytes
    embedding_id: _containers.RepeatedScalarFieldContainer[int]
    event_time: _containers.RepeatedScalarFieldContainer[int]
    failures: _containers.ScalarMap[int, str]
    weights: str
    first: int
    def __init__(self, vectors: _Optional[_Union[_matrix_pb2.Matrix, _Mapping]] = ..., status: _Optional[bytes] = ..., embedding_id: _Optional[_Iterable[int]] = ..., event_time: _Optional[_Iterable[int]] = ..., failures: _Optional[_Mapping[int, str]] = ..., weights: _Optional[str] = ..., first: _Optional[int] = ...) -> None: ...

class LookupManyRequest(_message.Message):
    __slots__ = ("service", "views", "columns", "precision")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    service: str
    views: _containers.RepeatedScalarFieldContainer[str]
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    precision: Precision
    def __init__(self, service: _Optional[str] = ..., views: _Optional[_Iterable[str]] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., precision: _Optional[_Union[Precision, str]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("join_key", "keys")
    JOIN_KEY_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    join_key: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, join_key: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ...) -> None: ...

class LookupManyReply(_message.Message):
    __slots__ = ("views",)
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    views: _containers.RepeatedCompositeFieldContainer[ViewReply]
    def __init__(self, views: _Optional[_Iterable[_Union[ViewReply, _Mapping]]] = ...) -> None: ...

class ViewReply(_message.Message):
    __slots__ = ("view", "reply")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    view: str
    reply: LookupReply
    def __init__(self, view: _Optional[str] = ..., reply: _Optional[_Union[LookupReply, _Mapping]] = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("view", "keys", "published_at", "bulk")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    BULK_FIELD_NUMBER: _ClassVar[int]
    view: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    published_at: _containers.RepeatedScalarFieldContainer[int]
    bulk: bool
    def __init__(self, view: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ..., published_at: _Optional[_Iterable[int]] = ..., bulk: _Optional[bool] = ...) -> None: ...

class AnnounceReply(_message.Message):
    __slots__ = ("requested",)
    REQUESTED_FIELD_NUMBER: _ClassVar[int]
    requested: int
    def __init__(self, requested: _Optional[int] = ...) -> None: ...
