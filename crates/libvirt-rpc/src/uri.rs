//! libvirt connection URIs, parsed once into a checked type.
//!
//! ```text
//! driver[+transport]://[user@][host][:port]/path[?parameter=value&…]
//! ```
//!
//! - Without a transport, a host means `tls` and no host means `unix` (libvirt's `docs/uri.rst`).
//! - libvirt's own parameters (`socket`, `pkipath`, …) are for this side. Any other parameter belongs to the
//!   driver and is handed on to the daemon, as the C library does; only one that looks like a misspelt name of
//!   libvirt's own is refused.
//! - `test:///default` goes through the local daemon here; the C library runs that driver inside the client.
//!
//! Limits: 4,096 bytes (`MAX_URI_LEN`), printable ASCII; everything else must be percent-encoded.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::transport::Channel;

/// Longest URI in bytes: two paths of Linux' limit (4,096 bytes) do not fit, and no real URI comes near.
const MAX_URI_LEN: usize = 4096;

/// Drivers that live behind a libvirt daemon. `remote` means "whatever driver the daemon finds".
const DRIVERS: [&str; 11] =
    ["qemu", "xen", "ch", "lxc", "vbox", "vz", "parallels", "bhyve", "openvz", "test", "remote"];

/// Drivers of the C library that never speak to a libvirt daemon but to the vendor's own interface.
const CLIENT_SIDE_DRIVERS: [&str; 7] =
    ["esx", "gsx", "vpx", "hyperv", "vmwareplayer", "vmwarews", "vmwarefusion"];

const TRANSPORTS: [&str; 4] = ["unix", "tcp", "tls", "ssh"];

/// Parameters that are libvirt's own (`doRemoteOpen` in `remote_driver.c`): never handed on to the driver.
const PARAMETERS: [&str; 17] = [
    "name",
    "command",
    "socket",
    "auth",
    "sshauth",
    "netcat",
    "keyfile",
    "pkipath",
    "known_hosts",
    "known_hosts_verify",
    "tls_priority",
    "mode",
    "proxy",
    "no_sanity",
    "no_verify",
    "no_tty",
    "authfile",
];

/// The path that means the user's own daemon.
const SESSION: &str = "/session";

/// What stays as it is in a path handed on to the daemon (libxml2's `xmlSaveUri`, by which libvirt writes
/// it).
const PATH_ESCAPES: &AsciiSet = &VALUE_ESCAPES
    .remove(b'/')
    .remove(b'!')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b';')
    .remove(b'@')
    .remove(b'&')
    .remove(b'=')
    .remove(b'+')
    .remove(b'$')
    .remove(b',');

/// What stays as it is in a parameter's value handed on to the daemon (RFC 3986, unreserved).
const VALUE_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A libvirt connection URI that was checked when it was parsed: `"qemu:///system".parse::<Uri>()`.
///
/// Its `Display` is the text it was parsed from. That never holds a password: a URI with one is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri {
    text: String,
    driver: String,
    channel: Channel,
    user: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    /// Decoded, with its leading `/`.
    path: String,
    /// True where the transport was written out (`test+unix:`), which matters to libvirt's test driver.
    explicit_transport: bool,
    pub(crate) params: Params,
    /// Parameters for the driver, in the order given.
    handed_on: Vec<(String, String)>,
}

/// libvirt's own parameters, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Params {
    pub(crate) name: Option<String>,
    pub(crate) command: Option<String>,
    pub(crate) socket: Option<String>,
    pub(crate) netcat: Option<String>,
    pub(crate) keyfile: Option<String>,
    pub(crate) pkipath: Option<String>,
    pub(crate) known_hosts: Option<String>,
    pub(crate) known_hosts_verify: HostKeys,
    pub(crate) mode: Mode,
    pub(crate) proxy: Proxy,
    pub(crate) no_verify: bool,
    pub(crate) authfile: Option<String>,
}

/// `mode=`: which daemon's socket is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// The driver's own daemon if its socket is there, else the monolithic one.
    #[default]
    Auto,
    /// Only libvirtd (or virtproxyd in its place).
    Legacy,
    /// Only the driver's own daemon.
    Direct,
}

