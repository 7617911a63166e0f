//! What the lab needs from the machine: programs, root's rights, the guest kernel, a bridge, `/dev/kvm`.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::vm::{Domain, QCOW2_MIB, fnv};

/// The guest's source; see there what it does.
const GUEST_C: &str = include_str!("../../lab/guest.c");
/// Its linker script.
const GUEST_LD: &str = include_str!("../../lab/guest.ld");

/// Compiles for a bare 32-bit machine. Debian's gcc needs no multilib for that: nothing is linked in.
const GCC_FLAGS: &[&str] = &[
    "-m32",
    "-march=i686",
    "-mno-sse",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-pic",
    "-no-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-nostdlib",
    "-s",
    "-Wl,-m,elf_i386",
    "-Wl,--build-id=none",
    "-Wl,--no-warn-rwx-segments",
];

/// The guests' probes ask for this address, so that the host has something to answer (guest.c holds the same one).
/// Link-local and of this host alone: no route leads there.
const HOST_ADDRESS: &str = "169.254.87.1/32";

/// Says that a bridge is a lab's (the interface's alias).
const BRIDGE_ALIAS: &str = "kvmetry lab";

/// What the guest says on its serial port when it runs.
const GUEST_GREETING: &str = "kvmetry lab guest is up";

/// How long a trial VM with KVM may take to greet, where TCG is as welcome. It takes 0.3 s on real hardware. Some
/// nested KVMs need over 3 s, TCG beside them 0.1 s.
pub(crate) const TRIAL_FAST: Duration = Duration::from_secs(1);

/// The same where KVM was asked for by name.
pub(crate) const TRIAL_PATIENT: Duration = Duration::from_secs(20);

/// A program that runs to its end; its standard output.
///
/// # Errors
/// The program is not there (says what to install), or it failed (its own first line of complaint).
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| explain_missing(program, e))?;
    if !output.status.success() {
        bail!("{program} failed: {}", complaint(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`run`], with root's rights.
pub(crate) fn run_as_root(program: &str, args: &[&str]) -> Result<String> {
    if is_root() {
        return run(program, args);
    }
    let mut all = vec!["--", program];
    all.extend(args);
    run("sudo", &all).with_context(|| format!("{program} {} needs root", args.join(" ")))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|it| it.uid() == 0)
}

fn explain_missing(program: &str, e: std::io::Error) -> anyhow::Error {
    if e.kind() == ErrorKind::NotFound {
        anyhow!("`{program}` is not installed: run scripts/install-deps.sh")
    } else {
        anyhow!("cannot run `{program}`: {e}")
    }
}

/// What a failed program said, in one line.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> =
        text.lines().map(|l| l.trim().trim_start_matches("error: ")).filter(|l| !l.is_empty()).collect();
    match lines.as_slice() {
        [] => output.status.to_string(),
        lines => lines.join("; "),
    }
}

