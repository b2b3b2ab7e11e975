"""An operator, an account and a user of NATS, as its own tool makes them: JWTs that are signed with nkeys.

The format is that of https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys

_LIMITS: dict[str, Any] = {
    **dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1),
    "wildcards": True,
}
_JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer", "max_ack_pending"), -1)


class _Identity:
    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix=prefix)
        self._keys = nkeys.from_seed(bytearray(self.seed))
        self.public = self._keys.public_key.decode()

    def token(self, subject: _Identity, claims: dict[str, Any]) -> str:
        """A JWT about somebody, signed by this one."""
        body: dict[str, Any] = {"iat": int(time.time()), "iss": self.public, "sub": subject.public}
        body |= {"name": claims["type"], "nats": {"version": 2, **claims}}
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
        parts = ({"typ": "JWT", "alg": "ed25519-nkey"}, body)
        signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{_base64(self._keys.sign(signed.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def make(creds: Path) -> str:
    """Write the credentials file of a user; returns what the server's configuration needs."""
    operator, account, system, user = (
        _Identity(prefix)
        for prefix in (
            nkeys.PREFIX_BYTE_OPERATOR,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_USER,
        )
    )
    token = account.token(user, {"type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1})
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    accounts = {
        account.public: operator.token(account, {"type": "account", "limits": {**_LIMITS, **_JETSTREAM}}),
        system.public: operator.token(system, {"type": "account", "limits": _LIMITS}),
    }
    return "\n".join(
        [
            f"operator: {operator.token(operator, {'type': 'operator', 'system_account': system.public})}",
            f"system_account: {system.public}",
            "resolver: MEMORY",
            f"resolver_preload: {{ {', '.join(f'{name}: {text}' for name, text in accounts.items())} }}",
        ]
    )
