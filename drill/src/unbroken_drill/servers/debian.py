"""A program of Debian's that is newer than the installed one: its packages are unpacked into the
cache, and run by their own loader.

Nothing is installed and root is not needed. The mirror is the one that this machine's apt uses. Its
files are checked against Debian's signature (``gpgv`` and the archive's keyring, which apt itself
depends on) and the signed checksums.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from unbroken_drill.messages import DOWNLOAD
from unbroken_drill.servers import folders
from unbroken_drill.servers.errors import ServerUnavailable

_KEYRINGS: Final = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
_TIMEOUT: Final = 60.0
# not needed to run a program
_PLAIN = ("perl", "perl-base", "debconf", "libc-bin", "adduser", "init-system-helpers")

Package = dict[str, str]


def missing_tools() -> list[str]:
    """Return the required tools that are missing here."""
    return [tool for tool in ("apt-get", "dpkg", "dpkg-deb", "gpgv") if shutil.which(tool) is None]


def unpacked(package: str, suite: str, program: str) -> Path | None:
    """Return the folder in the cache where *package* of *suite* is unpacked, if it is."""
    root = folders.cache_folder() / f"debian-{suite}-{package}"
    return root if (root / "complete").exists() and (root / program).exists() else None


def unpack(package: str, suite: str, program: str) -> Path:
    """Unpack *package* and its dependencies in the cache, unless they are there. Returns the
    folder.

    It downloads some 50 MB for a server, once.
    """
    cache = folders.cache_folder()
    root = cache / f"debian-{suite}-{package}"
    with folders.locked(cache, root.name):
        if unpacked(package, suite, program) is None:
            shutil.rmtree(root, ignore_errors=True)
            draft = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=cache))
            try:
                draft.chmod(0o755)
                _fill(draft, package, suite)
                (draft / "complete").touch()
                draft.rename(root)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
    return root


def loader(root: Path) -> list[str | Path]:
    """Return the beginning of a command line that runs a program of *root* with the C library and
    the libraries there.
    """
    found = [*root.glob("usr/lib/*/ld-linux*.so.*"), *root.glob("usr/lib64/ld-linux*.so.*")]
    if not found:
        raise ServerUnavailable(
            DOWNLOAD(f"no dynamic loader in {root}; remove that folder and try again")
        )
    libraries = ":".join(str(folder) for folder in sorted(root.glob("usr/lib/*-linux-gnu*")))
    return [found[0], "--library-path", libraries]


def _fill(root: Path, package: str, suite: str) -> None:
    mirror, index = _index(suite)
    wanted = _closure(package, index)
    with ThreadPoolExecutor(8) as pool:
        for name, data in zip(
            wanted,
            pool.map(lambda name: _fetch(f"{mirror}/{index[name]['Filename']}"), wanted),
            strict=True,
        ):
            if hashlib.sha256(data).hexdigest() != index[name]["SHA256"]:
                raise ServerUnavailable(
                    DOWNLOAD(f"the download of {name} of Debian {suite} is damaged; try again")
                )
            with tempfile.NamedTemporaryFile(suffix=".deb") as deb:
                deb.write(data)
                deb.flush()
                _run(["dpkg-deb", "--extract", deb.name, str(root)])


def _index(suite: str) -> tuple[str, dict[str, Package]]:
    """Return the mirror that has *suite*, and every package in it."""
    problem: Exception | None = None
    for mirror in _mirrors():
        try:
            return mirror, _packages(mirror, suite)
        except (OSError, ServerUnavailable) as error:
            problem = error
    raise ServerUnavailable(DOWNLOAD(f"no mirror of apt has Debian {suite}: {problem}"))


def _mirrors() -> list[str]:
    lines = _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    ).split()
    return list(
        dict.fromkeys(
            line.rstrip("/") for line in lines if line.startswith("http") and "security" not in line
        )
    )


def _packages(mirror: str, suite: str) -> dict[str, Package]:
    release = _signed(_fetch(f"{mirror}/dists/{suite}/InRelease"), suite)
    path = f"main/binary-{_run(['dpkg', '--print-architecture']).strip()}/Packages.xz"
    sums = {
        line.split()[2]: line.split()[0]
        for line in release.partition("SHA256:")[2].splitlines()
        if len(line.split()) == 3
    }
    if path not in sums:
        raise ServerUnavailable(DOWNLOAD(f"{mirror} has no {path} of Debian {suite}"))
    data = _fetch(f"{mirror}/dists/{suite}/{path}")
    if hashlib.sha256(data).hexdigest() != sums[path]:
        raise ServerUnavailable(
            DOWNLOAD(
                f"the index of Debian {suite} at {mirror} changed while it was read; try again"
            )
        )
    return _parsed(lzma.decompress(data).decode())


def _signed(text: bytes, suite: str) -> str:
    """Return the signed part of a release file. Raises ServerUnavailable if the signature is not
    Debian's.
    """
    keyring = next((path for path in _KEYRINGS if Path(path).exists()), None)
    if keyring is None:
        raise ServerUnavailable(
            DOWNLOAD("cannot check Debian's signatures; install debian-archive-keyring")
        )
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        return _run(
            ["gpgv", "--quiet", "--keyring", keyring, "--output", "-", file.name],
            f"the signature of Debian {suite}",
        )


def _parsed(text: str) -> dict[str, Package]:
    found: dict[str, Package] = {}
    for block in text.split("\n\n"):
        fields = dict(
            re.findall(
                r"^(Package|Version|Depends|Pre-Depends|Filename|SHA256): (.*)$",
                block,
                re.MULTILINE,
            )
        )
        if fields:
            found.setdefault(fields["Package"], fields)
    return found


def _closure(package: str, index: dict[str, Package]) -> list[str]:
    """Return *package* and its dependencies, the first of each list of alternatives."""
    if package not in index:
        raise ServerUnavailable(DOWNLOAD(f"Debian's index has no package {package}"))
    wanted = [package]
    for name in wanted:
        fields = index[name]
        for need in _names(
            f"{fields.get('Depends', '')},{fields.get('Pre-Depends', '')}".split(",")
        ):
            if need in index and need not in wanted and need not in _PLAIN:
                wanted.append(need)
    return wanted


def _names(needs: Iterable[str]) -> list[str]:
    return [re.split(r"[ :(]", need.partition("|")[0].strip())[0] for need in needs]


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        raise ServerUnavailable(DOWNLOAD(f"{url}: {error}")) from None


def _run(command: list[str], what: str | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except OSError as error:
        raise ServerUnavailable(DOWNLOAD(f"{command[0]} does not run: {error}")) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()[-20:])
        raise ServerUnavailable(DOWNLOAD(f"{what or command[0]} failed: {said}"))
    return done.stdout