/// `proxy=`: what connects to the socket on the far side of ssh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Proxy {
    /// virt-ssh-helper where it is installed, else netcat.
    #[default]
    Auto,
    Netcat,
    /// virt-ssh-helper.
    Native,
}

/// `known_hosts_verify=`: what happens to a host key that ssh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum HostKeys {
    /// It is refused (there is nobody to ask).
    #[default]
    Normal,
    /// A new one is kept, a changed one refused.
    Auto,
    /// Any is taken.
    Ignore,
}

/// A URI that makes no sense: `Display` names the URI, the part that is wrong, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri}: {what}")]
pub struct UriError {
    /// As given, with a password replaced by `***` and anything unprintable escaped.
    uri: String,
    what: String,
}

impl Uri {
    /// The driver's name in lower case: `qemu`, `test`, `xen`, …; `remote` leaves the choice to the daemon.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The URI that CONNECT_OPEN carries: without transport, host and libvirt's own parameters, as
    /// `qemu:///system`. The parameter `name=` overrides it. Empty (the daemon chooses) for `remote:`.
    pub fn remote_name(&self) -> String {
        if let Some(name) = &self.params.name {
            return name.clone();
        }
        if self.driver == "remote" {
            return String::new();
        }
        let mut name = format!("{}://{}", self.driver, utf8_percent_encode(&self.path, PATH_ESCAPES));
        for (i, (key, value)) in self.handed_on.iter().enumerate() {
            let sep = if i == 0 { '?' } else { '&' };
            let key = utf8_percent_encode(key, VALUE_ESCAPES);
            name += &format!("{sep}{key}={}", utf8_percent_encode(value, VALUE_ESCAPES));
        }
        name
    }

    /// The other machine's name or address (IPv6 without brackets); None where the daemon is reached over a
    /// local socket.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// True for the per-user daemon (`qemu:///session`).
    pub fn is_session(&self) -> bool {
        self.path == SESSION
    }

    /// How the daemon is reached.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The port that was written out, if any.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The user's name before `@`: only ssh uses it.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The text for whoever may look, not only those who configure it: what is for the driver, and `name=`, a URI of its
    /// own, may hold a password, so their values are `***`.
    pub fn redacted(&self) -> String {
        let Some((before, query)) = self.text.split_once('?') else { return self.text.clone() };
        let shown = pairs(query).map(|(key, value)| match value {
            Some(value) if key != "name" && PARAMETERS.contains(&key) => format!("{key}={value}"),
            Some(_) => format!("{key}=***"),
            // A password that is cut by a ; goes on here.
            None => "***".to_owned(),
        });
        format!("{before}?{}", shown.collect::<Vec<_>>().join("&"))
    }

    /// True where libvirt asks the user's own daemon when it is not root: `/session`, and the test driver
    /// with a transport written out (`remoteGetURIDaemonInfo` in `remote_sockets.c`).
    pub(crate) fn wants_user_daemon(&self) -> bool {
        self.is_session() || (self.driver == "test" && self.explicit_transport)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        parse(text).map_err(|what| UriError { uri: presentable(text), what })
    }
}

fn parse(text: &str) -> Result<Uri, String> {
    check_text(text)?;
    let (scheme, rest) = text
        .split_once(':')
        .filter(|(scheme, _)| !scheme.is_empty() && !scheme.contains(['/', '?', '#', '@']))
        .ok_or("no driver: a libvirt URI begins with one, as in qemu:///system")?;
    if rest.contains('#') {
        return Err("a libvirt URI has no fragment: write # as %23".into());
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    if !path.is_empty() && !path.starts_with('/') {
        return Err(format!("path {path:?} must begin with /, as in {scheme}:///{path}"));
    }

    let (driver, transport) = parse_scheme(scheme)?;
    let Authority { user, host, port } = parse_authority(authority)?;
    let channel = match transport {
        Some(channel) => channel,
        None if host.is_some() => Channel::Tls,
        None => Channel::Unix,
    };
    let host = match (channel, host) {
        (Channel::Unix, Some(host)) => {
            return Err(format!("host {host:?} cannot be reached over a unix socket: use +tls or +ssh"));
        }
        (Channel::Unix, None) => None,
        (_, host) => Some(host.unwrap_or_else(|| "localhost".into())),
    };
    let path = decode("path", if path.is_empty() { "/" } else { path })?;
    let (params, handed_on) = parse_query(query)?;
    check_combination(channel, &path, &params)?;
    if params.name.is_none() {
        check_path(&driver, &path)?;
    }
    Ok(Uri {
        text: text.to_owned(),
        driver,
        channel,
        user,
        host,
        port,
        path,
        explicit_transport: transport.is_some(),
        params,
        handed_on,
    })
}

fn check_text(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("empty URI: the local QEMU is qemu:///system".into());
    }
    if text.len() > MAX_URI_LEN {
        return Err(format!("{} bytes long: at most {MAX_URI_LEN} are allowed", text.len()));
    }
    match text.char_indices().find(|(_, c)| !c.is_ascii_graphic()) {
        Some((at, c)) => {
            Err(format!("character {c:?} at byte {at} must be percent-encoded, as a space is %20"))
        }
        None => Ok(()),
    }
}

