//! A lab of real VMs under a local libvirt, for trying, for tests and for load.
//!
//! Each VM is a QEMU process of 32 MiB with 2 virtual processors, 2 network cards (a tap on the lab's bridge, a tap
//! on nothing), 3 disks (qcow2, raw, raw) and a balloon. The guest (`xtask/lab/guest.c`) does a round of disk and
//! network work each time the balloon's statistics are asked for, so all counters move at that pace; between two
//! rounds it costs next to nothing. It gives plugged cards back when the host asks.
//!
//! libvirt is driven through `virsh`. A lab touches only VMs whose UUID it gave itself (see [`vm`]), whatever their
//! names, and finds them again in another process: after a crash or Ctrl-C `down` still removes all of it.
//!
//! Files, in the lab's directory:
//!
//! ```text
//! LAB/                     six digits of directory and prefix, also in its VMs' UUIDs
//!     guest-HASH.elf       the guest's kernel, by its source
//!     template.qcow2       an empty image
//!     vms/UUID/            a VM's images and its definition
//! ```
//!
//! Limits: x86-64 hosts, a system libvirtd with the QEMU driver on this machine (`qemu:///system` or its socket),
//! root or sudo for the bridge.

pub mod daemon;
mod host;
mod virsh;
pub mod vm;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

pub use vm::{Disk, Domain, Format, LabVm, Nic, NicKind};

/// Most VMs that `up` takes: the names have four digits, and a bridge has room for 1023 taps.
pub const MAX_VMS: usize = 1000;

/// How long new guests may take, beside one balloon period, until all have answered: a second for each, since they
/// boot while others are started, and this for the first.
const ANSWER_SLACK: Duration = Duration::from_secs(30);

/// Pause between two looks at statistics that something is waited for in.
const POLL: Duration = Duration::from_millis(200);

/// VMs removed at the same time. Taking one down is 2 s of waiting inside libvirtd and little work, so more of them
/// than processors help; its other 8 of 20 workers stay free for others.
const REMOVERS: usize = 12;

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// Which accelerator the guests run with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where a trial VM comes up with it at once, else TCG.
    #[default]
    Auto,
    /// KVM, or an error that says why not.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Names are this, `-` and four digits. Labs of the same directory are told apart by it.
    pub prefix: String,
    /// Where labs have their files, each in a directory of its own. QEMU's user must be able to reach it.
    pub dir: PathBuf,
    /// The libvirt to use; a local one.
    pub uri: String,
    /// Accelerator.
    pub accel: Accel,
    /// Seconds between two polls of a guest's statistics, and so between two rounds of its work. 0: never.
    pub balloon_period: u32,
    /// The bridge, made where it is missing. Labs may share it.
    pub bridge: String,
    /// VMs started at the same time.
    pub workers: usize,
    /// No progress on standard error.
    pub quiet: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            prefix: "kvmetry-lab".into(),
            dir: "/var/tmp/kvmetry-lab".into(),
            uri: "qemu:///system".into(),
            accel: Accel::Auto,
            balloon_period: 5,
            bridge: "kvmetry-lab0".into(),
            workers: thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)),
            quiet: false,
        }
    }
}

/// What `status` says of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmStatus {
    /// Name.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// As `virsh` says it: `running`, `paused`, `shut off`, ….
    pub state: String,
    /// When the guest last answered the balloon, in seconds since 1970. 0: never, or the VM is too busy to say.
    pub balloon_update: u64,
}

/// What a lab needs before its first VM.
struct Ground {
    kernel: PathBuf,
    domain: Domain,
}

/// A lab. Nothing is made before the first VM is; nothing is removed before [`Lab::down`].
pub struct Lab {
    options: LabOptions,
    /// Identity: six digits of directory and prefix.
    digits: String,
    /// Its own files.
    dir: PathBuf,
    ground: OnceLock<Ground>,
}

/// A lab that goes [`Lab::down`] when it is dropped, for tests.
pub struct LabGuard(Lab);

