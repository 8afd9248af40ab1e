"""Limits of one call, shared by server and client."""

from encoders.keys import MAX_KEY_BYTES

MAX_KEYS = 2000  # rankers score hundreds of candidates; at 8192 values a key an answer then has 64 MB
MAX_REQUEST_BYTES = MAX_KEYS * (MAX_KEY_BYTES + 16)
MAX_REPLY_BYTES = MAX_KEYS * (8192 * 4 + 64)
