from encoders import matrix_pb2 as _matrix_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncodeRequest(_message.Message):
    __slots__ = ("view", "fingerprint", "keys")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    view: str
    fingerprint: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, view: _Optional[str] = ..., fingerprint: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ...) -> None: ...

class EncodeReply(_message.Message):
    __slots__ = ("fingerprint", "vectors", "outcomes")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    vectors: _matrix_pb2.Matrix
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, fingerprint: _Optional[str] = ..., vectors: _Optional[_Union[_matrix_pb2.Matrix, _Mapping]] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("reason", "detail", "retryable", "content_hash")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    reason: str
    detail: str
    retryable: bool
    content_hash: bytes
    def __init__(self, reason: _Optional[str] = ..., detail: _Optional[str] = ..., retryable: _Optional[bool] = ..., content_hash: _Optional[bytes] = ...) -> None: ...

class EncodersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EncodersReply(_message.Message):
    __slots__ = ("encoders",)
    class Encoder(_message.Message):
        __slots__ = ("view", "fingerprint", "weights", "loaded", "device", "dim")
        VIEW_FIELD_NUMBER: _ClassVar[int]
        FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
        WEIGHTS_FIELD_NUMBER: _ClassVar[int]
        LOADED_FIELD_NUMBER: _ClassVar[int]
        DEVICE_FIELD_NUMBER: _ClassVar[int]
        DIM_FIELD_NUMBER: _ClassVar[int]
        view: str
        fingerprint: str
        weights: str
        loaded: bool
        device: str
        dim: int
        def __init__(self, view: _Optional[str] = ..., fingerprint: _Optional[str] = ..., weights: _Optional[str] = ..., loaded: _Optional[bool] = ..., device: _Optional[str] = ..., dim: _Optional[int] = ...) -> None: ...
    ENCODERS_FIELD_NUMBER: _ClassVar[int]
    encoders: _containers.RepeatedCompositeFieldContainer[EncodersReply.Encoder]
    def __init__(self, encoders: _Optional[_Iterable[_Union[EncodersReply.Encoder, _Mapping]]] = ...) -> None: ...
