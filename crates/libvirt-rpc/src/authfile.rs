//! libvirt's file of client passwords (`docs/auth.rst`, `src/util/virauth.c`, `virauthconfig.c`).
//!
//! ```text
//! [credentials-monitor]        a name and password under a name of its own
//! username=kvmetry
//! password=secret
//!
//! [auth-libvirt-hv1.example]   which of them is for which host, as written in the URI (localhost for local sockets)
//! credentials=monitor
//!
//! [auth-libvirt-default]       for every other host
//! credentials=monitor
//! ```
//!
//! One file is read, the first of: `$LIBVIRT_AUTH_FILE`, the URI's `authfile=`,
//! `$XDG_CONFIG_HOME/libvirt/auth.conf`, `/etc/libvirt/auth.conf`; the last two only if they can be read. One that exists
//! and cannot be is named where a password is missing.
//!
//! Limits: [`MAX_LEN`] bytes, UTF-8. The syntax is GLib's key file: `#` begins a comment line, values know
//! the escapes `\s \t \n \r \\`. Where a key stands twice the last one counts.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::sasl::Credentials;
use crate::transport::{Env, read_limited};
use crate::uri::Uri;

/// Longest file in bytes: some thousand hosts.
const MAX_LEN: u64 = 1 << 20;

/// The credentials for a host. The error is a line for a person.
pub(crate) fn find(uri: &Uri, host: &str) -> Result<Credentials, String> {
    find_in(&Env::of_process(), uri, host)
}

fn find_in(env: &Env, uri: &Uri, host: &str) -> Result<Credentials, String> {
    let Choice { path, looked_at, closed } = choose(env, uri);
    let Some(path) = path else {
        return Err(missing(&looked_at, host, &closed));
    };
    let shown = path.display();
    let bytes = read_limited(&path, MAX_LEN)
        .map_err(|e| format!("the daemon wants a password, and {shown} cannot be read: {e}"))?;
    warn_if_open_to_all(&path);
    let text = String::from_utf8(bytes)
        .map_err(|e| format!("{shown}: byte {} is no UTF-8", e.utf8_error().valid_up_to()))?;
    match look_up(&text, host) {
        Ok(Some(credentials)) => Ok(credentials),
        Ok(None) => Err(missing(&[path], host, &closed)),
        Err(what) => Err(format!("{shown}: {what}")),
    }
}

/// Which file counts.
#[derive(Default)]
struct Choice {
    path: Option<PathBuf>,
    /// All that were looked at.
    looked_at: Vec<PathBuf>,
    /// Those passed over that exist, and why they cannot be read.
    closed: Vec<(PathBuf, io::Error)>,
}

fn choose(env: &Env, uri: &Uri) -> Choice {
    // These two were named by a person: they are not passed over when they cannot be read.
    if let Some(path) = env.auth_file.clone().or_else(|| uri.params.authfile.as_ref().map(PathBuf::from)) {
        return Choice { path: Some(path), ..Choice::default() };
    }
    let users = env.user_config.as_ref().map(|dir| dir.join("auth.conf"));
    let mut choice = Choice::default();
    for path in users.into_iter().chain([env.etc.join("libvirt/auth.conf")]) {
        choice.looked_at.push(path.clone());
        match File::open(&path) {
            Ok(_) => {
                choice.path = Some(path);
                break;
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => choice.closed.push((path, e)),
        }
    }
    choice
}

fn missing(paths: &[PathBuf], host: &str, closed: &[(PathBuf, io::Error)]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    let mut what = format!(
        "the daemon wants a password, and {} has none for {host}: write there [credentials-c] username=NAME \
         password=WORD and [auth-libvirt-{host}] credentials=c, each on a line of its own",
        paths.join(" or ")
    );
    for (path, e) in closed {
        what += &format!("; {} cannot be read by this user ({e})", path.display());
    }
    what
}

fn warn_if_open_to_all(path: &Path) {
    let open = std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0);
    if open {
        tracing::warn!(path = %path.display(), "every user of this machine can read this file of passwords: chmod 600");
    }
}

