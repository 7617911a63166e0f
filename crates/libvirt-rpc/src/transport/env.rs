//! What dialing takes from its surroundings, as one value, so that a test can bring its own.

use std::env::var_os;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::process::PROC;

/// Directories and identity that libvirt's defaults depend on.
#[derive(Clone, Debug)]
pub(crate) struct Env {
    /// Effective user id: libvirt treats root differently in several places.
    pub(crate) euid: u32,
    /// `/run/libvirt`, `/var/run/libvirt`: the system daemons' sockets.
    pub(crate) system_runtime: Vec<PathBuf>,
    /// `$XDG_RUNTIME_DIR/libvirt`: the user's own daemon's sockets.
    pub(crate) user_runtime: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME/libvirt`.
    pub(crate) user_config: Option<PathBuf>,
    /// `$HOME/.pki/libvirt`.
    pub(crate) user_pki: Option<PathBuf>,
    /// `/etc`.
    pub(crate) etc: PathBuf,
    /// `/proc`.
    pub(crate) proc: PathBuf,
    /// `$LIBVIRT_AUTH_FILE`.
    pub(crate) auth_file: Option<PathBuf>,
}

impl Env {
    pub(crate) fn of_process() -> Self {
        let dir = |name: &str| var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = dir("HOME");
        let below_home = |tail: &str| home.as_ref().map(|home| home.join(tail));
        // GLib's rule, which libvirt follows: without a runtime directory the cache directory is used.
        let runtime =
            dir("XDG_RUNTIME_DIR").or_else(|| dir("XDG_CACHE_HOME")).or_else(|| below_home(".cache"));
        let config = dir("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
        Self {
            // Without /proc: nobody special.
            euid: std::fs::read_to_string("/proc/self/status")
                .ok()
                .and_then(|s| euid(&s))
                .unwrap_or(u32::MAX),
            system_runtime: vec!["/run/libvirt".into(), "/var/run/libvirt".into()],
            user_runtime: runtime.map(|dir| dir.join("libvirt")),
            user_config: config.map(|dir| dir.join("libvirt")),
            user_pki: below_home(".pki/libvirt"),
            etc: "/etc".into(),
            proc: PROC.into(),
            auth_file: dir("LIBVIRT_AUTH_FILE"),
        }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.euid == 0
    }
}

/// `Uid: REAL EFFECTIVE SAVED FILESYSTEM` of `/proc/PID/status` (proc(5)).
fn euid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// A whole file, refused where it is longer than `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_is_the_second_number() {
        let status = "Name:\tkvmetry\nUmask:\t0022\nUid:\t1000\t0\t33\t44\nGid:\t5\t6\t7\t8\n";
        assert_eq!(euid(status), Some(0));
        assert_eq!(euid("Name:\tkvmetry\n"), None);
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "12345").expect("a file");
        assert_eq!(read_limited(&path, 5).expect("not too long"), b"12345");
        assert_eq!(read_limited(&path, 4).expect_err("too long").to_string(), "longer than 4 bytes");
    }
}
