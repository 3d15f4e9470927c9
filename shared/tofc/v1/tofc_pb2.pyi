from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]
    IMAGE_FORMAT_AVIF: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JXL: _ClassVar[ImageFormat]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
IMAGE_FORMAT_AVIF: ImageFormat
IMAGE_FORMAT_JXL: ImageFormat
ROLE_UNSPECIFIED: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_SYSTEM: Role
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CANCELLED: FinishReason

class SessionRequest(_message.Message):
    __slots__ = ("hello", "pictures", "views", "image_chunks", "asks", "cancels")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    ASKS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    pictures: _containers.RepeatedCompositeFieldContainer[Picture]
    views: _containers.RepeatedCompositeFieldContainer[View]
    image_chunks: _containers.RepeatedCompositeFieldContainer[ImageChunk]
    asks: _containers.RepeatedCompositeFieldContainer[Ask]
    cancels: _containers.RepeatedCompositeFieldContainer[Cancel]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., pictures: _Optional[_Iterable[_Union[Picture, _Mapping]]] = ..., views: _Optional[_Iterable[_Union[View, _Mapping]]] = ..., image_chunks: _Optional[_Iterable[_Union[ImageChunk, _Mapping]]] = ..., asks: _Optional[_Iterable[_Union[Ask, _Mapping]]] = ..., cancels: _Optional[_Iterable[_Union[Cancel, _Mapping]]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("welcome", "picture_state", "view_ack", "token", "done", "error", "need_picture", "image_ack", "progress", "rollout")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    PICTURE_STATE_FIELD_NUMBER: _ClassVar[int]
    VIEW_ACK_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEED_PICTURE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ACK_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    picture_state: PictureState
    view_ack: ViewAck
    token: Token
    done: Done
    error: Error
    need_picture: NeedPicture
    image_ack: ImageAck
    progress: Progress
    rollout: Rollout
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., picture_state: _Optional[_Union[PictureState, _Mapping]] = ..., view_ack: _Optional[_Union[ViewAck, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., need_picture: _Optional[_Union[NeedPicture, _Mapping]] = ..., image_ack: _Optional[_Union[ImageAck, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., rollout: _Optional[_Union[Rollout, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("client_version", "model_id", "codec_id")
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    client_version: str
    model_id: str
    codec_id: str
    def __init__(self, client_version: _Optional[str] = ..., model_id: _Optional[str] = ..., codec_id: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("server_version", "model_id", "codec_id", "limits", "picture_key", "samples_by_default", "thinking")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PICTURE_KEY_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_BY_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    model_id: str
    codec_id: str
    limits: Limits
    picture_key: bytes
    samples_by_default: bool
    thinking: bool
    def __init__(self, server_version: _Optional[str] = ..., model_id: _Optional[str] = ..., codec_id: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., picture_key: _Optional[bytes] = ..., samples_by_default: bool = ..., thinking: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("packet_bytes", "views_per_picture", "pictures_per_question", "questions_in_flight", "question_bytes", "new_tokens", "image_bytes", "image_pixels", "samples", "stop_texts", "context_tokens", "views_per_packet")
    PACKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    VIEWS_PER_PICTURE_FIELD_NUMBER: _ClassVar[int]
    PICTURES_PER_QUESTION_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    QUESTION_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    STOP_TEXTS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VIEWS_PER_PACKET_FIELD_NUMBER: _ClassVar[int]
    packet_bytes: int
    views_per_picture: int
    pictures_per_question: int
    questions_in_flight: int
    question_bytes: int
    new_tokens: int
    image_bytes: int
    image_pixels: int
    samples: int
    stop_texts: int
    context_tokens: int
    views_per_packet: int
    def __init__(self, packet_bytes: _Optional[int] = ..., views_per_picture: _Optional[int] = ..., pictures_per_question: _Optional[int] = ..., questions_in_flight: _Optional[int] = ..., question_bytes: _Optional[int] = ..., new_tokens: _Optional[int] = ..., image_bytes: _Optional[int] = ..., image_pixels: _Optional[int] = ..., samples: _Optional[int] = ..., stop_texts: _Optional[int] = ..., context_tokens: _Optional[int] = ..., views_per_packet: _Optional[int] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("ref", "picture_id", "rows", "columns", "image", "want_state")
    REF_FIELD_NUMBER: _ClassVar[int]
    PICTURE_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    WANT_STATE_FIELD_NUMBER: _ClassVar[int]
    ref: int
    picture_id: bytes
    rows: int
    columns: int
    image: Image
    want_state: bool
    def __init__(self, ref: _Optional[int] = ..., picture_id: _Optional[bytes] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., want_state: bool = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("format", "width", "height")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    width: int
    height: int
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class PictureState(_message.Message):
    __slots__ = ("ref", "complete", "views", "image")
    REF_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ref: int
    complete: bool
    views: _containers.RepeatedScalarFieldContainer[int]
    image: ReceivedImage
    def __init__(self, ref: _Optional[int] = ..., complete: bool = ..., views: _Optional[_Iterable[int]] = ..., image: _Optional[_Union[ReceivedImage, _Mapping]] = ...) -> None: ...

class ReceivedImage(_message.Message):
    __slots__ = ("bytes", "crc32")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    crc32: int
    def __init__(self, bytes: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("ref", "index", "packets", "views")
    REF_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    ref: int
    index: int
    packets: _containers.RepeatedScalarFieldContainer[bytes]
    views: int
    def __init__(self, ref: _Optional[int] = ..., index: _Optional[int] = ..., packets: _Optional[_Iterable[bytes]] = ..., views: _Optional[int] = ...) -> None: ...

class ImageChunk(_message.Message):
    __slots__ = ("ref", "offset", "total", "data")
    REF_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ref: int
    offset: int
    total: int
    data: bytes
    def __init__(self, ref: _Optional[int] = ..., offset: _Optional[int] = ..., total: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImageAck(_message.Message):
    __slots__ = ("ref", "offset")
    REF_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ref: int
    offset: int
    def __init__(self, ref: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class ViewAck(_message.Message):
    __slots__ = ("ref", "indexes")
    REF_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    ref: int
    indexes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ref: _Optional[int] = ..., indexes: _Optional[_Iterable[int]] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("request", "refs", "question", "history", "sampling", "deadline_ms", "thinking", "previous_request", "without_pictures", "reasoning", "places", "stop", "thinking_budget", "traceparent")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_REQUEST_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_PICTURES_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    THINKING_BUDGET_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request: int
    refs: _containers.RepeatedScalarFieldContainer[int]
    question: str
    history: _containers.RepeatedCompositeFieldContainer[Turn]
    sampling: Sampling
    deadline_ms: int
    thinking: bool
    previous_request: int
    without_pictures: bool
    reasoning: Reasoning
    places: _containers.RepeatedCompositeFieldContainer[Place]
    stop: _containers.RepeatedScalarFieldContainer[str]
    thinking_budget: int
    traceparent: str
    def __init__(self, request: _Optional[int] = ..., refs: _Optional[_Iterable[int]] = ..., question: _Optional[str] = ..., history: _Optional[_Iterable[_Union[Turn, _Mapping]]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., deadline_ms: _Optional[int] = ..., thinking: bool = ..., previous_request: _Optional[int] = ..., without_pictures: bool = ..., reasoning: _Optional[_Union[Reasoning, _Mapping]] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ..., stop: _Optional[_Iterable[str]] = ..., thinking_budget: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Reasoning(_message.Message):
    __slots__ = ("rounds", "vote", "rollouts", "token_budget")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BUDGET_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedScalarFieldContainer[int]
    vote: int
    rollouts: bool
    token_budget: int
    def __init__(self, rounds: _Optional[_Iterable[int]] = ..., vote: _Optional[int] = ..., rollouts: bool = ..., token_budget: _Optional[int] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("turn", "offset")
    TURN_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    turn: int
    offset: int
    def __init__(self, turn: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("role", "text")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    role: Role
    text: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., text: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "seed", "top_k")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    top_k: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., top_k: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: int
    def __init__(self, request: _Optional[int] = ...) -> None: ...

class NeedPicture(_message.Message):
    __slots__ = ("request", "ref")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    request: int
    ref: int
    def __init__(self, request: _Optional[int] = ..., ref: _Optional[int] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("request", "text", "thinking", "restart")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    request: int
    text: str
    thinking: bool
    restart: bool
    def __init__(self, request: _Optional[int] = ..., text: _Optional[str] = ..., thinking: bool = ..., restart: bool = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("request", "round", "rounds", "ended", "samples")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    request: int
    round: int
    rounds: int
    ended: int
    samples: int
    def __init__(self, request: _Optional[int] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., ended: _Optional[int] = ..., samples: _Optional[int] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("request", "round", "sample", "text", "finish_reason", "new_tokens")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request: int
    round: int
    sample: int
    text: str
    finish_reason: FinishReason
    new_tokens: int
    def __init__(self, request: _Optional[int] = ..., round: _Optional[int] = ..., sample: _Optional[int] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., new_tokens: _Optional[int] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("request", "finish_reason", "usage", "timing", "unanswered", "votes")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    request: int
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    unanswered: bool
    votes: _containers.RepeatedCompositeFieldContainer[Vote]
    def __init__(self, request: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., unanswered: bool = ..., votes: _Optional[_Iterable[_Union[Vote, _Mapping]]] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("text", "count")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    text: str
    count: int
    def __init__(self, text: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "visual_tokens", "new_tokens", "thinking_tokens", "prompts", "samples", "samples_used")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VISUAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    THINKING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_USED_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    thinking_tokens: int
    prompts: int
    samples: int
    samples_used: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., visual_tokens: _Optional[int] = ..., new_tokens: _Optional[int] = ..., thinking_tokens: _Optional[int] = ..., prompts: _Optional[int] = ..., samples: _Optional[int] = ..., samples_used: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("decode_us", "wait_us", "prefill_us", "first_token_us", "total_us")
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    WAIT_US_FIELD_NUMBER: _ClassVar[int]
    PREFILL_US_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    decode_us: int
    wait_us: int
    prefill_us: int
    first_token_us: int
    total_us: int
    def __init__(self, decode_us: _Optional[int] = ..., wait_us: _Optional[int] = ..., prefill_us: _Optional[int] = ..., first_token_us: _Optional[int] = ..., total_us: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("request", "status", "reason", "message", "retry_after_ms")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    request: int
    status: int
    reason: str
    message: str
    retry_after_ms: int
    def __init__(self, request: _Optional[int] = ..., status: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("server_version", "model_id", "codec_id", "engine", "limits", "load", "uptime_s", "codecs")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    model_id: str
    codec_id: str
    engine: str
    limits: Limits
    load: Load
    uptime_s: int
    codecs: _containers.RepeatedCompositeFieldContainer[Codec]
    def __init__(self, server_version: _Optional[str] = ..., model_id: _Optional[str] = ..., codec_id: _Optional[str] = ..., engine: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., uptime_s: _Optional[int] = ..., codecs: _Optional[_Iterable[_Union[Codec, _Mapping]]] = ...) -> None: ...

class Codec(_message.Message):
    __slots__ = ("name", "codec_id", "entropy_model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    codec_id: str
    entropy_model: str
    def __init__(self, name: _Optional[str] = ..., codec_id: _Optional[str] = ..., entropy_model: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("sessions_open", "sessions_allowed", "questions_running", "questions_running_allowed", "questions_waiting", "questions_waiting_allowed")
    SESSIONS_OPEN_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_RUNNING_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_WAITING_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_WAITING_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    sessions_open: int
    sessions_allowed: int
    questions_running: int
    questions_running_allowed: int
    questions_waiting: int
    questions_waiting_allowed: int
    def __init__(self, sessions_open: _Optional[int] = ..., sessions_allowed: _Optional[int] = ..., questions_running: _Optional[int] = ..., questions_running_allowed: _Optional[int] = ..., questions_waiting: _Optional[int] = ..., questions_waiting_allowed: _Optional[int] = ...) -> None: ...
