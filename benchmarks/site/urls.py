"""The addresses of the measured views; `benchmarks.pages` says what each has to answer."""

from django.urls import path

from benchmarks.site import views

urlpatterns = [
    path("sync-hello/", views.sync_hello),
    path("async-hello/", views.async_hello),
    path("sync-query/", views.sync_query),
    path("async-aget/", views.async_aget),
    path("async-aget-10/", views.async_aget_10),
    path("connections/", views.connections),
]
