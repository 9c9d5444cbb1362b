"""What the server refuses, in OSS's words: status, Code, Message, EC."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

# Code -> (status, message, EC). Only some ECs are the real ones; the others are zeros.
WORDS: dict[str, tuple[int, str, str]] = {
    "AccessDenied": (403, "You have no right to access this object because of bucket acl.", "0003-00000001"),
    "BucketAlreadyExists": (409, "The requested bucket name is not available.", ""),
    "EntityTooSmall": (400, "Your proposed upload smaller than the minimum allowed size.", ""),
    "FileAlreadyExists": (
        409,
        "The object you specified already exists and can not be overwritten.",
        "",
    ),
    "IncompleteBody": (400, "The request body is incomplete.", ""),
    "InternalError": (
        500,
        "Please contact the server administrator, oss@service.aliyun.com.",
        "",
    ),
    "InvalidAccessKeyId": (
        403,
        "The OSS Access Key Id you provided does not exist in our records.",
        "0002-00000902",
    ),
    "InvalidArgument": (400, "Invalid Argument.", ""),
    "InvalidBucketName": (400, "The specified bucket is not valid.", ""),
    "InvalidDigest": (400, "The Content-MD5 you specified was invalid.", ""),
    "InvalidObjectName": (400, "The specified object is not valid.", ""),
    "InvalidObjectState": (403, "The operation is not valid for the object's state", ""),
    "InvalidPart": (
        400,
        (
            "One or more of the specified parts could not be found or the specified entity tag might not have"
            " matched the part's entity tag."
        ),
        "",
    ),
    "InvalidPartOrder": (400, "The list of parts was not in ascending order.", ""),
    "InvalidRange": (416, "The requested range cannot be satisfied.", ""),
    "InvalidSecurityToken": (403, "The security token you provided is invalid.", ""),
    "MalformedXML": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema.",
        "",
    ),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource.", ""),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header.", ""),
    "NoSuchBucket": (404, "The specified bucket does not exist.", "0015-00000101"),
    "NoSuchKey": (404, "The specified key does not exist.", "0026-00000001"),
    "NoSuchUpload": (
        404,
        (
            "The specified upload does not exist. The upload ID might be invalid, or the upload might have been"
            " aborted or completed."
        ),
        "",
    ),
    "NotImplemented": (501, "A header you provided implies functionality that is not implemented.", ""),
    "PreconditionFailed": (
        412,
        "At least one of the pre-conditions you specified did not hold.",
        "",
    ),
    "RequestTimeTooSkewed": (
        403,
        "The difference between the request time and the current time is too large.",
        "0002-00000504",
    ),
    "RestoreAlreadyInProgress": (409, "The restore operation is in progress.", ""),
    "SecondLevelDomainForbidden": (
        403,
        "The bucket you are attempting to access must be addressed using OSS third level domain.",
        "",
    ),
    "SecurityTokenExpired": (403, "The security token you provided has expired.", ""),
    "ServiceUnavailable": (503, "Please reduce your request rate.", ""),
    "SignatureDoesNotMatch": (
        403,
        (
            "The request signature we calculated does not match the signature you provided. Check your key and"
            " signing method."
        ),
        "0002-00000040",
    ),
}


class OssError(Exception):
    """An answer that says no. `more` becomes elements of the XML, `headers` go out as they are."""

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> None:
        usual = WORDS.get(code, (status or 400, code, ""))
        super().__init__(code)
        self.code = code
        self.status = status or usual[0]
        self.message = message or usual[1]
        self.ec = usual[2] or "0000-00000000"
        self.headers = dict(headers or {})
        self.more = more

    def xml(self, request_id: str, host: str) -> bytes:
        """The body of the answer."""
        fields = {"Code": self.code, "Message": self.message, "RequestId": request_id, "HostId": host}
        fields |= self.more
        fields["EC"] = self.ec
        fields["RecommendDoc"] = f"https://api.aliyun.com/troubleshoot?q={self.ec}"
        inside = "\n".join(f"  <{name}>{escape(text)}</{name}>" for name, text in fields.items())
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>\n{inside}\n</Error>\n'.encode(
            "utf-8", "surrogateescape"
        )


class NotModified(Exception):
    """304: the client has it already."""
