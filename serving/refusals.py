"""Calls that are refused as a whole, each with the gRPC code that tells its caller what to do.

Refused
├── TooManyKeys      INVALID_ARGUMENT    ask for fewer at a time
├── TooManyBytes     INVALID_ARGUMENT    ask for fewer keys at a time, or for float16
├── BadArgument      INVALID_ARGUMENT    the arguments contradict each other
├── Unauthenticated  UNAUTHENTICATED     no token, or one that is not known
├── NotPermitted     PERMISSION_DENIED   the caller may not do this
├── RateExceeded     RESOURCE_EXHAUSTED  the caller asks for more than its share: later
├── Overloaded       RESOURCE_EXHAUSTED  the server has no room: later, or another server
└── TooLate          DEADLINE_EXCEEDED   no time is left to answer in
"""

import grpc


class Refused(Exception):
    """The call is refused; the message says why and what is allowed."""

    code = grpc.StatusCode.UNKNOWN


class TooManyKeys(Refused):
    code = grpc.StatusCode.INVALID_ARGUMENT


class TooManyBytes(Refused):
    code = grpc.StatusCode.INVALID_ARGUMENT


class BadArgument(Refused):
    code = grpc.StatusCode.INVALID_ARGUMENT


class Unauthenticated(Refused):
    code = grpc.StatusCode.UNAUTHENTICATED


class NotPermitted(Refused):
    code = grpc.StatusCode.PERMISSION_DENIED


class RateExceeded(Refused):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Overloaded(Refused):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class TooLate(Refused):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