fn parse_scheme(scheme: &str) -> Result<(String, Option<Channel>), String> {
    let scheme = scheme.to_ascii_lowercase();
    let (driver, transport) = match scheme.split_once('+') {
        Some((driver, transport)) => (driver, Some(transport)),
        None => (scheme.as_str(), None),
    };
    if CLIENT_SIDE_DRIVERS.contains(&driver) {
        return Err(format!(
            "driver {driver:?} has no libvirt daemon (it is the vendor's own interface): not supported"
        ));
    }
    if !DRIVERS.contains(&driver) {
        return Err(format!("unknown driver {driver:?}: {}", nearest(driver, &DRIVERS)));
    }
    let channel = match transport {
        None => None,
        Some("unix") => Some(Channel::Unix),
        Some("tcp") => Some(Channel::Tcp),
        Some("tls") => Some(Channel::Tls),
        Some("ssh") => Some(Channel::Ssh),
        Some(other @ ("libssh" | "libssh2" | "ext")) => {
            return Err(format!("transport {other:?} is not supported: use ssh ({driver}+ssh://)"));
        }
        Some(other) => return Err(format!("unknown transport {other:?}: {}", nearest(other, &TRANSPORTS))),
    };
    Ok((driver.to_owned(), channel))
}

struct Authority {
    user: Option<String>,
    host: Option<String>,
    port: Option<u16>,
}

fn parse_authority(authority: &str) -> Result<Authority, String> {
    let (user, host_port) = match authority.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, authority),
    };
    let user = user.map(parse_user).transpose()?;
    let (host, port) = if let Some(rest) = host_port.strip_prefix('[') {
        let (address, rest) = rest
            .split_once(']')
            .ok_or_else(|| format!("host {host_port:?}: the closing ] of the IPv6 address is missing"))?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return Err(format!("{rest:?} after the IPv6 address: expected :PORT or nothing")),
        };
        (Some(parse_ipv6(address)?), port)
    } else if host_port.matches(':').count() > 1 {
        return Err(format!("host {host_port:?}: an IPv6 address stands in brackets, as in [::1]"));
    } else {
        let (host, port) = match host_port.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host_port, None),
        };
        (if host.is_empty() { None } else { Some(parse_host(host)?) }, port)
    };
    let port = match port {
        Some("") | None => None,
        Some(port) if host.is_none() => return Err(format!("port {port:?} without a host before it")),
        Some(port) => Some(parse_port(port)?),
    };
    Ok(Authority { user, host, port })
}

fn parse_user(user: &str) -> Result<String, String> {
    if user.contains(':') {
        return Err("a password in a URI is seen by everyone: put it into libvirt's auth.conf".into());
    }
    let user = decode("user", user)?;
    // ssh would take a leading - for an option.
    if user.is_empty() || user.starts_with('-') {
        return Err(format!("user {user:?} is no user name"));
    }
    Ok(user)
}

fn parse_host(host: &str) -> Result<String, String> {
    let host = decode("host", host)?;
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    // ssh would take a leading - for an option.
    if host.starts_with('-') || !host.chars().all(ok) {
        return Err(format!("host {host:?} is no host name (letters, digits, dots, hyphens)"));
    }
    Ok(host)
}

