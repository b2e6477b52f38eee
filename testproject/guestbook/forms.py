"""What visitors fill in."""

from django import forms

from testproject.guestbook.models import Entry


class EntryForm(forms.Form):
    """One new line for the book."""

    text = forms.CharField(
        label="Your line", max_length=Entry._meta.get_field("text").max_length, strip=True
    )
