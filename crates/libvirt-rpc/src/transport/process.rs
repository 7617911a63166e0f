//! Which process the daemon behind a unix socket is, and whether it still exists.
//!
//! ```text
//! SO_PEERCRED ─▶ pid ─▶ /proc/PID/comm   libvirtd, virtqemud, …: else it tells nothing of the daemon
//!                   └─▶ /proc/PID/stat   field 22, when it began: a pid is used again
//! ```
//!
//! The credentials are those of whoever called listen(2) on the socket: the daemon itself, which does so again on a
//! socket that systemd handed it, but init, a user's systemd, socat or virtproxyd as well, which outlive it. And who
//! connects while a daemon of systemd's is ending waits for its successor with the credentials of the old one: so they
//! count only if the process still exists when the handshake has been answered.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// A daemon's process, told apart from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DaemonProcess {
    /// Its number.
    pub pid: i32,
    /// When it began, in clock ticks since the machine started (proc_pid_stat(5), field 22).
    pub started_ticks: u64,
}

/// Where the kernel shows processes.
pub(crate) const PROC: &str = "/proc";

impl DaemonProcess {
    /// The process `pid`, if it exists, may be looked at, and is a libvirt daemon by its name.
    pub(crate) fn of(proc: &Path, pid: i32) -> Option<Self> {
        let name = fs::read_to_string(proc.join(pid.to_string()).join("comm")).ok()?;
        if !is_daemon(name.trim_end()) {
            return None;
        }
        Some(Self { pid, started_ticks: started_ticks(proc, pid).ok()?? })
    }

    /// True where it is certain that the process has ended. What cannot be read is not certain.
    pub(crate) fn is_gone(&self, proc: &Path) -> bool {
        match started_ticks(proc, self.pid) {
            Ok(Some(ticks)) => ticks != self.started_ticks,
            Ok(None) => false,
            Err(kind) => kind == ErrorKind::NotFound,
        }
    }
}

/// The names of libvirt's daemons. virtproxyd only passes on what another one answers.
fn is_daemon(name: &str) -> bool {
    name == "libvirtd" || (name.starts_with("virt") && name.ends_with('d') && name != "virtproxyd")
}

/// Field 22 of `PID (NAME) STATE PPID …`; the name, field 2, may itself hold spaces and brackets. None where it is
/// not there.
fn started_ticks(proc: &Path, pid: i32) -> Result<Option<u64>, ErrorKind> {
    let stat = fs::read(proc.join(pid.to_string()).join("stat")).map_err(|e| e.kind())?;
    let stat = String::from_utf8_lossy(&stat);
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_ascii_whitespace().nth(22 - 3).and_then(|ticks| ticks.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of `/proc/PID/stat`, as Linux 6 writes it.
    fn stat(name: &str, ticks: u64) -> String {
        format!(
            "77 ({name}) S 1 77 77 0 -1 4194560 9 8 7 6 5 4 3 2 20 0 21 0 {ticks} 1 2 18446744073709551615 1 1\n"
        )
    }

    fn write(proc: &Path, name: &str, ticks: u64) {
        fs::create_dir_all(proc.join("77")).expect("a directory");
        fs::write(proc.join("77/comm"), format!("{name}\n")).expect("a file");
        fs::write(proc.join("77/stat"), stat(name, ticks)).expect("a file");
    }

    #[test]
    fn only_a_daemon_tells_which_process_it_is() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["libvirtd", "virtqemud", "virtxend", "virtinterfaced"] {
            write(dir.path(), name, 4711);
            let expect = Some(DaemonProcess { pid: 77, started_ticks: 4711 });
            assert_eq!(DaemonProcess::of(dir.path(), 77), expect, "{name}");
        }
        for name in ["systemd", "virtproxyd", "socat", "virsh", "virt-ssh-helper", ""] {
            write(dir.path(), name, 4711);
            assert_eq!(DaemonProcess::of(dir.path(), 77), None, "{name}");
        }
        assert_eq!(DaemonProcess::of(dir.path(), 78), None, "no such process");
    }

    #[test]
    fn a_process_is_gone_when_its_number_is_free_or_anothers() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let proc = dir.path();
        write(proc, "libvirtd", 4711);
        let process = DaemonProcess::of(proc, 77).expect("a daemon");
        assert!(!process.is_gone(proc));
        // A process that has just been replaced by exec has another name, and is the same.
        write(proc, "odd ) name (", 4711);
        assert!(!process.is_gone(proc));
        write(proc, "libvirtd", 4712);
        assert!(process.is_gone(proc));
        // What makes no sense is no proof.
        fs::write(proc.join("77/stat"), "77 (libvirtd) S 1").expect("a file");
        assert!(!process.is_gone(proc));
        fs::remove_dir_all(proc.join("77")).expect("removed");
        assert!(process.is_gone(proc));
    }

    /// The real /proc: this process, and one that has ended.
    #[test]
    fn the_kernels_own_files_are_understood() {
        let proc = Path::new("/proc");
        let of = |pid: u32| {
            let pid = pid as i32;
            let started_ticks = started_ticks(proc, pid).expect("it exists").expect("it began");
            DaemonProcess { pid, started_ticks }
        };
        assert!(!of(std::process::id()).is_gone(proc));
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep runs");
        let process = of(child.id());
        assert!(process.started_ticks >= of(std::process::id()).started_ticks);
        child.kill().expect("ours");
        child.wait().expect("ours");
        assert!(process.is_gone(proc));
    }
}