/// An IPv6 address with an optional zone: `fe80::1%eth0`, whose % may stand as %25 (RFC 6874).
fn parse_ipv6(text: &str) -> Result<String, String> {
    let text = text.replacen("%25", "%", 1);
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text.as_str(), None),
    };
    let ok = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let zone_ok = zone.is_none_or(|zone| !zone.is_empty() && zone.chars().all(ok));
    if address.parse::<Ipv6Addr>().is_err() || !zone_ok {
        return Err(format!("host [{text}] is no IPv6 address"));
    }
    Ok(text)
}

fn parse_port(port: &str) -> Result<u16, String> {
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number @ 1..) if digits => Ok(number),
        _ => Err(format!("port {port:?} is no number from 1 to 65535")),
    }
}

type HandedOn = Vec<(String, String)>;

/// Parameters as they are written, and their values if they have one.
fn pairs(mut query: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    std::iter::from_fn(move || {
        if query.is_empty() {
            return None;
        }
        // As `virURIParseParams` does: & separates; ; does where no & follows.
        let end = query.find('&').or_else(|| query.find(';')).unwrap_or(query.len());
        let pair = &query[..end];
        query = query.get(end + 1..).unwrap_or("");
        Some(pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value))))
    })
    .filter(|(key, _)| !key.is_empty())
}

fn parse_query(query: &str) -> Result<(Params, HandedOn), String> {
    let mut params = Params::default();
    let mut handed_on = Vec::new();
    for (key, value) in pairs(query) {
        let key = decode("parameter", key)?;
        let value = decode(&format!("parameter {key:?}"), value.unwrap_or(""))?;
        match PARAMETERS.iter().find(|known| known.eq_ignore_ascii_case(&key)) {
            Some(known) => set_parameter(&mut params, known, value)?,
            None => {
                if let Some(meant) = close(&key, &PARAMETERS) {
                    return Err(format!("unknown parameter {key:?}: did you mean {meant:?}?"));
                }
                handed_on.push((key, value));
            }
        }
    }
    Ok((params, handed_on))
}

/// Where a parameter is given twice the last one counts, as in libvirt.
fn set_parameter(params: &mut Params, name: &str, value: String) -> Result<(), String> {
    let text = |value: String| {
        if value.is_empty() { Err(format!("parameter {name:?} has no value")) } else { Ok(Some(value)) }
    };
    let one_of = |choices: &[&str]| {
        let found = choices.iter().position(|choice| *choice == value);
        found.ok_or_else(|| format!("{name}={value}: {}", nearest(&value, choices)))
    };
    let number = || {
        let number = value.parse::<i32>();
        number.map(|n| n != 0).map_err(|_| format!("{name}={value}: expected 0 or 1"))
    };
    match name {
        // An empty name is libvirt's way of saying "the daemon chooses".
        "name" => params.name = Some(value),
        "command" => params.command = text(value)?,
        "socket" => {
            if !value.starts_with('/') {
                return Err(format!("socket={value}: expected an absolute path"));
            }
            params.socket = Some(value);
        }
        "netcat" => params.netcat = text(value)?,
        "keyfile" => params.keyfile = ssh_path(name, value)?,
        "known_hosts" => params.known_hosts = ssh_path(name, value)?,
        "pkipath" => params.pkipath = text(value)?,
        "authfile" => params.authfile = text(value)?,
        "mode" => {
            params.mode = [Mode::Auto, Mode::Legacy, Mode::Direct][one_of(&["auto", "legacy", "direct"])?]
        }
        "proxy" => {
            params.proxy =
                [Proxy::Auto, Proxy::Netcat, Proxy::Native][one_of(&["auto", "netcat", "native"])?];
        }
        "known_hosts_verify" => {
            let kinds = [HostKeys::Normal, HostKeys::Auto, HostKeys::Ignore];
            params.known_hosts_verify = kinds[one_of(&["normal", "auto", "ignore"])?];
        }
        "no_verify" => params.no_verify = number()?,
        "tls_priority" => {
            return Err(
                "tls_priority is a GnuTLS string, and TLS is not done by GnuTLS here: leave it out".into()
            );
        }
        "auth" => {
            return Err("auth is not supported: the server's own list decides, leave it out".into());
        }
        // Nothing ever asks on a terminal here, certificate files are checked when used, and the system's ssh
        // is configured by its own files (libvirt's ssh transport ignores sshauth too).
        "no_tty" | "no_sanity" => drop(number()?),
        _ => {}
    }
    Ok(())
}

