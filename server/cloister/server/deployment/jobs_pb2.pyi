from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Call(_message.Message):
    __slots__ = ("said", "signature", "certificate")
    SAID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    said: bytes
    signature: bytes
    certificate: bytes
    def __init__(self, said: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("call", "request", "signature", "federation")
    CALL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    call: Call
    request: bytes
    signature: bytes
    federation: str
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., request: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., federation: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("run", "name", "user", "submitted", "state", "attempts", "code", "message", "ended")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    run: str
    name: str
    user: str
    submitted: float
    state: str
    attempts: int
    code: str
    message: str
    ended: float
    def __init__(self, run: _Optional[str] = ..., name: _Optional[str] = ..., user: _Optional[str] = ..., submitted: _Optional[float] = ..., state: _Optional[str] = ..., attempts: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., ended: _Optional[float] = ...) -> None: ...

class JobReply(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: Call
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("call", "run", "offset")
    CALL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    call: Call
    run: str
    offset: int
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., run: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("job", "events", "offset")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    job: Job
    events: bytes
    offset: int
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., events: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("call", "run")
    CALL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    call: Call
    run: str
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., run: _Optional[str] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("call", "run")
    CALL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    call: Call
    run: str
    def __init__(self, call: _Optional[_Union[Call, _Mapping]] = ..., run: _Optional[str] = ...) -> None: ...

class DownloadReply(_message.Message):
    __slots__ = ("file", "piece")
    FILE_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    file: File
    piece: bytes
    def __init__(self, file: _Optional[_Union[File, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("name", "size", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    sha256: bytes
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...
