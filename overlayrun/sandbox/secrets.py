"""What of the user's disk no command sees: credentials, histories, mail, wallets. On the launch path."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Final

# Names below HOME.
_CREDENTIALS: Final = """
.ssh .gnupg .pki .age .password-store .local/share/keyrings .local/share/kwalletd .Xauthority .ICEauthority
.netrc .authinfo .authinfo.gpg .git-credentials .config/git/credentials .rhosts .config/gh
.config/glab .config/glab-cli .config/hub .config/op .config/sops .config/age .config/github-copilot
.aws .azure .oci .aliyun .bluemix .config/gcloud .config/doctl .config/hcloud .config/linode-cli
.config/scw .fly .railway .config/netlify .config/stripe .config/ngrok .ngrok2 .s3cfg .boto
.config/rclone .databrickscfg .snowflake .snowsql .kaggle .huggingface/token
.cache/huggingface/token .vault-token .pulumi/credentials.json .terraform.d/credentials.tfrc.json
.kube .minikube .config/helm .docker/config.json .docker/contexts .config/containers/auth.json
.pgpass .my.cnf .mylogin.cnf .pypirc .cargo/credentials .cargo/credentials.toml .gem/credentials
.composer/auth.json .config/composer/auth.json .config/keepassxc .config/filezilla .config/remmina
.local/share/remmina
""".split()
_PRIVATE: Final = """
.bash_history .zsh_history .zhistory .histfile .local/share/fish/fish_history .local/share/atuin
.python_history .sqlite_history .psql_history .mysql_history .node_repl_history .rediscli_history .dbshell
.irb_history .lesshst .viminfo
.mozilla .librewolf .config/chromium .config/google-chrome .config/BraveSoftware .config/microsoft-edge
.config/vivaldi .config/opera snap/firefox snap/chromium .var/app
.thunderbird Mail Maildir .mutt .muttrc .msmtprc .fetchmailrc .mbsyncrc .offlineimaprc .config/aerc
.config/neomutt .config/evolution .local/share/evolution .local/share/geary
.config/Slack .config/discord .config/Signal .local/share/TelegramDesktop
.electrum .bitcoin .ethereum .monero .config/solana .config/Exodus
""".split()
# Other agents' logins; `ide` holds the keys to the user's running editors.
_AGENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "opencode": (".local/share/opencode/auth.json", ".local/share/opencode/mcp-auth.json"),
    "claude": (".claude/.credentials.json",),
    "codex": (".codex/auth.json",),
    "": (".claude/ide", ".gemini/oauth_creds.json", ".qwen/oauth_creds.json", ".config/cursor/auth.json"),
}
# Settings that builds need, and secrets only where they hold one of these words; in lower case.
_MIXED: Final[Mapping[str, tuple[bytes, ...]]] = {
    ".npmrc": (b"_auth", b"_password"),
    ".yarnrc": (b"_auth", b"_password"),
    ".yarnrc.yml": (b"npmauth",),
    ".bunfig.toml": (b"token", b"password"),
    ".pip/pip.conf": (b"@",),
    ".config/pip/pip.conf": (b"@",),
    ".config/uv/uv.toml": (b"@",),
    ".condarc": (b"@", b"/t/"),
    ".m2/settings.xml": (b"<password", b"<passphrase", b"<privatekey"),
    ".gradle/gradle.properties": (b"password", b"token", b"secret", b"apikey"),
    ".bundle/config": (b"__com", b"__org", b"__net", b"__io"),
    ".nuget/NuGet/NuGet.Config": (b"password",),
    ".terraformrc": (b"token",),
    ".curlrc": (b"user", b"-u", b"oauth", b"header"),
    ".wgetrc": (b"password", b"header"),
}
_MOST: Final = 64 * 1024  # bytes of such a file that are looked at

# Elsewhere. Their modes protect most of them from an ordinary user, but not from his groups or from root.
OUTSIDE: Final = """
/etc/shadow /etc/shadow- /etc/gshadow /etc/gshadow- /etc/security/opasswd /etc/sudoers /etc/sudoers.d
/etc/ssh/ssh_host_rsa_key /etc/ssh/ssh_host_ecdsa_key /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_dsa_key
/etc/ssl/private /etc/pki/tls/private /etc/letsencrypt /etc/krb5.keytab /etc/NetworkManager /etc/iwd
/etc/wpa_supplicant /etc/wireguard /etc/openvpn /etc/ppp /etc/ipsec.secrets /etc/ipsec.d/private
/etc/swanctl/private /etc/exim4/passwd.client /etc/postfix/sasl_passwd
/etc/docker /etc/kubernetes /etc/rancher /etc/cni /var/lib/kubelet /var/lib/rancher /var/lib/NetworkManager
/var/lib/iwd /var/backups /var/mail /var/spool/mail /var/spool/cron
""".split()
_ORDINARY: Final = (stat.S_IFREG, stat.S_IFDIR)


class Masks:
    """What a run hides, of the secrets that are known.

    below: names below HOME, there or not. elsewhere: absolute paths. through: paths in a hidden directory of
    HOME that show nevertheless, read-only.
    """

    __slots__ = ("below", "elsewhere", "through")

    def __init__(self) -> None:
        self.below: set[str] = set()
        self.elsewhere: set[str] = set()
        self.through: list[str] = []


def find_masks(home: str, profile: str | None, mask: Iterable[str], unmask: Iterable[str]) -> Masks:
    """What to hide from a command.

    home: without links. profile: of the agent whose own login stays. mask, unmask: more and fewer, absolute
    or below HOME.
    """
    found = Masks()
    look = _Look(home)
    shown = [_named(path, home) for path in unmask]
    names = [*_CREDENTIALS, *_PRIVATE, *_held(home), *OUTSIDE, *(_named(path, home) for path in mask)]
    names += [name for agent, own in _AGENTS.items() if agent != profile for name in own]
    names = [name for name in names if not _is_within(name, shown)]
    names = [name for name in names if name[0] != "/" or not any(_is_within(path, [name]) for path in shown)]
    places = {place for name in names for place in look.places(name)}
    found.elsewhere = {place for place in places if place.startswith("/")}
    found.below = places - found.elsewhere
    found.through = [f"{home}/{path}" for path in shown if _is_within(path, names)]
    return found


def _is_within(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places) if places else False


def _named(path: str, home: str) -> str:
    """A path as these lists name it: below HOME, or absolute."""
    whole = os.path.normpath(os.path.join(home, os.path.expanduser(path)))
    return whole[len(home) + 1 :] if whole.startswith(f"{home}/") else whole


def _held(home: str) -> Iterator[str]:
    """Settings with a secret in them."""
    for name, words in _MIXED.items():
        try:
            with open(f"{home}/{name}", "rb", buffering=0) as file:
                text = file.read(_MOST).lower()
        except OSError:
            continue
        if any(word in text for word in words):
            yield name


class _Look:
    """Where a secret really lies: behind links, or nowhere yet. Asks the disk once for each name."""

    __slots__ = ("_home", "_known", "_listed")

    def __init__(self, home: str) -> None:
        self._home = home
        self._known: dict[str, int] = {}
        self._listed = _list(home)

    def places(self, name: str) -> Iterator[str]:
        """Names below HOME, or absolute paths, that must be hidden so that `name` is.

        Where a directory above is missing it is hidden itself, so that one made during the run brings nothing
        in.
        """
        at = name.find("/", 1) if name[0] != "/" else 0
        while at > 0:
            kind = self._kind(name[:at])
            if not kind:
                yield name[:at]
            elif kind == stat.S_IFLNK:
                yield from self._behind(name[:at], name[at:])
            if kind != stat.S_IFDIR:
                return
            at = name.find("/", at + 1)
        kind = self._kind(name)
        if kind == stat.S_IFLNK:
            yield from self._behind(name, "")
        if name[0] != "/" or kind not in (0, stat.S_IFLNK):  # elsewhere, only what is there can be covered
            yield name

    def _behind(self, link: str, rest: str) -> Iterator[str]:
        """What a link leads to; devices (~/.bash_history is often /dev/null) are nobody's secret."""
        target = os.path.realpath(os.path.join(self._home, link)) + rest
        if self._kind(target) in (0, *_ORDINARY) and not f"{self._home}/".startswith(f"{target}/"):
            yield from self.places(_named(target, self._home))

    def _kind(self, name: str) -> int:
        """Type of a file by its name below HOME or its path; 0 where there is none."""
        if "/" not in name and name not in self._listed:
            return 0
        kind = self._known.get(name)
        if kind is None:
            try:
                kind = stat.S_IFMT(os.lstat(os.path.join(self._home, name)).st_mode)
            except OSError:
                kind = 0
            self._known[name] = kind
        return kind


def _list(directory: str) -> frozenset[str]:
    """One look at HOME saves a hundred at what is not there."""
    try:
        return frozenset(os.listdir(directory))
    except OSError:
        return frozenset()


def listening_sockets() -> set[str]:
    """Paths of unix sockets that somebody has bound in this network namespace.

    Source: proc_net(5), unix: the path is the last field. A relative one says not where it lies.
    """
    try:
        with open("/proc/net/unix", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:  # a container without it
        return set()
    return {os.fsdecode(b"/" + path) for _, found, path in (line.partition(b" /") for line in lines) if found}