/// A path for an option of ssh, which understands quotes, backslashes and ${VARIABLES} in it.
fn ssh_path(name: &str, value: String) -> Result<Option<String>, String> {
    if value.is_empty() || value.contains(['"', '\\', '$']) {
        return Err(format!("{name}={value}: expected a path without \" \\ or $"));
    }
    Ok(Some(value))
}

fn check_combination(channel: Channel, path: &str, params: &Params) -> Result<(), String> {
    if channel == Channel::Ssh && params.mode == Mode::Direct && params.socket.is_none() {
        return Err(
            "mode=direct does not go with ssh: use proxy=native, or socket= for a certain socket".into()
        );
    }
    let by_netcat = params.proxy == Proxy::Netcat || (params.proxy == Proxy::Auto && params.netcat.is_some());
    if channel == Channel::Ssh && path == SESSION && by_netcat && params.socket.is_none() {
        return Err(
            "netcat would reach the system's daemon, for it does not know where the user's own (/session) listens: \
             use proxy=native, or give that socket by socket="
                .into(),
        );
    }
    if params.proxy == Proxy::Native {
        let odd = [("netcat", params.netcat.is_some()), ("socket", params.socket.is_some())];
        if let Some((name, _)) = odd.iter().find(|(_, given)| *given) {
            return Err(format!(
                "{name}= has no meaning with proxy=native: virt-ssh-helper finds its own way"
            ));
        }
    }
    Ok(())
}

/// Paths that the driver in the daemon would refuse anyway, said here in better words.
fn check_path(driver: &str, path: &str) -> Result<(), String> {
    match (driver, path) {
        ("qemu", "/embed") => {
            Err("path /embed runs QEMU inside the calling program, without a daemon: use qemu:///system"
                .into())
        }
        ("qemu" | "ch", "/system" | "/session") => Ok(()),
        ("qemu" | "ch", "/") => Err(format!("no path: did you mean {driver}:///system?")),
        ("qemu" | "ch", _) => {
            Err(format!("unknown path {path:?}: {}", nearest(path, &["/system", "/session"])))
        }
        ("test", "/") => Err("no path: did you mean test:///default?".into()),
        _ => Ok(()),
    }
}

/// Undoes percent-encoding; refuses what is no encoding, no UTF-8, or a control character.
fn decode(part: &str, text: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        let hex = bytes.get(at + 1..at + 3);
        if !hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
            return Err(format!("{part} {text:?}: % must be followed by two hexadecimal digits"));
        }
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| format!("{part} {text:?}: the percent-encoded bytes are no UTF-8"))?;
    if decoded.chars().any(char::is_control) {
        return Err(format!("{part} {text:?}: control characters make no sense there"));
    }
    Ok(decoded.into_owned())
}

/// "did you mean …" or the whole choice.
fn nearest(word: &str, choices: &[&str]) -> String {
    match close(word, choices) {
        Some(choice) => format!("did you mean {choice:?}?"),
        None => format!("expected one of {}", choices.join(", ")),
    }
}

/// The choice that a slip of the finger or two would turn into this word. Short words allow one slip.
fn close<'a>(word: &str, choices: &[&'a str]) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let slips = |choice: &str| strsim::osa_distance(&word, choice);
    let best = choices.iter().copied().min_by_key(|choice| slips(choice))?;
    let allowed = if word.len() < 5 { 1 } else { 2 };
    (slips(best) <= allowed).then_some(best)
}