/// The guest kernel, compiled into `dir` unless it is there already.
pub(crate) fn guest_kernel(dir: &Path) -> Result<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the lab's guest is made for x86-64 machines, this is {}", std::env::consts::ARCH);
    }
    let hash = fnv([GUEST_C, GUEST_LD, &GCC_FLAGS.join(" ")].concat().as_bytes());
    let kernel = dir.join(format!("guest-{hash:016x}.elf"));
    if kernel.exists() {
        return Ok(kernel);
    }
    // Several labs may do this at the same time: each in its own files, and the last rename wins.
    let work = dir.join(format!("guest-build-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let (source, script, out) = (work.join("guest.c"), work.join("guest.ld"), work.join("guest.elf"));
    let built = fs::write(&source, GUEST_C)
        .and_then(|()| fs::write(&script, GUEST_LD))
        .with_context(|| format!("cannot write to {}", work.display()))
        .and_then(|()| {
            let mut args: Vec<String> = GCC_FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
            args.push("-T".into());
            for path in [&script, &source] {
                args.push(path.to_string_lossy().into_owned());
            }
            args.push("-o".into());
            args.push(out.to_string_lossy().into_owned());
            run("gcc", &args).context("the lab's guest does not compile")
        })
        .and_then(|_| {
            fs::set_permissions(&out, fs::Permissions::from_mode(0o644))?;
            fs::rename(&out, &kernel).with_context(|| format!("cannot write {}", kernel.display()))
        });
    let _ = fs::remove_dir_all(&work);
    built.map(|()| kernel)
}

/// An empty qcow2 image to copy from.
pub(crate) fn qcow2_template(dir: &Path) -> Result<PathBuf> {
    let template = dir.join("template.qcow2");
    if !template.exists() {
        let work = dir.join(format!("template-{}.qcow2", std::process::id()));
        let size = format!("{QCOW2_MIB}M");
        run("qemu-img", &["create", "-q", "-f", "qcow2", &work.to_string_lossy(), &size])?;
        fs::rename(&work, &template).with_context(|| format!("cannot write {}", template.display()))?;
    }
    Ok(template)
}

/// True while this interface exists.
pub(crate) fn bridge_exists(bridge: &str) -> bool {
    Path::new("/sys/class/net").join(bridge).exists()
}

/// Makes the bridge unless the lab has it already.
///
/// # Errors
/// An interface of this name exists that no lab made.
pub(crate) fn bridge_up(bridge: &str) -> Result<()> {
    if bridge_exists(bridge) {
        if !is_lab_bridge(bridge) {
            bail!("the interface {bridge} exists and is not a lab's: choose another with --bridge");
        }
        return Ok(());
    }
    run_as_root("ip", &["link", "add", "name", bridge, "type", "bridge"])
        .and_then(|_| run_as_root("ip", &["link", "set", "dev", bridge, "alias", BRIDGE_ALIAS]))
        .and_then(|_| run_as_root("ip", &["link", "set", "dev", bridge, "addrgenmode", "none"]))
        .and_then(|_| run_as_root("ip", &["address", "add", HOST_ADDRESS, "dev", bridge, "scope", "link"]))
        .and_then(|_| run_as_root("ip", &["link", "set", "dev", bridge, "up"]))
        .or_else(|e| if is_lab_bridge(bridge) { Ok(String::new()) } else { Err(e) }) // another lab was quicker
        .with_context(|| format!("cannot make the bridge {bridge}"))?;
    Ok(())
}

/// Removes the lab's bridge once nothing is plugged into it.
pub(crate) fn bridge_down(bridge: &str) -> Result<()> {
    let ports = Path::new("/sys/class/net").join(bridge).join("brif");
    let busy = fs::read_dir(ports).is_ok_and(|mut ports| ports.next().is_some());
    if is_lab_bridge(bridge) && !busy {
        run_as_root("ip", &["link", "delete", "dev", bridge, "type", "bridge"])?;
    }
    Ok(())
}

fn is_lab_bridge(bridge: &str) -> bool {
    let alias = Path::new("/sys/class/net").join(bridge).join("ifalias");
    fs::read_to_string(alias).is_ok_and(|it| it.trim() == BRIDGE_ALIAS)
}

const KVM: &str = "/dev/kvm";

/// Gives `/dev/kvm` to the group kvm, as udev does, where a container or an odd image left it to root alone. Without
/// that libvirt 9 cannot open it as QEMU's user and asks QEMU for its abilities anew at every start (57 s a VM).
pub(crate) fn open_kvm_to_qemu() -> Result<()> {
    let Ok(meta) = fs::metadata(KVM) else { return Ok(()) };
    if kvm_is_open_to_qemu(meta.mode(), meta.gid(), kvm_group()) {
        return Ok(());
    }
    run_as_root("chgrp", &["kvm", KVM])?;
    run_as_root("chmod", &["0660", KVM])?;
    Ok(())
}

/// Distributions put QEMU's user into the group kvm.
fn kvm_is_open_to_qemu(mode: u32, gid: u32, kvm_group: Option<u32>) -> bool {
    mode & 0o006 == 0o006 || (mode & 0o060 == 0o060 && Some(gid) == kvm_group)
}

fn kvm_group() -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| line.strip_prefix("kvm:")?.split(':').nth(1)?.parse().ok())
}

