//! A libvirtd of a test's own, to be stopped, restarted and configured while the machine's own libvirtd and its VMs
//! stay untouched.
//!
//! It runs in a mount namespace in which libvirt's directories are the test's. A holder process keeps the namespace
//! over restarts of the daemon; the QEMUs started in it survive them, as on any host. When the holder's standard input
//! ends, because the [`Daemon`] was dropped or the test was killed, it ends the daemon and its QEMUs and removes the
//! files.
//!
//! ```text
//! test ──stdin──▶ holder: sh in the namespace          /var/tmp/kvmetry-daemon-PID-N/
//!   │                                                      conf  pid  log  output
//!   └─ child: nsenter ▸ libvirtd, in the foreground        etc  lib  cache  run   libvirt's directories inside;
//!         └─ QEMUs                                                   run/libvirt-sock[-ro] is for all clients
//! ```
//!
//! Limits: root; libvirtd, unshare and nsenter are installed; x86-64 or whatever the machine's QEMU runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

/// How long a daemon may take until it accepts connections. Right after a package's upgrade it asks QEMU for its
/// abilities first.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a daemon may take to end after SIGTERM before it is killed: one that waits for a stopped QEMU never ends.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(20);
/// Lines of the daemon's log that a failed test shows.
const LOG_LINES: usize = 40;