/// The text for an error message: a password masked, unprintable characters escaped, no longer than a line.
fn presentable(text: &str) -> String {
    /// Characters of the URI in an error message; the rest is replaced by `…`.
    const MAX_SHOWN: usize = 200;
    let mut text = text.to_owned();
    if let Some(start) = text.find("//").map(|at| at + 2) {
        let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |at| start + at);
        // A password may itself hold / or ?: then the last @ still ends it.
        let end = text.rfind('@').map_or(end, |at| end.max(at));
        let authority = &text[start..end.min(text.len())];
        let at = text[start..].rfind('@').map(|at| start + at);
        if let (Some(colon), Some(at)) = (authority.find(':').map(|c| start + c), at)
            && colon < at
        {
            text.replace_range(colon + 1..at, "***");
        }
    }
    let shown: String = text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().count() > MAX_SHOWN { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_uris() {
        use Channel::{Ssh, Tcp, Tls, Unix};
        // URI, channel, host, port, user, name for the daemon
        type Expect<'a> = (Channel, Option<&'a str>, Option<u16>, Option<&'a str>, &'a str);
        let check = |text: &str, expect: Expect<'_>| {
            let uri: Uri = text.parse().unwrap_or_else(|e| panic!("{e}"));
            let name = uri.remote_name();
            assert_eq!((uri.channel(), uri.host(), uri.port(), uri.user(), name.as_str()), expect, "{text}");
            assert_eq!(uri.to_string(), text);
        };
        check("qemu:///system", (Unix, None, None, None, "qemu:///system"));
        check("qemu:///session", (Unix, None, None, None, "qemu:///session"));
        check("QEMU+Unix:///system", (Unix, None, None, None, "qemu:///system"));
        check("qemu:/system", (Unix, None, None, None, "qemu:///system"));
        check("xen:///", (Unix, None, None, None, "xen:///"));
        check("xen://", (Unix, None, None, None, "xen:///"));
        check("ch:///system", (Unix, None, None, None, "ch:///system"));
        check("test:///default", (Unix, None, None, None, "test:///default"));
        check("test+unix:///a%20b/c.xml", (Unix, None, None, None, "test:///a%20b/c.xml"));
        check("remote+unix:///", (Unix, None, None, None, ""));
        check("qemu+unix:///system?socket=/run/s", (Unix, None, None, None, "qemu:///system"));
        check("qemu+tcp:///system", (Tcp, Some("localhost"), None, None, "qemu:///system"));
        check(
            "qemu+tcp://hv-1.example:16509/system",
            (Tcp, Some("hv-1.example"), Some(16509), None, "qemu:///system"),
        );
        check("qemu://hv1/system", (Tls, Some("hv1"), None, None, "qemu:///system"));
        check("qemu+tls://[::1]:65535/system", (Tls, Some("::1"), Some(65535), None, "qemu:///system"));
        check("qemu+tls://[::1]/system", (Tls, Some("::1"), None, None, "qemu:///system"));
        check(
            "qemu+tls://[fe80::1%25eth0]/system",
            (Tls, Some("fe80::1%eth0"), None, None, "qemu:///system"),
        );
        check("qemu+tls://h:/system", (Tls, Some("h"), None, None, "qemu:///system"));
        check("qemu+ssh://root@hv1:22/system", (Ssh, Some("hv1"), Some(22), Some("root"), "qemu:///system"));
        check("qemu+ssh://h/session?netcat=nc&socket=/s", (Ssh, Some("h"), None, None, "qemu:///session"));
        check("qemu+ssh://a%40b@hv1/system", (Ssh, Some("hv1"), None, Some("a@b"), "qemu:///system"));
        // libvirt's own parameters stay here, the driver's go to the daemon, name= replaces all.
        check("xen:///system?no_verify=1&a=b%20c&d", (Unix, None, None, None, "xen:///system?a=b%20c&d="));
        check("test:///default?x=1;y=2", (Unix, None, None, None, "test:///default?x=1&y=2"));
        check("qemu+ssh://h/odd?name=qemu:///session", (Ssh, Some("h"), None, None, "qemu:///session"));
    }

    #[test]
    fn bad_uris_are_told_by_part() {
        let check = |text: &str, expect: &str| match text.parse::<Uri>() {
            Ok(uri) => panic!("{text} was taken as {uri:?}"),
            Err(e) => assert_eq!(e.to_string(), expect, "{text}"),
        };
        check("", ": empty URI: the local QEMU is qemu:///system");
        check("/run/sock", "/run/sock: no driver: a libvirt URI begins with one, as in qemu:///system");
        check("qemu", "qemu: no driver: a libvirt URI begins with one, as in qemu:///system");
        check("://h/system", "://h/system: no driver: a libvirt URI begins with one, as in qemu:///system");
        check("qmeu:///system", "qmeu:///system: unknown driver \"qmeu\": did you mean \"qemu\"?");
        check(
            "kvm:///system",
            "kvm:///system: unknown driver \"kvm\": expected one of qemu, xen, ch, lxc, vbox, vz, parallels, bhyve, \
             openvz, test, remote",
        );
        check(
            "esx://vc/dc",
            "esx://vc/dc: driver \"esx\" has no libvirt daemon (it is the vendor's own interface): not supported",
        );
        check("qemu+tpc://h/system", "qemu+tpc://h/system: unknown transport \"tpc\": did you mean \"tcp\"?");
        check(
            "qemu+:///system",
            "qemu+:///system: unknown transport \"\": expected one of unix, tcp, tls, ssh",
        );
        check(
            "qemu+libssh2://h/system",
            "qemu+libssh2://h/system: transport \"libssh2\" is not supported: use ssh (qemu+ssh://)",
        );
        check(
            "qemu+unix://h/system",
            "qemu+unix://h/system: host \"h\" cannot be reached over a unix socket: use +tls or +ssh",
        );
        check("qemu://h:0/system", "qemu://h:0/system: port \"0\" is no number from 1 to 65535");
        check("qemu://h:65536/system", "qemu://h:65536/system: port \"65536\" is no number from 1 to 65535");
        check("qemu://h:+1/system", "qemu://h:+1/system: port \"+1\" is no number from 1 to 65535");
        check("qemu+tcp://:1/system", "qemu+tcp://:1/system: port \"1\" without a host before it");
        check(
            "qemu://::1/system",
            "qemu://::1/system: host \"::1\": an IPv6 address stands in brackets, as in [::1]",
        );
        check(
            "qemu://[::1/system",
            "qemu://[::1/system: host \"[::1\": the closing ] of the IPv6 address is missing",
        );
        check("qemu://[h]/system", "qemu://[h]/system: host [h] is no IPv6 address");
        check(
            "qemu://[::1]x/system",
            "qemu://[::1]x/system: \"x\" after the IPv6 address: expected :PORT or nothing",
        );
        check(
            "qemu+ssh://-oProxyCommand=x/system",
            "qemu+ssh://-oProxyCommand=x/system: host \"-oProxyCommand=x\" is no host name (letters, digits, dots, \
             hyphens)",
        );
        check("qemu+ssh://-l@h/system", "qemu+ssh://-l@h/system: user \"-l\" is no user name");
        check("qemu+ssh://@h/system", "qemu+ssh://@h/system: user \"\" is no user name");
        check("qemu:///", "qemu:///: no path: did you mean qemu:///system?");
        check("qemu://hv1", "qemu://hv1: no path: did you mean qemu:///system?");
        check("qemu:///sytem", "qemu:///sytem: unknown path \"/sytem\": did you mean \"/system\"?");
        check("qemu:system", "qemu:system: path \"system\" must begin with /, as in qemu:///system");
        check(
            "qemu:///embed?root=/x",
            "qemu:///embed?root=/x: path /embed runs QEMU inside the calling program, without a daemon: use \
             qemu:///system",
        );
        check("test:///", "test:///: no path: did you mean test:///default?");
        check(
            "qemu:///system?sokcet=/s",
            "qemu:///system?sokcet=/s: unknown parameter \"sokcet\": did you mean \"socket\"?",
        );
        check("qemu:///system?socket=s", "qemu:///system?socket=s: socket=s: expected an absolute path");
        check("qemu://h/system?pkipath=", "qemu://h/system?pkipath=: parameter \"pkipath\" has no value");
        check(
            "qemu://h/system?no_verify=yes",
            "qemu://h/system?no_verify=yes: no_verify=yes: expected 0 or 1",
        );
        check(
            "qemu:///system?mode=direkt",
            "qemu:///system?mode=direkt: mode=direkt: did you mean \"direct\"?",
        );
        check(
            "qemu+ssh://h/system?mode=direct",
            "qemu+ssh://h/system?mode=direct: mode=direct does not go with ssh: use proxy=native, or socket= for a \
             certain socket",
        );
        for way in ["proxy=netcat", "netcat=nc", "proxy=netcat&netcat=nc"] {
            check(
                &format!("qemu+ssh://h/session?{way}"),
                &format!(
                    "qemu+ssh://h/session?{way}: netcat would reach the system's daemon, for it does not know where the \
                     user's own (/session) listens: use proxy=native, or give that socket by socket="
                ),
            );
        }
        check(
            "qemu+ssh://h/system?proxy=native&netcat=nc",
            "qemu+ssh://h/system?proxy=native&netcat=nc: netcat= has no meaning with proxy=native: virt-ssh-helper \
             finds its own way",
        );
        check(
            "qemu+ssh://h/system?keyfile=a%22b",
            "qemu+ssh://h/system?keyfile=a%22b: keyfile=a\"b: expected a path without \" \\ or $",
        );
        check(
            "qemu:///system?tls_priority=NORMAL",
            "qemu:///system?tls_priority=NORMAL: tls_priority is a GnuTLS string, and TLS is not done by GnuTLS here: \
             leave it out",
        );
        check(
            "qemu:///sys%tem",
            "qemu:///sys%tem: path \"/sys%tem\": % must be followed by two hexadecimal digits",
        );
        check("qemu:///%ff", "qemu:///%ff: path \"/%ff\": the percent-encoded bytes are no UTF-8");
        check("qemu:///%00", "qemu:///%00: path \"/%00\": control characters make no sense there");
        check("qemu:///system#x", "qemu:///system#x: a libvirt URI has no fragment: write # as %23");
        check(
            "qemu:///sys tem",
            "qemu:///sys tem: character ' ' at byte 11 must be percent-encoded, as a space is %20",
        );
        check(
            "qemu:///sys\ntem",
            "qemu:///sys\\ntem: character '\\n' at byte 11 must be percent-encoded, as a space is %20",
        );
    }

    #[test]
    fn passwords_are_refused_and_not_shown() {
        for text in [
            "qemu+ssh://u:secret@h/system",
            "qemu+ssh://u:secret@h",
            "qemu+ssh://u:sec/secret@h/system",
            "qemu+ssh://u:sec?secret@h/system",
            "qemu+ssh://u:sec#secret@h/system",
            "qemu+ssh://u:s@secret@h/system",
            "bogus://u:secret@h/system",
        ] {
            let error = text.parse::<Uri>().expect_err(text).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown_to_all() {
        let check = |text: &str, expect: &str| {
            assert_eq!(text.parse::<Uri>().expect(text).redacted(), expect);
        };
        check("qemu:///system", "qemu:///system");
        let open = "qemu+ssh://root@h/system?socket=/s&keyfile=/k&no_verify=1";
        check(open, open);
        check("test:///default?key=secret&flag&socket=/s", "test:///default?key=***&***&socket=/s");
        check("test:///default?socket=/s;key=sec;ret", "test:///default?socket=/s&key=***&***");
        check("test:///default?key=sec;ret&flag", "test:///default?key=***&***");
        // Not decoded, so not known.
        check("test:///default?s%6fcket=/s", "test:///default?s%6fcket=***");
        check("remote+ssh://h/?name=esx://u:secret@vc/dc", "remote+ssh://h/?name=***");
        check("remote+ssh://h/?NAME=esx://u:secret@vc/dc", "remote+ssh://h/?NAME=***");
    }

    #[test]
    fn long_uris_are_refused_in_short_words() {
        let error =
            format!("qemu:///{}", "x".repeat(MAX_URI_LEN)).parse::<Uri>().expect_err("too long").to_string();
        assert!(error.ends_with("4104 bytes long: at most 4096 are allowed"), "{error}");
        assert!(error.len() < 300);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_uri_or_an_error(text in "(qemu|test|xen)?(\\+[a-z]{3,4})?:?/{0,3}.{0,40}") {
            if let Ok(uri) = text.parse::<Uri>() {
                proptest::prop_assert_eq!(uri.to_string(), text);
                // What goes to the daemon is a URI again (or empty: the daemon's choice).
                let name = uri.remote_name();
                proptest::prop_assert!(name.is_empty() || uri.params.name.is_some() || name.parse::<Uri>().is_ok(), "{}", name);
            }
        }
    }
}
