"""The cases of `test_django_sides`: calls of each of Django's hooks in the table, with what is to be known of them."""

import functools
from dataclasses import replace

import django
from django.contrib.auth.models import AnonymousUser, User
from django.utils.functional import SimpleLazyObject, lazy

from tests.handlers import slow_code
from tests.handlers.django_calls import (
    COOKIE,
    FALLBACK,
    FILES,
    KEY,
    LARGE,
    LOCMEM,
    SESSION,
    SITES,
    SLOW,
    Call,
    async_stream,
    body,
    cache,
    engine,
    file_store,
    forget_languages,
    has,
    lazy_user,
    lazy_user_of_another,
    loaded_user,
    made_cache,
    may,
    memcached,
    messages,
    meta,
    ok,
    session,
    status,
    stream,
    use,
    without,
)

COMMON = "middleware.common.CommonMiddleware"
LINKS = "middleware.common.BrokenLinkEmailsMiddleware.process_response"
SESSIONS = "contrib.sessions.middleware.SessionMiddleware"
CSRF = "middleware.csrf.CsrfViewMiddleware"
MESSAGES = "contrib.messages.middleware.MessageMiddleware"
LOGIN = "contrib.auth.middleware.LoginRequiredMiddleware.process_view"
CSP = "middleware.csp.ContentSecurityPolicyMiddleware"
GZIP = "middleware.gzip.GZipMiddleware.process_response"
ETAG = "middleware.http.ConditionalGetMiddleware.process_response"
LOCALE = "middleware.locale.LocaleMiddleware.process_response"
COMPUTES = "it computes, which the detector does not see"
IN_SESSION = {"CSRF_USE_SESSIONS": True}
COOKIE_TOKEN = {"csrftoken": "c" * 32}
NEEDS_UPDATE = {"CSRF_COOKIE": "c" * 32, "CSRF_COOKIE_NEEDS_UPDATE": True}
NEW, UNLOADED = (session(), lazy_user), (session(key=KEY), lazy_user)
ACCEPTS_GZIP = {"HTTP_ACCEPT_ENCODING": "gzip"}


