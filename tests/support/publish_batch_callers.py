"""Headers of requests that run publish_batch."""

from __future__ import annotations

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
