"""Who asks an API server: client certificates of a CA of our own, and tokens."""

import pathlib
import ssl
import subprocess


class Identity:
    """What a request shows."""

    def __init__(self, name, headers=None, certificate=None):
        self.name, self.headers = name, headers or {}
        # The server has a certificate that it made for itself.
        self.context = ssl._create_unverified_context()
        if certificate:
            self.context.load_cert_chain(*certificate)


def by_token(name, token):
    return Identity(name, headers={"Authorization": f"Bearer {token}"})


class Authority:
    """A CA, and whom it signed for."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.certificate, self.key = self.folder / "ca.crt", self.folder / "ca.key"
        self.made = 0
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=test",
                "-keyout", self.key, "-out", self.certificate)

    def identity(self, name, user, *groups):
        """A client with this certificate."""
        # Several organizations are several groups.
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        return Identity(name, certificate=self.sign(subject, "extendedKeyUsage = clientAuth\n"))

    def serving(self, address):
        """A certificate of a server at this address, and its key."""
        return self.sign("/CN=server", f"extendedKeyUsage = serverAuth\nsubjectAltName = IP:{address}\n")

    def sign(self, subject, extensions):
        self.made += 1
        key, request, certificate, wanted = (self.folder / f"{self.made}.{end}" for end in ("key", "csr", "crt", "cnf"))
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject,
                "-keyout", key, "-out", request)
        wanted.write_text(extensions)
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial", "-days", "1",
                "-extfile", wanted, "-out", certificate)
        return certificate, key


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
