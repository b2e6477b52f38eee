"""The pages of the guest book. `entries` and `async_entries` are one page, written for each side."""

from django.contrib.auth import login
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import User
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from django_asyncbridge import async_to_sync, sync_to_async
from testproject.guestbook.entries import (
    alatest_entries,
    awrite_entry,
    latest_entries,
    totals,
    write_entry,
)
from testproject.guestbook.forms import EntryForm

# A template may run queries (`user`, the session), so a coroutine renders in the request's thread.
arender = sync_to_async(render)


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """Link to every page and say what it shows."""
    return render(request, "guestbook/index.html")


@require_http_methods(["GET", "HEAD", "POST"])
def entries(request: HttpRequest) -> HttpResponse:
    """Show the book and take a new line, in a sync view."""
    form = EntryForm(request.POST or None)
    if request.method == "POST":
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path())
        if form.is_valid():
            write_entry(request.user, form.cleaned_data["text"])
            return redirect("entries")
    context = {"form": form, "entries": latest_entries(), "totals": async_to_sync(totals)()}
    return render(request, "guestbook/entries.html", {"kind": "sync", **context})


@require_http_methods(["GET", "HEAD", "POST"])
async def async_entries(request: HttpRequest) -> HttpResponse:
    """Show the book and take a new line, in an async view."""
    form = EntryForm(request.POST or None)
    if request.method == "POST":
        user = await request.auser()
        if not user.is_authenticated:
            return redirect_to_login(request.get_full_path())
        if form.is_valid():
            await awrite_entry(user, form.cleaned_data["text"])
            return redirect("async-entries")
    context = {"form": form, "entries": await alatest_entries(), "totals": await totals()}
    return await arender(request, "guestbook/entries.html", {"kind": "async", **context})


@require_http_methods(["GET", "HEAD", "POST"])
def sign_up(request: HttpRequest) -> HttpResponse:
    """Make an account and sign its owner in."""
    form: UserCreationForm[User] = UserCreationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        login(request, form.save())
        return redirect("entries")
    return render(request, "registration/sign_up.html", {"form": form})


@require_safe
def echo(request: HttpRequest) -> HttpResponse:
    """Offer a form that talks to the WebSocket echo."""
    return render(request, "guestbook/echo.html")
