from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PublicRequest(_message.Message):
    __slots__ = ("run", "serial", "scheme", "cohort")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    run: str
    serial: int
    scheme: str
    cohort: str
    def __init__(self, run: _Optional[str] = ..., serial: _Optional[int] = ..., scheme: _Optional[str] = ..., cohort: _Optional[str] = ...) -> None: ...

class PublicReply(_message.Message):
    __slots__ = ("public",)
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    public: bytes
    def __init__(self, public: _Optional[bytes] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("manifest", "manifest_signature", "server_certificate", "cohort", "commitments", "digest", "signature")
    class CommitmentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SERVER_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    manifest_signature: bytes
    server_certificate: bytes
    cohort: _containers.RepeatedScalarFieldContainer[str]
    commitments: _containers.ScalarMap[str, bytes]
    digest: bytes
    signature: bytes
    def __init__(self, manifest: _Optional[bytes] = ..., manifest_signature: _Optional[bytes] = ..., server_certificate: _Optional[bytes] = ..., cohort: _Optional[_Iterable[str]] = ..., commitments: _Optional[_Mapping[str, bytes]] = ..., digest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Site(_message.Message):
    __slots__ = ("certificate", "signature")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    signature: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class DecryptRequest(_message.Message):
    __slots__ = ("opening", "site", "piece")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    site: Site
    piece: bytes
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., site: _Optional[_Union[Site, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class DecryptReply(_message.Message):
    __slots__ = ("piece",)
    PIECE_FIELD_NUMBER: _ClassVar[int]
    piece: bytes
    def __init__(self, piece: _Optional[bytes] = ...) -> None: ...
