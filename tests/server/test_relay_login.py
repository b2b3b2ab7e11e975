"""Logging in to NATS: TLS, certificates, passwords and credentials; no password is shown or sent in the clear."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from pathlib import Path

import nkeys
import pytest
from commands import call, run
from nats_credentials import make
from nats_servers import NatsServer, publish, running

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with two authorities, and certificates of a server and of a client by the first one."""
    folder = tmp_path / "certificates"
    folder.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *authority, "-out", f"{name}.pem")
    return folder


def relayed(file: Path, url: str, *more: object) -> str:
    """What a relay prints that relays all there is."""
    return run("relay", file, "--to", url, "--stream", "orders", "--create", "--once", *more).stderr


def refusal(file: Path, url: str, *more: object) -> str:
    """Why the relay does not begin; it ends with exit code 1."""
    done = run("relay", file, "--to", url, "--stream", "orders", "--create", "--once", *more, code=1)
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].removeprefix("Error: ")


@needs_openssl
def test_tls(tmp_path: Path, file: Path, certificates: Path) -> None:
    tls = f'tls {{ cert_file: "{certificates}/server.pem", key_file: "{certificates}/server.key" }}'
    publish(file, 3)
    with running(tmp_path / "nats", more=tls) as nats:
        for scheme in ("nats", "tls"):
            url = f"{scheme}://localhost:{nats.port}"
            said = relayed(file, url, "--tls-ca", certificates / "ca.pem")
            assert "All relayed, up to 3" in said
            assert "eof_received" not in said
            assert refusal(file, url, "--tls-ca", certificates / "other.pem") == (
                f"{url}: unable to get local issuer certificate: give its authority with --tls-ca"
            )
            assert "give its authority with --tls-ca" in refusal(file, url)
        url = f"nats://127.0.0.1:{nats.port}"
        text = refusal(file, url, "--tls-ca", certificates / "ca.pem")
        assert text.startswith(f"{url}: IP address mismatch")
        assert "--tls-ca" not in text


@needs_openssl
def test_certificates_of_clients(tmp_path: Path, file: Path, certificates: Path) -> None:
    tls = (
        f'tls {{ cert_file: "{certificates}/server.pem", key_file: "{certificates}/server.key", '
        f'ca_file: "{certificates}/ca.pem", verify: true }}'
    )
    ca, cert, key = ("--tls-ca", certificates / "ca.pem"), "--tls-cert", "--tls-key"
    publish(file, 3)
    with running(tmp_path / "nats", more=tls) as nats:
        url = f"nats://localhost:{nats.port}"
        client = (cert, certificates / "client.pem", key, certificates / "client.key")
        assert "All relayed, up to 3" in relayed(file, url, *ca, *client)
        assert refusal(file, url, *ca) == f"{url} wants a certificate: give it with --tls-cert and --tls-key"
        stranger = (cert, certificates / "other.pem", key, certificates / "other.key")
        assert refusal(file, url, *ca, *stranger) == f"{url} refuses the certificate of --tls-cert"
        mixed = (cert, certificates / "client.pem", key, certificates / "other.key")
        assert refusal(file, url, *ca, *mixed).startswith("the certificates cannot be read: ")


@needs_openssl
@pytest.mark.parametrize("options", [False, True])
def test_no_password_in_the_clear(file: Path, certificates: Path, options: bool) -> None:
    """Somebody on the way has removed TLS from the server's first line."""
    received = b""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            nonlocal received
            with server.accept()[0] as client:
                client.sendall(b'INFO {"server_id": "x", "version": "2.10.0", "max_payload": 2000000}\r\n')
                while data := client.recv(1000):
                    received += data

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"{'nats' if options else 'tls'}://relay:secret@localhost:{port}"
        text = refusal(file, url, *(("--tls-ca", certificates / "ca.pem") if options else ()))
        thread.join()
    assert text.endswith(f"localhost:{port} has no TLS: give an address with nats:// and no --tls options")
    assert received == b""