impl std::ops::Deref for LabGuard {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for LabGuard {
    fn drop(&mut self) {
        if let Err(e) = self.0.down() {
            eprintln!("lab: {e:#}");
        }
    }
}

impl Lab {
    /// A lab with these options.
    ///
    /// # Errors
    /// An option makes no sense.
    pub fn new(options: LabOptions) -> Result<Self> {
        vm::check_name(&options.prefix).context("the lab's prefix cannot be part of a name")?;
        if !options.dir.is_absolute() {
            bail!("the lab's directory must be an absolute path, not {}", options.dir.display());
        }
        let digits = vm::lab_digits(&format!("{}\n{}", options.dir.display(), options.prefix));
        let dir = options.dir.join(&digits);
        Ok(Self { options, digits, dir, ground: OnceLock::new() })
    }

    /// The same, gone when it is dropped.
    pub fn guard(self) -> LabGuard {
        LabGuard(self)
    }

    /// Its options.
    pub fn options(&self) -> &LabOptions {
        &self.options
    }

    // ---- The whole lab

    /// Makes and starts VMs `PREFIX-0001` to `PREFIX-N`, leaves those alone that run already, and returns all N when
    /// their guests have answered the balloon (at once where the period is 0).
    ///
    /// # Errors
    /// Something is missing on this machine, a name is taken by a foreign VM, or libvirt refused. VMs that were
    /// started stay; [`Lab::down`] removes them.
    pub fn up(&self, count: usize) -> Result<Vec<LabVm>> {
        if count > MAX_VMS {
            bail!("a lab has at most {MAX_VMS} VMs, not {count}");
        }
        let vms = (1..=count)
            .map(|n| self.vm(&format!("{}-{n:04}", self.options.prefix)))
            .collect::<Result<Vec<_>>>()?;
        self.start_all(&vms)?;
        self.wait_for_answers(&vms)?;
        Ok(vms)
    }

    /// Makes and starts these VMs; those that run already are left alone.
    ///
    /// # Errors
    /// As [`Lab::up`].
    pub fn start_all(&self, vms: &[LabVm]) -> Result<()> {
        host::bridge_up(&self.options.bridge)?;
        let known = self.known()?;
        let running: Vec<String> = self.uuids(&["list", "--uuid"])?;
        for vm in vms {
            if !self.owns(&vm.uuid) {
                bail!("{:?} has the UUID {}, which this lab did not give", vm.name, vm.uuid);
            }
            if known.iter().any(|(uuid, name)| *name == vm.name && *uuid != vm.uuid) {
                bail!("a VM called {:?} exists that this lab did not make: choose another --prefix", vm.name);
            }
        }
        let missing: Vec<_> = vms.iter().filter(|vm| !running.contains(&vm.uuid)).collect();
        self.in_parallel("started", self.options.workers, &missing, true, |vm| {
            self.make(vm).and_then(|()| self.start(vm)).with_context(|| format!("cannot start {:?}", vm.name))
        })
    }

