"""What the site is asked: each view with GET, and views that look at what they are sent with more than that.

Which thread may touch what. The tables do not change.
"""

from tests.handlers.differential.asking import Question
from tests.handlers.differential.views import VIEWS

__all__ = ("ESSENTIAL", "QUESTIONS")

Headers = tuple[tuple[bytes, bytes], ...]
FORM: Headers = ((b"content-type", b"application/x-www-form-urlencoded"),)
MULTIPART: Headers = ((b"content-type", b"multipart/form-data; boundary=B"),)
TOKEN = b"t" * 32
CSRF: Headers = ((b"cookie", b"csrftoken=" + TOKEN), (b"x-csrftoken", TOKEN))
_FIELD = b'--B\r\nContent-Disposition: form-data; name="word"\r\n\r\nhello\r\n'
_FILE = b'--B\r\nContent-Disposition: form-data; name="doc"; filename="a.txt"\r\n\r\n'
UPLOAD = (_FIELD + _FILE, b"content " * 20 + b"\r\n--B--\r\n")
SIDES = ("sync", "async")


def _post(path: str, *parts: bytes, headers: Headers = FORM) -> Question:
    return Question(path, "POST", headers=headers, parts=parts)


def _on_both_sides() -> dict[str, Question]:
    """Return what is asked of the sync view and the async view of an answer."""
    found: dict[str, Question] = {}
    for side in SIDES:
        ok, form = f"/{side}_ok/", f"/{side}_form/"
        found |= {
            f"HEAD {side}_ok": Question(ok, "HEAD"),
            f"HEAD {side}_streams": Question(f"/{side}_streams/", "HEAD"),
            f"OPTIONS {side}_class": Question(f"/{side}_class/", "OPTIONS"),
            f"DELETE {side}_class": Question(f"/{side}_class/", "DELETE"),
            f"POST {side}_class": _post(f"/{side}_class/", b"a=1"),
            f"POST {side}_class with token": _post(f"/{side}_class/", b"a=1", headers=FORM + CSRF),
            f"POST {side}_ok": _post(ok, b"a=1"),
            f"POST {side}_ok_csrf_exempt": _post(f"/{side}_ok_csrf_exempt/", b"a=1"),
            f"POST {side}_ok_require_post": _post(f"/{side}_ok_require_post/", b"a=1"),
            f"POST {side}_form": _post(form, b"a=1&b=%C3%A9", b"&a=2", headers=FORM + CSRF),
            f"POST {side}_form upload": _post(form, *UPLOAD, headers=MULTIPART + CSRF),
            f"POST {side}_form half": _post(form, UPLOAD[0], headers=MULTIPART + CSRF),
            f"POST {side}_form no boundary": _post(
                form, b"a=1", headers=((b"content-type", b"multipart/form-data"), *CSRF)
            ),
            f"POST {side}_form too big": _post(form, b"a=" + b"1" * 500, headers=FORM + CSRF),
            f"POST {side}_body": _post(f"/{side}_body/", b"some", b"", b"body", headers=CSRF),
            f"POST {side}_body too big": _post(f"/{side}_body/", b"b" * 500, headers=CSRF),
            f"POST {side}_stream": _post(f"/{side}_stream/", b"s" * 300, b"t" * 300, headers=CSRF),
            f"POST {side}_reads_and_raises_ValueError": _post(
                f"/{side}_reads_and_raises_ValueError/", b"a=1"
            ),
            f"GET {side}_ok no slash": Question(f"/{side}_ok", query=b"a=1"),
            f"POST {side}_ok no slash": _post(f"/{side}_ok", b"a=1"),
            f"GET {side}_meta mounted": Question(
                f"/{side}_meta/", query=b"a=1&a=2", root_path="/up"
            ),
            f"GET {side}_language mounted": Question(f"/{side}_language/", root_path="/up"),
            f"GET {side}_language de": Question(
                f"/{side}_language/", headers=((b"accept-language", b"de"),)
            ),
            f"GET {side}_long zipped": Question(
                f"/{side}_long/", headers=((b"accept-encoding", b"gzip"),)
            ),
            f"GET {side}_streams zipped": Question(
                f"/{side}_streams/", headers=((b"accept-encoding", b"gzip"),)
            ),
            f"GET {side}_ok_condition same": Question(
                f"/{side}_ok_condition/", headers=((b"if-none-match", b'"1"'),)
            ),
            f"GET {side}_cookies sent": Question(
                f"/{side}_cookies/", headers=((b"cookie", b"a=1; b=2"), (b"cookie", b"c=3"))
            ),
        }
    return found


QUESTIONS: dict[str, Question] = {
    **{f"GET {name}": Question(f"/{name}/") for name in VIEWS},
    **_on_both_sides(),
    "GET with arguments": Question("/with/7/caf\xe9/"),
    "GET nowhere": Question("/nowhere/"),
    "GET unreadable query": Question("/sync_ok/", query=b"\xff"),
    "GET wrong host": Question("/sync_host/", headers=((b"host", b"elsewhere"),)),
    "GET wrong host and CSRF": Question("/async_host/", headers=((b"host", b"elsewhere"), *CSRF)),
    "POST and leave": Question("/sync_ok/", "POST", parts=(b"half",), leaves=True),
    "UNKNOWN sync_ok": Question("/sync_ok/", "UNKNOWN"),
}

ESSENTIAL = (
    "GET sync_template",
    "GET async_template",
    "GET sync_raises_ValueError",
    "GET async_raises_ValueError",
)
"""Asked of every stack: on the way of one of these every hook is called."""