def test_passwords_and_tokens_are_percent_encoded(tmp_path: Path, file: Path) -> None:
    users = r'authorization { users: [ { user: "re@lay", password: "p:w/%#?" } ] }'
    publish(file, 1)
    with running(tmp_path / "users", more=users) as nats:
        said = relayed(file, f"nats://re%40lay:p%3Aw%2F%25%23%3F@127.0.0.1:{nats.port}")
        assert f"Connected to nats://127.0.0.1:{nats.port}, NATS 2." in said
    with running(tmp_path / "token", more='authorization { token: "to/ken" }') as nats:
        assert "All relayed" in relayed(file, f"nats://to%2Fken@127.0.0.1:{nats.port}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://relay:secret@localhost:port", "nats://localhost:port"),
        ("nats://relay:secret/@localhost", "nats://localhost"),
        ("nats://relay:secret#@localhost", "nats://localhost"),
        ("http://relay:secret@localhost", "http://localhost"),
        ("nats://relay:secret@", "nats://"),
        ("nats://[::1", "nats://[::1"),
        ("nats://localhost:0", "nats://localhost:0"),
    ],
)
def test_wrong_addresses(file: Path, url: str, shown: str) -> None:
    for words in (("relay", file, "--to", url), ("follow", url, file, "--stream", "orders")):
        error = call(*words, code=2).stderr
        assert f"Error: {shown} is not the address of a NATS server" in error
        assert "secret" not in error


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_an_address_of_ipv6(tmp_path: Path, file: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    config = tmp_path / "nats" / "nats.conf"
    config.write_text(config.read_text().replace(f"127.0.0.1:{server.port}", f'"[::]:{server.port}"'))
    server.start()
    try:
        assert f"Connected to nats://[::1]:{server.port}, NATS" in relayed(file, f"nats://[::1]:{server.port}")
    finally:
        server.kill()


def credentials(folder: Path) -> tuple[Path, str]:
    """A file with a key, and the public one. (Its JWT is not one: no operator has made it.)"""
    key = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
    found = folder / "relay.creds"
    found.write_text(
        "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{key.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return found, key.public_key.decode()


def test_credentials_files(tmp_path: Path, file: Path) -> None:
    found, public = credentials(tmp_path)
    nothing = tmp_path / "nothing.creds"
    nothing.write_text("nothing\n")
    with running(tmp_path / "nats", more=f"authorization {{ users: [ {{ nkey: {public} }} ] }}") as nats:
        assert refusal(file, nats.url, "--creds", nothing) == "the file of --creds has no credentials of NATS"
        assert refusal(file, nats.url, "--creds", found) == (
            f"{nats.url} refuses the connection: nats: 'Authorization Violation'"
        )


def test_credentials_of_an_account(tmp_path: Path, file: Path) -> None:
    """The file that NATS's own tool makes for a user of an account."""
    mine, others = tmp_path / "mine.creds", tmp_path / "others.creds"
    make(others)
    with running(tmp_path / "nats", more=make(mine)) as nats:
        publish(file, 3)
        assert "All relayed, up to 3" in relayed(file, nats.url, "--creds", mine)
        for more in ((), ("--creds", others)):
            assert refusal(file, nats.url, *more) == (
                f"{nats.url} refuses the connection: nats: 'Authorization Violation'"
            )


def test_what_this_user_may_not_do(tmp_path: Path, file: Path) -> None:
    """The reason is a refusal, and not that the server gives no answer."""
    users = """authorization { users: [
        { user: relay, password: x }
        { user: reader, password: x, permissions { publish: ["$JS.API.>"], subscribe: [">"] } }
    ] }"""
    publish(file, 1)
    with running(tmp_path / "nats", more=users) as nats:
        address = nats.url.removeprefix("nats://")
        relayed(file, f"nats://relay:x@{address}")
        publish(file, 1)
        text = refusal(file, f"nats://reader:x@{address}")
        assert text == f'{nats.url} does not permit it: permissions violation for publish to "orders.c"'