/// What the file says of a host: None if nothing.
fn look_up(text: &str, host: &str) -> Result<Option<Credentials>, String> {
    let lines = parse(text)?;
    let has_group = |group: &str| lines.iter().any(|line| line.group == group);
    let get = |group: &str, key: &str| {
        let found = lines
            .iter()
            .rev()
            .find(|line| line.group == group && line.pair.is_some_and(|pair| pair.0 == key));
        found.and_then(|line| line.pair).map(|pair| unescape(pair.1)).filter(|value| !value.is_empty())
    };
    let groups = [format!("auth-libvirt-{host}"), "auth-libvirt-default".to_owned()];
    let Some(group) = groups.iter().find(|group| has_group(group)) else {
        return Ok(None);
    };
    let name = get(group, "credentials").ok_or_else(|| format!("[{group}] has no line credentials=NAME"))?;
    let group_of_name = format!("credentials-{name}");
    if !has_group(&group_of_name) {
        return Err(format!("[{group}] points to [{group_of_name}], which is not there"));
    }
    let part =
        |key: &str| get(&group_of_name, key).ok_or_else(|| format!("[{group_of_name}] has no line {key}="));
    Ok(Some(Credentials { username: part("username")?, password: part("password")? }))
}

/// A line of the file: a group's head has no pair.
struct Line<'a> {
    group: &'a str,
    pair: Option<(&'a str, &'a str)>,
}

