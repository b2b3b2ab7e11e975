"""Descriptors of protobuf-py for code that was generated for Google's protobuf."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from protobuf.wkt import Timestamp


def file_descriptor(serialized: bytes, name: str) -> Any:
    """The descriptor of a .proto file under a name of its own; ``None`` if it cannot be made.

    connectrpc-grpcreflect takes descriptors of protobuf-py, which has no documented way to make one at run time. The
    function here is the one that the code of its generator calls. Without it there is no reflection.
    """
    try:
        from protobuf._codegen import file_desc
    except ImportError:
        return None
    proto = FileDescriptorProto.FromString(serialized)
    proto.name = name
    return file_desc(proto.SerializeToString(), [Timestamp.desc().file], {})