/// The holder: `$1` is the test's directory. It ends the daemon and the QEMUs of this directory only, by their pid
/// files, and only if the process still is one.
const HOLDER: &str = r#"
set -e
mount --bind "$1/run" /run/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/cache" /var/cache/libvirt
mount --bind "$1/etc" /etc/libvirt
echo ready
set +e
trap '' INT TERM HUP
cat >/dev/null
for file in "$1/pid" "$1"/run/qemu/*.pid; do
    read -r pid <"$file" || [ -n "$pid" ] || continue
    case $(cat "/proc/$pid/comm") in libvirtd | qemu-*) kill -s KILL "$pid" ;; esac
    pid=
done 2>/dev/null
cd /
rm -rf "$1"
"#;

/// What a daemon is started with.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// Keys and values of libvirtd.conf. A value is written as it is: text in double quotes, lists in brackets.
    pub conf: BTreeMap<String, String>,
    /// Lines of qemu.conf.
    pub qemu_conf: String,
    /// `--listen`: TCP and TLS, as far as `conf` switches them on.
    pub listen: bool,
    /// Environment variables of the daemon.
    pub env: Vec<(String, String)>,
}

impl DaemonOptions {
    /// The same with a key of libvirtd.conf set to a text. Modes and ports are texts there.
    #[must_use]
    pub fn set(mut self, key: &str, text: &str) -> Self {
        self.conf.insert(key.into(), format!("\"{text}\""));
        self
    }

    /// The same with a key of libvirtd.conf set to a number. What is on or off is 1 or 0 there.
    #[must_use]
    pub fn set_number(mut self, key: &str, number: u32) -> Self {
        self.conf.insert(key.into(), number.to_string());
        self
    }
}

/// A libvirtd of the test's own. Dropping it ends the daemon and all of its QEMUs.
pub struct Daemon {
    dir: PathBuf,
    options: DaemonOptions,
    holder: Child,
    libvirtd: Option<Child>,
}

impl Daemon {
    /// Makes the namespace, without a daemon in it yet.
    ///
    /// # Errors
    /// Not root, a program is missing, or this machine allows no mount namespaces.
    pub fn new(options: DaemonOptions) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/var/tmp/kvmetry-daemon-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for name in ["", "etc", "run", "lib", "cache"] {
            let dir = dir.join(name);
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            // QEMU's user and unprivileged clients must pass, whatever this process's umask.
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        }
        // Output of QEMU goes straight to files: there is no virtlogd in the namespace.
        let qemu_conf = format!("stdio_handler = \"file\"\n{}\n", options.qemu_conf);
        fs::write(dir.join("etc/qemu.conf"), qemu_conf)?;
        // What the machine's libvirt knows of its QEMU need not be asked again.
        let _ = Command::new("cp").args(["-a", "/var/cache/libvirt/qemu"]).arg(dir.join("cache")).output();

        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", HOLDER, "sh"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It must outlive a test whose whole process group is killed.
            .process_group(0)
            .spawn()
            .context("cannot run `unshare` (package util-linux)")?;
        let mut said = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        if said.trim() != "ready" {
            let _ = holder.wait();
            let _ = fs::remove_dir_all(&dir);
            bail!(
                "no mount namespace for a libvirtd of the test's own: it needs root and libvirt's directories"
            );
        }
        Ok(Self { dir, options, holder, libvirtd: None })
    }

    /// A daemon that accepts connections.
    ///
    /// # Errors
    /// As [`Daemon::new`] and [`Daemon::start`].
    pub fn running(options: DaemonOptions) -> Result<Self> {
        let mut daemon = Self::new(options)?;
        daemon.start()?;
        Ok(daemon)
    }

    /// Starts the daemon and returns when it knows its QEMU and answers.
    ///
    /// Asking QEMU for its abilities takes seconds where libvirt's notes about them are old. It happens once in a
    /// daemon's life, in the first call that needs them, such as a domain's XML, and locks that domain and whoever
    /// lists it meanwhile. A test does not want it at a moment of chance.
    ///
    /// # Errors
    /// It runs already, or it ended or was not ready in time: then with the end of its log.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_for_socket()?;
        super::host::run("virsh", &["-q", "-r", "-c", &self.uri_read_only(), "capabilities"])
            .map(drop)
            .with_context(|| format!("the log of libvirtd:\n{}", self.log()))
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            // The socket file of a daemon that was killed is still there, but nobody answers.
            if UnixStream::connect(self.socket()).is_ok() {
                return Ok(());
            }
            let ended = match &mut self.libvirtd {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if let Some(status) = ended {
                self.libvirtd = None;
                bail!("libvirtd ended at once ({status}):\n{}", self.log());
            }
            if begun.elapsed() > START_PATIENCE {
                bail!("libvirtd is not ready after {} s:\n{}", START_PATIENCE.as_secs(), self.log());
            }
            thread::sleep(POLL);
        }
    }

    fn spawn(&mut self) -> Result<()> {
        if self.libvirtd.is_some() {
            bail!("this libvirtd runs already");
        }
        fs::write(self.dir.join("conf"), self.conf())?;
        let output = fs::File::options().create(true).append(true).open(self.dir.join("output"))?;
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--target", &self.holder.id().to_string(), "libvirtd"])
            .arg("--config")
            .arg(self.dir.join("conf"))
            .arg("--pid-file")
            .arg(self.dir.join("pid"))
            .args(self.options.listen.then_some("--listen"))
            .envs(self.options.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        self.libvirtd = Some(command.spawn().context("cannot run `nsenter` (package util-linux)")?);
        Ok(())
    }

    /// Ends the daemon as its service would (SIGTERM). Its QEMUs go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop(&mut self) -> Result<()> {
        let pid = self.pid()?;
        super::host::signal_pid(pid, "TERM")?;
        let begun = Instant::now();
        while let Some(child) = &mut self.libvirtd {
            if child.try_wait()?.is_some() {
                self.libvirtd = None;
                return Ok(());
            }
            if begun.elapsed() > STOP_PATIENCE {
                return self.kill();
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Ends the daemon with SIGKILL. Its QEMUs go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.libvirtd.take().ok_or_else(|| anyhow!("this libvirtd does not run"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops the daemon and starts it again, on the same sockets and VMs.
    ///
    /// # Errors
    /// As [`Daemon::stop`] and [`Daemon::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Process id of the running daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        self.libvirtd.as_ref().map(Child::id).context("this libvirtd does not run")
    }

    /// Process id of the holder, whose namespace `nsenter --mount --target` enters: there the daemon's sockets are
    /// where clients look for them by themselves.
    pub fn holder_pid(&self) -> u32 {
        self.holder.id()
    }

    /// What the next start uses.
    pub fn options_mut(&mut self) -> &mut DaemonOptions {
        &mut self.options
    }

    /// Directory of its files, open to all users.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The writable socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/libvirt-sock")
    }

    /// URI for clients that manage VMs, such as `virsh` and the lab.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// URI of the read-only socket.
    pub fn uri_read_only(&self) -> String {
        format!("{}-ro", self.uri())
    }

    /// The end of what the daemon said, for messages.
    pub fn log(&self) -> String {
        let mut all = String::new();
        for name in ["output", "log"] {
            let text = fs::read(self.dir.join(name)).unwrap_or_default();
            all.push_str(&String::from_utf8_lossy(&text));
        }
        let lines: Vec<_> = all.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn conf(&self) -> String {
        let dir = self.dir.display();
        let mut conf = BTreeMap::from([
            ("unix_sock_dir".to_owned(), format!("\"{dir}/run\"")),
            ("unix_sock_ro_perms".into(), "\"0777\"".into()),
            ("auth_unix_ro".into(), "\"none\"".into()),
            ("auth_unix_rw".into(), "\"none\"".into()),
            ("log_outputs".into(), format!("\"3:file:{dir}/log\"")),
        ]);
        conf.extend(self.options.conf.clone());
        let mut text = String::new();
        for (key, value) in conf {
            let _ = writeln!(text, "{key} = {value}");
        }
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the end of libvirtd's log:\n{}", self.log());
        }
        // The end of its standard input tells the holder to clean up.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        if let Some(mut child) = self.libvirtd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A TCP port of the loopback address that nobody listens on at this moment.
///
/// # Errors
/// The machine has no loopback address, or no port left.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?.local_addr()?.port())
}