    /// Waits until every guest has answered the balloon once since it was started. Guests without a balloon period
    /// are not waited for.
    ///
    /// # Errors
    /// Names the guests that did not, after a balloon period and half a minute (more for many VMs).
    pub fn wait_for_answers(&self, vms: &[LabVm]) -> Result<()> {
        let period = vms.iter().map(|vm| vm.balloon_period).max().unwrap_or(0);
        let patience = Duration::from_secs(u64::from(period) + vms.len() as u64) + ANSWER_SLACK;
        let begun = Instant::now();
        loop {
            let status = self.status()?;
            let silent: Vec<_> = vms
                .iter()
                .filter(|vm| vm.balloon_period > 0)
                .filter(|vm| !status.iter().any(|it| it.uuid == vm.uuid && it.balloon_update > 0))
                .map(|vm| vm.name.as_str())
                .collect();
            if silent.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > patience {
                let some = silent.iter().take(5).copied().collect::<Vec<_>>().join(", ");
                bail!(
                    "{} guests do not answer the balloon after {} s: {some}",
                    silent.len(),
                    patience.as_secs()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Removes all that this lab made: VMs in any state, their files, and the bridge when nothing else uses it. Fine
    /// to call at any time, also when there is nothing.
    ///
    /// # Errors
    /// What could not be removed. The rest is gone all the same.
    pub fn down(&self) -> Result<()> {
        self.remove(std::slice::from_ref(&self.digits))
    }

    /// As [`Lab::down`], for the labs of all prefixes that have their files in this lab's directory.
    ///
    /// # Errors
    /// As [`Lab::down`].
    pub fn down_all(&self) -> Result<()> {
        let mut labs = host::entries(&self.options.dir)?;
        labs.retain(|name| name.len() == self.digits.len() && name.bytes().all(|it| it.is_ascii_hexdigit()));
        self.remove(&labs)
    }

    /// The lab's VMs, by name.
    ///
    /// # Errors
    /// libvirt does not answer.
    pub fn status(&self) -> Result<Vec<VmStatus>> {
        let mut all: Vec<_> = self.known()?.into_iter().filter(|(uuid, _)| self.owns(uuid)).collect();
        all.sort_by(|a, b| a.1.cmp(&b.1));
        let live = self.uuids(&["list", "--uuid"])?;
        let mut args = vec!["domstats", "--state", "--balloon", "--nowait"];
        args.extend(
            all.iter().map(|(uuid, _)| uuid.as_str()).filter(|uuid| live.iter().any(|it| it == uuid)),
        );
        // Without names virsh would ask for every VM of the host. A VM that goes away in between fails the call.
        let stats = match args.len() {
            4 => BTreeMap::new(),
            _ => virsh::parse_domstats(&self.virsh(&args)?),
        };
        let line = |(uuid, name): (String, String)| {
            let stats = stats.get(&name);
            let number = |key| stats.and_then(|it| it.get(key)).and_then(|it| it.parse().ok());
            VmStatus {
                state: number("state.state").map_or("shut off", virsh::state_name).into(),
                balloon_update: number("balloon.last-update").unwrap_or(0),
                name,
                uuid,
            }
        };
        Ok(all.into_iter().map(line).collect())
    }

    // ---- One VM

    /// A VM of this lab with the usual devices, to be changed as a test needs and started with [`Lab::start_all`].
    /// The same name gives the same VM.
    ///
    /// # Errors
    /// The name cannot be one, the guest does not compile, or the accelerator that was asked for does not work.
    pub fn vm(&self, name: &str) -> Result<LabVm> {
        vm::check_name(name)?;
        let ground = self.ground()?;
        let uuid = vm::uuid(&self.digits, name);
        let mut vm = LabVm {
            name: name.into(),
            dir: self.dir.join("vms").join(&uuid),
            uuid,
            kernel: ground.kernel.clone(),
            domain: ground.domain,
            memory_mib: vm::MEMORY_MIB,
            vcpus: 2,
            nics: Vec::new(),
            disks: Vec::new(),
            balloon_period: self.options.balloon_period,
            net_kib: 0,
            extra_devices: String::new(),
        };
        vm.nics = vec![vm.nic(0, NicKind::Bridge(self.options.bridge.clone())), vm.nic(1, NicKind::Ethernet)];
        vm.disks = vec![
            vm.disk("vda", Format::Qcow2, vm::QCOW2_MIB),
            vm.disk("vdb", Format::Raw, 64),
            vm.disk("vdc", Format::Raw, 16),
        ];
        Ok(vm)
    }

    /// Makes a VM's images and defines it, without starting it.
    ///
    /// # Errors
    /// A file cannot be written, or libvirt refused.
    pub fn make(&self, vm: &LabVm) -> Result<()> {
        fs::create_dir_all(&vm.dir).with_context(|| format!("cannot make {}", vm.dir.display()))?;
        for disk in &vm.disks {
            self.make_image(disk)?;
        }
        self.with_xml(vm, "domain.xml", &vm::xml(vm), &|file| self.virsh(&["define", file]))
    }

    /// Starts a VM that is defined and does not run.
    ///
    /// # Errors
    /// libvirt refused.
    pub fn start(&self, vm: &LabVm) -> Result<()> {
        let start = || self.virsh(&["start", &vm.uuid]).map(drop);
        start().or_else(|e| {
            // Another lab that just went down may have taken the bridge with it.
            if host::bridge_exists(&self.options.bridge) {
                return Err(e);
            }
            host::bridge_up(&self.options.bridge)?;
            start()
        })
    }

    /// Cuts a VM's power. It stays defined.
    ///
    /// # Errors
    /// libvirt refused, for instance because it does not run.
    pub fn destroy(&self, vm: &LabVm) -> Result<()> {
        self.virsh(&["destroy", &vm.uuid]).map(drop)
    }

    /// Stops a VM's processors.
    ///
    /// # Errors
    /// libvirt refused.
    pub fn pause(&self, vm: &LabVm) -> Result<()> {
        self.virsh(&["suspend", &vm.uuid]).map(drop)
    }

    /// Lets a paused VM go on.
    ///
    /// # Errors
    /// libvirt refused.
    pub fn resume(&self, vm: &LabVm) -> Result<()> {
        self.virsh(&["resume", &vm.uuid]).map(drop)
    }

    /// Changes the balloon's period of a running VM; 0 stops polling, and with it the guest's work.
    ///
    /// # Errors
    /// libvirt refused.
    pub fn set_balloon_period(&self, vm: &LabVm, seconds: u32) -> Result<()> {
        self.virsh(&["dommemstat", &vm.uuid, "--live", "--period", &seconds.to_string()]).map(drop)
    }

    /// Plugs a network card in. The guest puts it to work at once.
    ///
    /// # Errors
    /// libvirt refused.
    pub fn attach_nic(&self, vm: &LabVm, nic: &Nic) -> Result<()> {
        self.change_device(vm, "attach-device", &vm::nic_xml(nic))
    }

    /// Takes a network card away, and returns when it is gone.
    ///
    /// # Errors
    /// libvirt refused, or the guest did not let it go.
    pub fn detach_nic(&self, vm: &LabVm, nic: &Nic) -> Result<()> {
        self.change_device(vm, "detach-device", &vm::nic_xml(nic))?;
        self.gone(vm, &format!("<mac address='{}'/>", nic.mac))
    }

    /// Makes a disk's image and plugs it in. The guest puts it to work at once.
    ///
    /// # Errors
    /// libvirt refused.
    pub fn attach_disk(&self, vm: &LabVm, disk: &Disk) -> Result<()> {
        self.make_image(disk)?;
        self.change_device(vm, "attach-device", &vm::disk_xml(disk))
    }

    /// Takes a disk away, and returns when it is gone. Its image stays.
    ///
    /// # Errors
    /// libvirt refused, or the guest did not let it go.
    pub fn detach_disk(&self, vm: &LabVm, disk: &Disk) -> Result<()> {
        self.change_device(vm, "detach-device", &vm::disk_xml(disk))?;
        self.gone(vm, &format!("<target dev='{}' ", disk.target))
    }

    /// All bulk statistics of a running VM as `virsh domstats` prints them, by key.
    ///
    /// # Errors
    /// libvirt refused.
    pub fn domstats(&self, vm: &LabVm) -> Result<BTreeMap<String, String>> {
        let all = virsh::parse_domstats(&self.virsh(&["domstats", &vm.uuid])?);
        all.into_values().next().with_context(|| format!("virsh domstats said nothing of {:?}", vm.name))
    }

    /// Looks at a running VM's [`Lab::domstats`] until they satisfy `enough`, and returns those.
    ///
    /// # Errors
    /// libvirt refused, or `patience` is over: names `what` was waited for.
    pub fn wait_for_stats(
        &self,
        vm: &LabVm,
        what: &str,
        patience: Duration,
        enough: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> Result<BTreeMap<String, String>> {
        let begun = Instant::now();
        loop {
            let stats = self.domstats(vm)?;
            if enough(&stats) {
                return Ok(stats);
            }
            if begun.elapsed() > patience {
                bail!("{:?}: {what} did not happen within {} s", vm.name, patience.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    /// Process id of a VM's QEMU, found by the UUID on its command line.
    ///
    /// # Errors
    /// There is no such process.
    pub fn pid(&self, vm: &LabVm) -> Result<u32> {
        host::qemu_pid(&vm.uuid).with_context(|| format!("{:?} has no QEMU process", vm.name))
    }

    /// Sends a signal (`STOP`, `CONT`, `KILL`) to a VM's QEMU.
    ///
    /// # Errors
    /// There is no such process, or it may not be signalled.
    pub fn signal(&self, vm: &LabVm, signal: &str) -> Result<()> {
        host::signal_pid(self.pid(vm)?, signal)
    }

    /// Runs `virsh` on this lab's libvirt and returns what it printed. A domain is best named by its UUID.
    ///
    /// # Errors
    /// What `virsh` complained about; or it took too long.
    pub fn virsh(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--kill-after=5", virsh::SECONDS, "virsh", "-q", "-c", &self.options.uri];
        all.extend(args);
        host::run("timeout", &all).map_err(|e| virsh::explain(&e.to_string(), args, &self.options.uri))
    }

    // ---- Helpers

    fn owns(&self, uuid: &str) -> bool {
        uuid.starts_with(&vm::uuid_prefix(&self.digits))
    }

    fn ground(&self) -> Result<&Ground> {
        if let Some(ground) = self.ground.get() {
            return Ok(ground);
        }
        let (base, dir, vms) = (&self.options.dir, &self.dir, &self.dir.join("vms"));
        fs::create_dir_all(vms)
            .with_context(|| format!("cannot make {}: choose another directory with --dir", dir.display()))?;
        for dir in [base, dir, vms] {
            // QEMU's user must pass, whatever this process's umask. A base that is somebody else's is their matter.
            if let Err(e) = fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
                && dir != base
            {
                bail!("cannot open {} to QEMU's user: {e}", dir.display());
            }
        }
        let kernel = host::guest_kernel(dir)?;
        host::qcow2_template(dir)?;
        host::open_kvm_to_qemu()?;
        let domain = match self.options.accel {
            Accel::Tcg => Domain::Tcg,
            Accel::Kvm => host::try_kvm(&kernel, host::TRIAL_PATIENT)
                .context("KVM does not work here; --accel tcg does")?,
            Accel::Auto => host::try_kvm(&kernel, host::TRIAL_FAST).unwrap_or_else(|e| {
                self.say(&format!("guests run without KVM: {e}"));
                Domain::Tcg
            }),
        };
        Ok(self.ground.get_or_init(|| Ground { kernel, domain }))
    }

    fn make_image(&self, disk: &Disk) -> Result<()> {
        if disk.path.exists() {
            return Ok(());
        }
        let made = match disk.format {
            Format::Qcow2 => fs::copy(host::qcow2_template(&self.dir)?, &disk.path).map(drop),
            Format::Raw => fs::File::create(&disk.path).and_then(|file| file.set_len(disk.size_mib << 20)),
        };
        made.with_context(|| format!("cannot write {}", disk.path.display()))
    }

    fn change_device(&self, vm: &LabVm, command: &str, xml: &str) -> Result<()> {
        self.with_xml(vm, "device.xml", xml, &|file| self.virsh(&[command, &vm.uuid, file, "--live"]))
            .with_context(|| format!("{:?}", vm.name))
    }

    /// libvirt waits up to 5 s for the guest to let a device go, then answers "requested": so this looks.
    fn gone(&self, vm: &LabVm, mark: &str) -> Result<()> {
        if self.virsh(&["dumpxml", &vm.uuid])?.contains(mark) {
            bail!("{:?} did not let the device go within libvirt's 5 s", vm.name);
        }
        Ok(())
    }

    fn with_xml(
        &self,
        vm: &LabVm,
        name: &str,
        xml: &str,
        run: &dyn Fn(&str) -> Result<String>,
    ) -> Result<()> {
        let file = vm.dir.join(name);
        fs::write(&file, xml).with_context(|| format!("cannot write {}", file.display()))?;
        run(&file.to_string_lossy()).map(drop)
    }

    /// UUID and name of every VM that libvirt knows.
    fn known(&self) -> Result<Vec<(String, String)>> {
        Ok(virsh::parse_list(&self.virsh(&["list", "--all", "--uuid", "--name"])?))
    }

    fn uuids(&self, args: &[&str]) -> Result<Vec<String>> {
        let text = self.virsh(args)?;
        Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Into::into).collect())
    }

    /// Removes the labs with these digits.
    fn remove(&self, labs: &[String]) -> Result<()> {
        let ours = |uuid: &str| labs.iter().any(|digits| uuid.starts_with(&vm::uuid_prefix(digits)));
        let known: Vec<_> = self.known()?.into_iter().filter(|(uuid, _)| ours(uuid)).collect();
        let running = self.uuids(&["list", "--uuid"])?;
        // A lab's files go once its VMs are gone: what could not be removed is still in use.
        self.in_parallel("removed", REMOVERS, &known, false, |(uuid, name)| {
            self.remove_vm(uuid, running.contains(uuid)).with_context(|| format!("cannot remove {name:?}"))
        })?;
        for digits in labs {
            remove_dir(&self.options.dir.join(digits))?;
        }
        // Fails where another lab has files.
        let _ = fs::remove_dir(&self.options.dir);
        host::bridge_down(&self.options.bridge)
    }

    fn remove_vm(&self, uuid: &str, running: bool) -> Result<()> {
        if running {
            // A QEMU that a test left stopped would not end by being asked, and libvirt would wait for it.
            if let Some(pid) = host::qemu_pid(uuid).filter(|pid| host::is_stopped(*pid)) {
                let _ = host::signal_pid(pid, "CONT");
            }
            // May have ended meanwhile; what matters is whether it can be undefined.
            let _ = self.virsh(&["destroy", uuid]);
        }
        self.virsh(&["undefine", uuid, "--managed-save", "--snapshots-metadata"])
            .map(drop)
            .or_else(|e| if self.known()?.iter().any(|(it, _)| it == uuid) { Err(e) } else { Ok(()) })
    }

    /// Calls `work` for each item, a few at a time, and says how far it is. The first failure is returned, with the
    /// number of the others; `stop` ends the rest then.
    fn in_parallel<T: Sync>(
        &self,
        done_word: &str,
        workers: usize,
        items: &[T],
        stop: bool,
        work: impl Fn(&T) -> Result<()> + Sync,
    ) -> Result<()> {
        let (next, done, stopped) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let failures = Mutex::new(Vec::new());
        let begun = Instant::now();
        let said = Mutex::new(begun);
        thread::scope(|scope| {
            for _ in 0..workers.clamp(1, items.len().max(1)) {
                scope.spawn(|| {
                    while !stopped.load(Ordering::Relaxed) {
                        let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                        if let Err(e) = work(item) {
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push(e);
                            stopped.store(stop, Ordering::Relaxed);
                        }
                        let done = 1 + done.fetch_add(1, Ordering::Relaxed);
                        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                        if said.elapsed() >= PROGRESS {
                            *said = Instant::now();
                            self.say(&format!("{done_word} {done} of {} VMs", items.len()));
                        }
                    }
                });
            }
        });
        let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        if failures.is_empty() {
            if !items.is_empty() {
                self.say(&format!(
                    "{done_word} {} VMs in {:.1} s",
                    items.len(),
                    begun.elapsed().as_secs_f32()
                ));
            }
            return Ok(());
        }
        let first = failures.swap_remove(0);
        match failures.len() {
            0 => Err(first),
            more => Err(first.context(format!("{} VMs failed; the first", more + 1))),
        }
    }

    fn say(&self, text: &str) {
        if !self.options.quiet {
            eprintln!("lab: {text}");
        }
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(anyhow!("cannot remove {}: {e}", dir.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_own_what_they_name() {
        let lab =
            |prefix: &str| Lab::new(LabOptions { prefix: prefix.into(), ..LabOptions::default() }).unwrap();
        let (one, other) = (lab("one"), lab("other"));
        let uuid = vm::uuid(&one.digits, "any name");
        assert!(one.owns(&uuid));
        assert!(!other.owns(&uuid));
        assert!(!one.owns("6b766d6c-6162-4000-8000-000000000000"));
    }

    #[test]
    fn senseless_options_are_refused() {
        fn check(change: impl Fn(&mut LabOptions), expect: &str) {
            let mut options = LabOptions::default();
            change(&mut options);
            let e = Lab::new(options).err().map(|e| format!("{e:#}"));
            assert_eq!(e.as_deref(), Some(expect));
        }
        check(
            |o| o.prefix = "a/b".into(),
            "the lab's prefix cannot be part of a name: a VM's name must not contain '/': \"a/b\"",
        );
        check(|o| o.dir = "lab".into(), "the lab's directory must be an absolute path, not lab");
    }

    #[test]
    fn a_failure_stops_the_rest_only_where_asked() {
        let options = LabOptions { quiet: true, ..LabOptions::default() };
        let lab = Lab::new(options).unwrap();
        let check = |stop: bool, expect: usize| {
            let ran = AtomicUsize::new(0);
            let result = lab.in_parallel("done", 1, &[1, 2, 3, 4], stop, |n| {
                ran.fetch_add(1, Ordering::Relaxed);
                if n % 2 == 0 { Err(anyhow!("item {n}")) } else { Ok(()) }
            });
            assert!(format!("{:#}", result.unwrap_err()).contains("item 2"));
            assert_eq!(ran.into_inner(), expect);
        };
        check(true, 2);
        check(false, 4);
    }
}
