"""What property tests share: how many examples they take, and the channels that they publish to."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: A failure in real threads is not shrunk: each attempt at one that hangs would cost its deadline.
QUICK = settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

channels = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=12)