fn parse(text: &str) -> Result<Vec<Line<'_>>, String> {
    let mut lines = Vec::new();
    let mut group = None;
    for (number, line) in text.lines().enumerate() {
        // Never the line itself in a message: it may hold a password.
        let fault = |what: &str| Err(format!("line {}: {what}", number + 1));
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(head) = line.strip_prefix('[') {
            let Some(name) = head.trim_end().strip_suffix(']') else {
                return fault("the closing ] of the group is missing");
            };
            group = Some(name);
            lines.push(Line { group: name, pair: None });
            continue;
        }
        match (group, line.split_once('=')) {
            (Some(group), Some((key, value))) => {
                // A password may end in a space, but not begin with one (unless written \s).
                lines.push(Line { group, pair: Some((key.trim_end(), value.trim_start())) });
            }
            (None, _) => return fault("expected [GROUP] first"),
            (_, None) => return fault("expected KEY=VALUE, [GROUP] or a # comment"),
        }
    }
    Ok(lines)
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('s') => out.push(' '),
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('\\') => out.push('\\'),
            // GLib refuses the file here; the password that a person has in mind is more likely this.
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lookup_follows_libvirt() {
        let check = |text: &str, host: &str, expect: Result<Option<(&str, &str)>, &str>| {
            let got = look_up(text, host).map(|found| found.map(|c| (c.username, c.password)));
            let expect = expect.map(|found| found.map(|(u, p)| (u.to_owned(), p.to_owned())));
            assert_eq!(got, expect.map_err(str::to_owned), "{text:?} for {host}");
        };
        let file = "# comment\n[credentials-a]\nusername = ann\r\npassword=a=b c \n\n[credentials-b]\nusername=bob\n\
                    password=\\sx\\\\y\n[auth-libvirt-hv1]\ncredentials=a\n[auth-libvirt-default]\ncredentials=b\n";
        check(file, "hv1", Ok(Some(("ann", "a=b c "))));
        check(file, "hv2", Ok(Some(("bob", " x\\y"))));
        check("", "hv1", Ok(None));
        check("[auth-libvirt-hv1]\ncredentials=a\n", "hv2", Ok(None));
        check("[auth-esx-hv1]\ncredentials=a\n", "hv1", Ok(None));
        check("[auth-libvirt-h]\n", "h", Err("[auth-libvirt-h] has no line credentials=NAME"));
        check(
            "[auth-libvirt-h]\ncredentials=a\n",
            "h",
            Err("[auth-libvirt-h] points to [credentials-a], which is not there"),
        );
        let half = "[auth-libvirt-h]\ncredentials=a\n[credentials-a]\nusername=u\n";
        check(half, "h", Err("[credentials-a] has no line password="));
        check("username=u\n", "h", Err("line 1: expected [GROUP] first"));
        check("[a]\nsecret\n", "h", Err("line 2: expected KEY=VALUE, [GROUP] or a # comment"));
        check("\n[a\n", "h", Err("line 2: the closing ] of the group is missing"));
    }

    #[test]
    fn the_first_file_counts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, user: &str| {
            fs::create_dir_all(at(name).parent().expect("a directory")).expect("a directory");
            let text = format!(
                "[auth-libvirt-default]\ncredentials=c\n[credentials-c]\nusername={user}\npassword=p\n"
            );
            fs::write(at(name), text).expect("a file");
        };
        let mut env =
            Env { etc: at("etc"), user_config: Some(at("user")), auth_file: None, ..Env::of_process() };
        let named = format!("qemu:///system?authfile={}", at("named").display());
        let check = |env: &Env, uri: &str, expect: Result<&str, String>| {
            let uri = uri.parse().expect("a good URI");
            assert_eq!(find_in(env, &uri, "h").map(|c| c.username), expect.map(str::to_owned), "{uri}");
        };
        let plain = "qemu:///system";
        let (user, etc) =
            (at("user/auth.conf").display().to_string(), at("etc/libvirt/auth.conf").display().to_string());
        let advice = "write there [credentials-c] username=NAME password=WORD and [auth-libvirt-h] credentials=c, each \
                      on a line of its own";
        let none = format!("the daemon wants a password, and {user} or {etc} has none for h: {advice}");
        check(&env, plain, Err(none.clone()));
        // Root may read everything, but nobody a link to itself.
        let link = at("user/auth.conf");
        fs::create_dir(at("user")).and_then(|()| std::os::unix::fs::symlink(&link, &link)).expect("a link");
        let closed = "cannot be read by this user (Too many levels of symbolic links (os error 40))";
        check(&env, plain, Err(format!("{none}; {user} {closed}")));
        fs::create_dir(at("etc")).and_then(|()| fs::create_dir(at("etc/libvirt"))).expect("directories");
        fs::write(&etc, "").expect("a file");
        let none = format!("the daemon wants a password, and {etc} has none for h: {advice}");
        check(&env, plain, Err(format!("{none}; {user} {closed}")));
        fs::remove_file(&link).expect("removed");
        write("etc/libvirt/auth.conf", "etc");
        check(&env, plain, Ok("etc"));
        write("user/auth.conf", "user");
        check(&env, plain, Ok("user"));
        // One that was named is not passed over.
        let absent =
            format!("{} cannot be read: No such file or directory (os error 2)", at("named").display());
        check(&env, &named, Err(format!("the daemon wants a password, and {absent}")));
        write("named", "named");
        check(&env, &named, Ok("named"));
        write("environment", "environment");
        env.auth_file = Some(at("environment"));
        check(&env, &named, Ok("environment"));
    }

    #[test]
    fn odd_files_are_refused_without_showing_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("auth.conf");
        let env = Env { auth_file: Some(path.clone()), ..Env::of_process() };
        let check = |expect: String| {
            let uri = "qemu:///system".parse().expect("a good URI");
            assert_eq!(find_in(&env, &uri, "h").expect_err("an odd file"), expect);
        };
        let shown = path.display();
        fs::write(&path, b"[a]\npassword=\xff").expect("a file");
        check(format!("{shown}: byte 13 is no UTF-8"));
        fs::File::create(&path).and_then(|file| file.set_len(MAX_LEN + 1)).expect("a sparse file");
        check(format!("the daemon wants a password, and {shown} cannot be read: longer than 1048576 bytes"));
    }
}
