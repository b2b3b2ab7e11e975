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

class Argument(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class LiveQueryRequest(_message.Message):
    __slots__ = ("db_name", "sql", "table", "query", "key", "args", "heartbeat_seconds")
    DB_NAME_FIELD_NUMBER: _ClassVar[int]
    SQL_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    db_name: str
    sql: str
    table: str
    query: str
    key: _containers.RepeatedScalarFieldContainer[str]
    args: _containers.RepeatedCompositeFieldContainer[Argument]
    heartbeat_seconds: int
    def __init__(self, db_name: _Optional[str] = ..., sql: _Optional[str] = ..., table: _Optional[str] = ..., query: _Optional[str] = ..., key: _Optional[_Iterable[str]] = ..., args: _Optional[_Iterable[_Union[Argument, _Mapping]]] = ..., heartbeat_seconds: _Optional[int] = ...) -> None: ...

class LiveQueryResponse(_message.Message):
    __slots__ = ("head", "snapshot", "change", "error")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    head: int
    snapshot: Snapshot
    change: Change
    error: LiveQueryError
    def __init__(self, head: _Optional[int] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., change: _Optional[_Union[Change, _Mapping]] = ..., error: _Optional[_Union[LiveQueryError, _Mapping]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("columns", "key", "rows", "count")
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    columns: _containers.RepeatedScalarFieldContainer[str]
    key: _containers.RepeatedScalarFieldContainer[str]
    rows: _containers.RepeatedScalarFieldContainer[str]
    count: int
    def __init__(self, columns: _Optional[_Iterable[str]] = ..., key: _Optional[_Iterable[str]] = ..., rows: _Optional[_Iterable[str]] = ..., count: _Optional[int] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("removed", "inserted", "changed", "count")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    INSERTED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedCompositeFieldContainer[PlacedRow]
    inserted: _containers.RepeatedCompositeFieldContainer[PlacedRow]
    changed: _containers.RepeatedCompositeFieldContainer[PlacedRow]
    count: int
    def __init__(self, removed: _Optional[_Iterable[_Union[PlacedRow, _Mapping]]] = ..., inserted: _Optional[_Iterable[_Union[PlacedRow, _Mapping]]] = ..., changed: _Optional[_Iterable[_Union[PlacedRow, _Mapping]]] = ..., count: _Optional[int] = ...) -> None: ...

class PlacedRow(_message.Message):
    __slots__ = ("at", "row", "was")
    AT_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    WAS_FIELD_NUMBER: _ClassVar[int]
    at: int
    row: str
    was: str
    def __init__(self, at: _Optional[int] = ..., row: _Optional[str] = ..., was: _Optional[str] = ...) -> None: ...

class LiveQueryError(_message.Message):
    __slots__ = ("code", "message", "field", "limit")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    field: str
    limit: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., limit: _Optional[str] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("field", "limit", "retry_after_seconds", "ended")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    field: str
    limit: str
    retry_after_seconds: int
    ended: str
    def __init__(self, field: _Optional[str] = ..., limit: _Optional[str] = ..., retry_after_seconds: _Optional[int] = ..., ended: _Optional[str] = ...) -> None: ...
