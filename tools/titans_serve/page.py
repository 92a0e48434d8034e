"""The page at `/`, as it lies in `page.html`: one file, without anything from elsewhere."""

from __future__ import annotations

from importlib import resources

PAGE = resources.files("titans_serve").joinpath("page.html").read_bytes()
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