CASES: dict[str, list[Call]] = {
    "middleware.security.SecurityMiddleware.process_request": [
        ok("plain"),
        ok("redirect", settings={"SECURE_SSL_REDIRECT": True}),
    ],
    "middleware.security.SecurityMiddleware.process_response": [
        ok("secure", request={"secure": True}, settings={"SECURE_HSTS_SECONDS": 5}),
    ],
    "middleware.clickjacking.XFrameOptionsMiddleware.process_response": [
        ok("plain"),
    ],
    f"{COMMON}.process_request": [
        ok("plain"),
        ok("host", settings={"ALLOWED_HOSTS": ["other"]}),
        ok("www", settings={"PREPEND_WWW": True}),
    ],
    f"{COMMON}.process_response": [
        ok("found"),
        ok("slash missing", response=status(404), request={"path": "/login"}),
    ],
    LINKS: [
        ok("found"),
        ok("no link", response=status(404), settings={"DEBUG": False}),
        ok(
            "debugging",
            response=status(404),
            request={"HTTP_REFERER": "http://testserver/x"},
            settings={"DEBUG": True},
        ),
        may(
            "broken link",
            unseen="tests send no mail",
            response=status(404),
            request={"HTTP_REFERER": "http://testserver/x"},
            settings={"DEBUG": False},
        ),
    ],
    "contrib.flatpages.middleware.FlatpageFallbackMiddleware.process_response": [
        ok("found", settings=SITES),
        may("not found", response=status(404), settings=SITES),
    ],
    "contrib.redirects.middleware.RedirectFallbackMiddleware.process_response": [
        ok("found", settings=SITES),
        may("not found", response=status(404), settings=SITES),
    ],
    "contrib.sites.middleware.CurrentSiteMiddleware.process_request": [
        ok("without sites"),
        may("with sites", settings=SITES),
    ],
    "contrib.admindocs.middleware.XViewMiddleware.process_view": [
        ok("GET", prepare=NEW),
        ok("no user"),
        may("HEAD", request={"method": "HEAD"}, prepare=UNLOADED),
    ],
    GZIP: [
        ok("small", response=body(LARGE[:500]), request=ACCEPTS_GZIP),
        ok("not accepted", response=body(LARGE)),
        ok("streaming", response=stream, request=ACCEPTS_GZIP),
        ok("async streaming", response=async_stream, request=ACCEPTS_GZIP),
        may("large", unseen=COMPUTES, response=body(LARGE), request=ACCEPTS_GZIP),
    ],
    ETAG: [
        ok("small", response=body(LARGE[:500])),
        ok("POST", response=body(LARGE), request={"method": "POST"}),
        ok("with its tag", response=body(LARGE, ETag='"x"'), request={"HTTP_IF_NONE_MATCH": '"x"'}),
        ok("streaming", response=stream),
        may("large", unseen=COMPUTES, response=body(LARGE)),
    ],
    LOCALE: [
        ok("no language", request={"path": "/hello/"}, prepare=(forget_languages,)),
        ok("root", prepare=(forget_languages,)),
        may("language", request={"path": "/DE-at/x"}, prepare=(forget_languages,)),
        may("not found", unseen="it depends on the URLs", response=status(404)),
    ],
    "middleware.cache.UpdateCacheMiddleware.process_response": [
        ok("not asked for"),
        may("asked for", prepare=(has(_cache_update_cache=True),)),
    ],
    "middleware.cache.FetchFromCacheMiddleware.process_request": [
        ok("POST", request={"method": "POST"}),
        may("GET"),
    ],
    f"{SESSIONS}.process_request": [
        ok("database", settings=engine("db"), cookies={"sessionid": KEY}),
        ok("cookies", settings=engine("signed_cookies"), cookies={"sessionid": KEY}),
        ok("cache", settings=cache(LOCMEM)),
        ok("cached database", settings=cache(LOCMEM) | engine("cached_db")),
        ok(
            "cache with a key function",
            settings=cache(LOCMEM, KEY_FUNCTION="django.core.cache.backends.base.default_key_func"),
        ),
        may("cache in files", settings=cache(FILES)),
        ok("cache that was made", settings=cache(LOCMEM), around=made_cache),
        ok(
            "memcached",
            settings=cache("django.core.cache.backends.memcached.PyMemcacheCache"),
            around=memcached,
        ),
        ok(
            "files again", settings=engine("file"), around=functools.partial(file_store, known=True)
        ),
        may("files", settings=engine("file"), around=functools.partial(file_store, known=False)),
        may("cache that connects", settings=cache(f"{SLOW}.OpeningCache")),
        may(
            "cache with a key function to import",
            settings=cache(LOCMEM, KEY_FUNCTION="wsgiref.util.guess_scheme"),
            around=functools.partial(without, "wsgiref.util"),
        ),
        may(
            "no such cache",
            unseen="it raises",
            settings=cache(
                LOCMEM,
            )
            | {"SESSION_CACHE_ALIAS": "other"},
        ),
        may("foreign store", settings=engine(SLOW)),
        may(
            "serializer to import",
            settings=engine("db", SESSION_SERIALIZER="wsgiref.util.FileWrapper"),
            around=functools.partial(without, "wsgiref.util"),
        ),
    ],
    f"{SESSIONS}.process_response": [
        ok("no session"),
        ok("untouched", prepare=(session(key=KEY),)),
        ok(
            "untouched file",
            prepare=(session("file", key=KEY),),
            around=functools.partial(file_store, known=True),
        ),
        ok("emptied", prepare=(session(touch=True),), cookies={"sessionid": KEY}),
        ok(
            "changed in a cookie",
            prepare=(session("signed_cookies", touch=True, a=1),),
            settings=engine("signed_cookies"),
        ),
        may("changed", prepare=(session(touch=True, a=1),)),
        may(
            "saved always",
            prepare=(session(key=KEY),),
            settings={"SESSION_SAVE_EVERY_REQUEST": True},
        ),
        may("foreign store", prepare=(use(slow_code.LateStore),)),
        may(
            "foreign serializer",
            prepare=(session("signed_cookies", touch=True, a=1),),
            settings=engine("signed_cookies", SESSION_SERIALIZER=f"{SLOW}.Serializer"),
        ),
    ],
    f"{CSRF}.process_request": [
        ok("no cookie"),
        ok("cookie", cookies=COOKIE_TOKEN),
        ok("broken cookie", cookies={"csrftoken": "?"}),
        ok("new session", settings=IN_SESSION, prepare=(session(),)),
        ok("loaded session", settings=IN_SESSION, prepare=(session(key=KEY, _csrftoken="c" * 32),)),
        ok(
            "session in a cookie",
            settings=IN_SESSION,
            prepare=(session("signed_cookies", key=KEY),),
        ),
        may("session", settings=IN_SESSION, prepare=(session(key=KEY),)),
        may("no session", unseen="it raises", settings=IN_SESSION),
    ],
    f"{CSRF}.process_view": [
        ok("GET"),
        ok("exempt", request={"method": "POST"}, view={"csrf_exempt": True}),
        ok("done", request={"method": "POST"}, prepare=(has(csrf_processing_done=True),)),
        ok(
            "not enforced",
            request={"method": "POST"},
            prepare=(has(_dont_enforce_csrf_checks=True),),
        ),
        may("POST", request={"method": "POST"}, prepare=(has(_dont_enforce_csrf_checks=False),)),
    ],
    f"{CSRF}.process_response": [
        ok("nothing to do"),
        ok("cookie", prepare=(meta(**NEEDS_UPDATE),)),
        ok("new session", prepare=(meta(**NEEDS_UPDATE), session()), settings=IN_SESSION),
        may("session", prepare=(meta(**NEEDS_UPDATE), session(key=KEY)), settings=IN_SESSION),
    ],
    "contrib.auth.middleware.AuthenticationMiddleware.process_request": [
        ok("session", prepare=(session(key=KEY),)),
        ok("no session"),
    ],
    LOGIN: [
        ok(
            "public view",
            blocks=django.VERSION < (6, 0),
            view={"login_required": False},
            prepare=UNLOADED,
        ),
        ok("user", prepare=(has(user=User(username="ada")),)),
        ok("nobody", prepare=(has(user=AnonymousUser()),)),
        ok("loaded", prepare=(session(key=KEY), loaded_user)),
        ok(
            "loaded for another",
            prepare=(session(key=KEY), has(_cached_user=User(username="ada")), lazy_user),
        ),
        ok("new session", prepare=NEW),
        ok("session without user", prepare=(session(key=KEY, a=1), lazy_user)),
        may("session", prepare=UNLOADED),
        may(
            "session with user",
            prepare=(
                session(
                    key=KEY,
                    _auth_user_id="1",
                    _auth_user_backend="django.contrib.auth.backends.ModelBackend",
                ),
                lazy_user,
            ),
        ),
        may("foreign user", prepare=(has(user=slow_code.User()),)),
        may("foreign lazy user", prepare=(has(user=SimpleLazyObject(slow_code.block)),)),
        may("user of another request", prepare=(session(), lazy_user_of_another)),
    ],
    f"{MESSAGES}.process_request": [
        *(
            ok(
                path.rpartition(".")[2],
                prepare=(session(key=KEY),),
                settings={"MESSAGE_STORAGE": path},
            )
            for path in (COOKIE, SESSION, FALLBACK)
        ),
        may("foreign storage", settings={"MESSAGE_STORAGE": f"{SLOW}.Storage"}),
        may(
            "storage to import",
            settings={"MESSAGE_STORAGE": "wsgiref.util.FileWrapper"},
            around=functools.partial(without, "wsgiref.util"),
        ),
        may(
            "foreign signer",
            settings={"MESSAGE_STORAGE": COOKIE, "SIGNING_BACKEND": f"{SLOW}.Signer"},
        ),
    ],
    f"{MESSAGES}.process_response": [
        ok("no messages"),
        ok("untouched", prepare=(session(key=KEY), messages(FALLBACK))),
        ok("added for a cookie", prepare=(messages(COOKIE, "one", "two"),)),
        ok("shown from a cookie", prepare=(messages(COOKIE, used=True),)),
        ok("added, new session", prepare=(session(), messages(FALLBACK, "one"))),
        ok("shown from the session", prepare=(session(key=KEY, a=1), messages(SESSION, used=True))),
        may("added for the session", prepare=(session(key=KEY), messages(SESSION, "one"))),
        may("lazy text", prepare=(messages(COOKIE, lazy(slow_code.slow_text, str)()),)),
        may("foreign storage", prepare=(messages(f"{SLOW}.LateStorage", "one"),)),
    ],
}

if django.VERSION >= (6, 0):
    CASES |= {
        f"{CSP}.process_request": [
            ok("plain"),
        ],
        f"{CSP}.process_response": [
            ok("header", settings={"SECURE_CSP": {"default-src": ["'self'"]}}),
            ok("none", response=status(404)),
        ],
    }

CALLS = [replace(call, hook=hook) for hook, calls in CASES.items() for call in calls]