/// Starts a VM with KVM, directly and without devices, and waits for its greeting: a `/dev/kvm` that is there may
/// still not work (nested virtualisation switched off, or half supported).
///
/// # Errors
/// Why KVM cannot be used here.
pub(crate) fn try_kvm(kernel: &Path, patience: Duration) -> Result<Domain> {
    let meta = fs::metadata(KVM).map_err(|e| anyhow!("{KVM}: {e}"))?;
    if !kvm_is_open_to_qemu(meta.mode(), meta.gid(), kvm_group()) {
        bail!("{KVM} is not open to QEMU's user: chgrp kvm {KVM}; chmod 660 {KVM}");
    }
    // Only root can be sure to open it here; who is not in the group kvm asks root.
    let mut command = if is_root() || fs::File::options().read(true).write(true).open(KVM).is_ok() {
        Command::new("qemu-system-x86_64")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--", "timeout", "30", "qemu-system-x86_64"]);
        sudo
    };
    let mut qemu = command
        .args(["-accel", "kvm", "-m", "32", "-nodefaults", "-display", "none", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| explain_missing("qemu-system-x86_64", e))?;
    let (tell, heard) = mpsc::channel();
    if let Some(serial) = qemu.stdout.take() {
        thread::spawn(move || {
            let greeted =
                BufReader::new(serial).lines().map_while(Result::ok).any(|l| l.contains(GUEST_GREETING));
            let _ = tell.send(greeted);
        });
    }
    let greeted = heard.recv_timeout(patience).unwrap_or(false);
    let _ = qemu.kill();
    let _ = qemu.wait();
    if !greeted {
        bail!("a VM with KVM did not come up within {} s", patience.as_secs());
    }
    Ok(Domain::Kvm)
}

/// The QEMU process of the VM with this UUID.
pub(super) fn qemu_pid(uuid: &str) -> Option<u32> {
    entries(Path::new("/proc")).ok()?.into_iter().filter_map(|name| name.parse::<u32>().ok()).find(|pid| {
        let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
        let mut args = cmdline.split(|byte| *byte == 0);
        args.next().is_some_and(|program| program.windows(4).any(|part| part == b"qemu"))
            && args.any(|arg| arg == b"-uuid")
            && args.next() == Some(uuid.as_bytes())
    })
}

/// Whether a process was stopped by a signal.
pub(super) fn is_stopped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("State:") && line.contains("T (stopped)")))
}

/// Sends a signal (`TERM`, `STOP`, ...) with root's rights.
pub(super) fn signal_pid(pid: u32, signal: &str) -> Result<()> {
    // The shell's own `kill`: the program of that name is not installed everywhere.
    run_as_root("sh", &["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid.to_string()]).map(drop)
}

/// Names in a directory; none where there is no such directory.
pub(super) fn entries(dir: &Path) -> Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            Ok(entries.flatten().map(|it| it.file_name().to_string_lossy().into_owned()).collect())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(anyhow!("cannot read {}: {e}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_host_agree() {
        let bytes = HOST_ADDRESS.trim_end_matches("/32").replace('.', ", ");
        assert!(GUEST_C.contains(&format!("#define HOST_ADDRESS {{ {bytes} }}")));
        assert!(GUEST_C.contains(&format!("say(\"{GUEST_GREETING}\\n\")")));
    }

    #[test]
    fn who_may_open_kvm() {
        fn check(mode: u32, gid: u32, group: Option<u32>, expect: bool) {
            assert_eq!(kvm_is_open_to_qemu(mode, gid, group), expect, "{mode:o} {gid} {group:?}");
        }
        check(0o20_600, 0, Some(107), false);
        check(0o20_660, 0, Some(107), false);
        check(0o20_660, 107, Some(107), true);
        check(0o20_640, 107, Some(107), false);
        check(0o20_666, 0, None, true);
        check(0o20_660, 0, None, false);
    }

    #[test]
    fn failures_say_what_to_do() {
        let missing = run("kvmetry-no-such-program", &["x"]).unwrap_err().to_string();
        assert_eq!(missing, "`kvmetry-no-such-program` is not installed: run scripts/install-deps.sh");
        let failed = run("sh", &["-c", "echo 'error: one' >&2; echo >&2; echo two >&2; exit 3"]).unwrap_err();
        assert_eq!(failed.to_string(), "sh failed: one; two");
        let silent = run("sh", &["-c", "exit 3"]).unwrap_err();
        assert_eq!(silent.to_string(), "sh failed: exit status: 3");
    }
}
