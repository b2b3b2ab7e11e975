from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Start(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    START_UNSPECIFIED: _ClassVar[Start]
    START_EARLIEST: _ClassVar[Start]
    START_LATEST: _ClassVar[Start]
    START_LAST: _ClassVar[Start]

class AckMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_MODE_UNSPECIFIED: _ClassVar[AckMode]
    ACK_MODE_AUTO: _ClassVar[AckMode]
    ACK_MODE_EXPLICIT: _ClassVar[AckMode]

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_MESSAGE: _ClassVar[Kind]
    KIND_READY: _ClassVar[Kind]
    KIND_HEARTBEAT: _ClassVar[Kind]
    KIND_GAP: _ClassVar[Kind]
START_UNSPECIFIED: Start
START_EARLIEST: Start
START_LATEST: Start
START_LAST: Start
ACK_MODE_UNSPECIFIED: AckMode
ACK_MODE_AUTO: AckMode
ACK_MODE_EXPLICIT: AckMode
KIND_MESSAGE: Kind
KIND_READY: Kind
KIND_HEARTBEAT: Kind
KIND_GAP: Kind

class PublishItem(_message.Message):
    __slots__ = ("channel", "payload", "key", "blob", "expected_last_id")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_LAST_ID_FIELD_NUMBER: _ClassVar[int]
    channel: str
    payload: str
    key: str
    blob: bytes
    expected_last_id: int
    def __init__(self, channel: _Optional[str] = ..., payload: _Optional[str] = ..., key: _Optional[str] = ..., blob: _Optional[bytes] = ..., expected_last_id: _Optional[int] = ...) -> None: ...

class PublishBatchRequest(_message.Message):
    __slots__ = ("db_name", "items")
    DB_NAME_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    db_name: str
    items: _containers.RepeatedCompositeFieldContainer[PublishItem]
    def __init__(self, db_name: _Optional[str] = ..., items: _Optional[_Iterable[_Union[PublishItem, _Mapping]]] = ...) -> None: ...

class PublishBatchResponse(_message.Message):
    __slots__ = ("message_ids",)
    MESSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    message_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, message_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PublishStreamRequest(_message.Message):
    __slots__ = ("db_name", "items")
    DB_NAME_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    db_name: str
    items: _containers.RepeatedCompositeFieldContainer[PublishItem]
    def __init__(self, db_name: _Optional[str] = ..., items: _Optional[_Iterable[_Union[PublishItem, _Mapping]]] = ...) -> None: ...

class PublishStreamResponse(_message.Message):
    __slots__ = ("request", "message_ids", "error")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request: int
    message_ids: _containers.RepeatedScalarFieldContainer[int]
    error: PublishError
    def __init__(self, request: _Optional[int] = ..., message_ids: _Optional[_Iterable[int]] = ..., error: _Optional[_Union[PublishError, _Mapping]] = ...) -> None: ...

class PublishError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("db_name", "subscription_name", "channel", "channels", "patterns", "start", "after", "since", "ack_mode", "last_message_id", "heartbeat_seconds", "status", "filter")
    DB_NAME_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_NAME_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    ACK_MODE_FIELD_NUMBER: _ClassVar[int]
    LAST_MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    db_name: str
    subscription_name: str
    channel: str
    channels: _containers.RepeatedScalarFieldContainer[str]
    patterns: _containers.RepeatedScalarFieldContainer[str]
    start: Start
    after: int
    since: _timestamp_pb2.Timestamp
    ack_mode: AckMode
    last_message_id: int
    heartbeat_seconds: int
    status: bool
    filter: str
    def __init__(self, db_name: _Optional[str] = ..., subscription_name: _Optional[str] = ..., channel: _Optional[str] = ..., channels: _Optional[_Iterable[str]] = ..., patterns: _Optional[_Iterable[str]] = ..., start: _Optional[_Union[Start, str]] = ..., after: _Optional[int] = ..., since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ack_mode: _Optional[_Union[AckMode, str]] = ..., last_message_id: _Optional[int] = ..., heartbeat_seconds: _Optional[int] = ..., status: bool = ..., filter: _Optional[str] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("message_id", "channel", "payload", "blob", "created_at", "missed", "kind", "head")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    message_id: int
    channel: str
    payload: str
    blob: bytes
    created_at: _timestamp_pb2.Timestamp
    missed: int
    kind: Kind
    head: int
    def __init__(self, message_id: _Optional[int] = ..., channel: _Optional[str] = ..., payload: _Optional[str] = ..., blob: _Optional[bytes] = ..., created_at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., missed: _Optional[int] = ..., kind: _Optional[_Union[Kind, str]] = ..., head: _Optional[int] = ...) -> None: ...

class AckRequest(_message.Message):
    __slots__ = ("db_name", "subscription_name", "message_id")
    DB_NAME_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTION_NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    db_name: str
    subscription_name: str
    message_id: int
    def __init__(self, db_name: _Optional[str] = ..., subscription_name: _Optional[str] = ..., message_id: _Optional[int] = ...) -> None: ...

class AckResponse(_message.Message):
    __slots__ = ("cursor",)
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    def __init__(self, cursor: _Optional[int] = ...) -> None: ...
