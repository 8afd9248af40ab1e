"""Limits of one call, shared by server and client."""

from encoders.keys import MAX_KEY_BYTES

MAX_KEYS = 2000  # rankers score hundreds of candidates; at 8192 values a key an answer then has 64 MB
MAX_REQUEST_BYTES = MAX_KEYS * (MAX_KEY_BYTES + 16)
MAX_REASON_CHARACTERS = 500  # of why a key failed: it may quote a stranger's server
# A key's vector at the largest dim, its status, id and time, and its reason at 4 bytes of UTF-8 a character.
MAX_REPLY_BYTES = MAX_KEYS * (8192 * 4 + 64 + 4 * MAX_REASON_CHARACTERS)
MAX_CALL_BYTES = MAX_REQUEST_BYTES + MAX_KEYS * 8192 * 4  # a request and the vectors of its answer
MAX_VIEWS = 32  # of one call
MAX_STREAM_KEYS = 100_000
STREAMED_AT_ONCE = 500  # 1 MB at 512 floats: so much of a stream is in memory, however slowly it is read
