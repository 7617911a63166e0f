//! One VM of the lab as data, and the libvirt XML made from it. Pure: no I/O.
//!
//! A VM's UUID says who made it. Everything that the lab removes is recognised by it, never by a name:
//!
//! ```text
//! 6b766d6c-6162-8LLL-aLLL-VVVVVVVVVVVV        RFC 9562, version 8 ("custom")
//! └──"kvmlab"─┘  └─lab──┘ └──of the name──┘   lab: 24 bits of the lab's directory and prefix
//! ```

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};

/// What QEMU runs the guest with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's own translator. Needs no hardware.
    Tcg,
}

/// How a network card is wired on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicKind {
    /// A tap on this bridge, kept apart from the bridge's other taps.
    Bridge(String),
    /// A tap on nothing.
    Ethernet,
    /// QEMU's own network stack: libvirt has no statistics for it.
    User,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Address that the guest sees, as `52:…`.
    pub mac: String,
    /// Wiring.
    pub kind: NicKind,
}

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QEMU's own format, as small as what is written.
    Qcow2,
    /// A sparse file.
    Raw,
}

/// A disk, on virtio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Name in the guest, `vda` to `vdz`.
    pub target: String,
    /// Kind of image.
    pub format: Format,
    /// Image, made by the lab.
    pub path: PathBuf,
    /// Size that the guest sees. For qcow2 it is [`QCOW2_MIB`], whatever stands here.
    pub size_mib: u64,
}

/// Size of every qcow2 image: all are copies of one template.
pub const QCOW2_MIB: u64 = 1024;

/// Memory of a VM: the BIOS, the guest and its rings need about 17 MiB, and 200 VMs must fit a laptop.
pub const MEMORY_MIB: u32 = 32;

/// Longest name that the lab takes, in bytes: libvirt makes file names of it (`NAME.xml`, at most 255 bytes).
pub const MAX_NAME: usize = 200;

/// A VM. [`crate::lab::Lab::vm`] makes one with the usual devices; change what a test needs, then start it.
#[derive(Clone, Debug)]
pub struct LabVm {
    /// Name for libvirt. Anything but `/`, control characters and nothing at all.
    pub name: String,
    /// Identity, of the lab's scheme.
    pub uuid: String,
    /// Directory of its images.
    pub dir: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Accelerator.
    pub domain: Domain,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Seconds between two polls of the guest's memory statistics; each makes the guest do a round of work. 0: never.
    pub balloon_period: u32,
    /// KiB that every network card sends in a round beside its few probes, and once at start. 0 for the usual trickle.
    pub net_kib: u64,
    /// XML put into `<devices>` as it is, for what the lab has no words for.
    pub extra_devices: String,
}

impl LabVm {
    /// The network card with this number, on `kind`; its address follows from the VM and the number.
    pub fn nic(&self, number: u8, kind: NicKind) -> Nic {
        let [a, b, c, d, ..] = fnv(self.uuid.as_bytes()).to_be_bytes();
        // 52 has the "locally administered" bit, and libvirt's tap takes fe in its place.
        Nic { mac: format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{number:02x}"), kind }
    }

    /// A disk in the VM's directory. Does not make the image.
    pub fn disk(&self, target: &str, format: Format, size_mib: u64) -> Disk {
        let tail = match format {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        };
        Disk { target: target.into(), format, path: self.dir.join(format!("{target}.{tail}")), size_mib }
    }
}

/// Refuses what libvirt cannot take as a name.
///
/// # Errors
/// Names that are empty, longer than [`MAX_NAME`] bytes, or contain `/` or a control character.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME {
        bail!("a VM's name must have 1 to {MAX_NAME} bytes, not {}", name.len());
    }
    if let Some(bad) = name.chars().find(|c| *c == '/' || c.is_control()) {
        bail!("a VM's name must not contain {bad:?}: {name:?}");
    }
    Ok(())
}

/// The beginning of every UUID that a lab gives.
pub const UUID_TAG: &str = "6b766d6c-6162-8";

/// The six digits that tell a lab from others.
pub fn lab_digits(lab: &str) -> String {
    format!("{:06x}", fnv(lab.as_bytes()) & 0xff_ffff)
}

/// The beginning that only the UUIDs of the lab with these digits have.
pub fn uuid_prefix(digits: &str) -> String {
    let (a, b) = digits.split_at(digits.len() / 2);
    format!("{UUID_TAG}{a}-a{b}-")
}

/// UUID of the VM with this name in the lab with these digits.
pub fn uuid(digits: &str, name: &str) -> String {
    format!("{}{:012x}", uuid_prefix(digits), fnv(name.as_bytes()) & 0xffff_ffff_ffff)
}

/// The definition for `virsh define`.
pub fn xml(vm: &LabVm) -> String {
    let kind = match vm.domain {
        Domain::Kvm => "kvm",
        Domain::Tcg => "qemu",
    };
    let mut devices = String::new();
    vm.disks.iter().for_each(|disk| devices.push_str(&disk_xml(disk)));
    vm.nics.iter().for_each(|nic| devices.push_str(&nic_xml(nic)));
    devices.push_str(&vm.extra_devices);
    let period = match vm.balloon_period {
        0 => String::new(),
        seconds => format!("<stats period='{seconds}'/>"),
    };
    format!(
        "<domain type='{kind}'>\n\
         <name>{name}</name>\n\
         <uuid>{uuid}</uuid>\n\
         <metadata><lab:vm xmlns:lab='https://kvmetry.invalid/lab/1'>made by kvmetry's lab</lab:vm></metadata>\n\
         <memory unit='MiB'>{memory}</memory>\n\
         <vcpu>{vcpus}</vcpu>\n\
         <os>\n\
         <type arch='x86_64' machine='pc'>hvm</type>\n\
         <kernel>{kernel}</kernel>\n\
         <cmdline>lab net-kib={net_kib}</cmdline>\n\
         </os>\n\
         <features><acpi/></features>\n\
         <on_reboot>destroy</on_reboot>\n\
         <devices>\n\
         {devices}\
         <controller type='usb' model='none'/>\n\
         <memballoon model='virtio'>{period}</memballoon>\n\
         </devices>\n\
         </domain>\n",
        name = escape(&vm.name),
        uuid = vm.uuid,
        memory = vm.memory_mib,
        vcpus = vm.vcpus,
        kernel = escape(&vm.kernel.to_string_lossy()),
        net_kib = vm.net_kib,
    )
}

/// A network card for `<devices>` and for `virsh attach-device`.
pub fn nic_xml(nic: &Nic) -> String {
    let (kind, wiring) = match &nic.kind {
        NicKind::Bridge(bridge) => {
            ("bridge", format!("<source bridge='{}'/><port isolated='yes'/>", escape(bridge)))
        }
        NicKind::Ethernet => ("ethernet", String::new()),
        NicKind::User => ("user", String::new()),
    };
    format!(
        "<interface type='{kind}'><mac address='{}'/>{wiring}<model type='virtio'/></interface>\n",
        escape(&nic.mac)
    )
}

/// A disk for `<devices>` and for `virsh attach-device`. Flushes are counted but not carried out (`unsafe`): nobody
/// needs these images after a power cut, and a hundred guests that sync wear a laptop's disk.
pub fn disk_xml(disk: &Disk) -> String {
    let format = match disk.format {
        Format::Qcow2 => "qcow2",
        Format::Raw => "raw",
    };
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}' cache='unsafe'/>\
         <source file='{}'/><target dev='{}' bus='virtio'/></disk>\n",
        escape(&disk.path.to_string_lossy()),
        escape(&disk.target)
    )
}

/// Text for an XML element or for an attribute in either kind of quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            // XML readers may turn these into plain spaces where they are not written as numbers.
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// FNV-1a, 64 bits, then mixed so that every part of the result depends on every byte. The same on every machine and
/// in every release, unlike the standard library's hasher.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str) -> LabVm {
        let mut vm = LabVm {
            name: name.into(),
            uuid: uuid(&lab_digits("lab"), name),
            dir: "/lab/it's".into(),
            kernel: "/lab/a&b.elf".into(),
            domain: Domain::Tcg,
            memory_mib: MEMORY_MIB,
            vcpus: 2,
            nics: Vec::new(),
            disks: Vec::new(),
            balloon_period: 5,
            net_kib: 0,
            extra_devices: String::new(),
        };
        vm.nics = vec![vm.nic(0, NicKind::Bridge("br<0>".into())), vm.nic(1, NicKind::Ethernet)];
        vm.disks = vec![vm.disk("vda", Format::Qcow2, QCOW2_MIB), vm.disk("vdb", Format::Raw, 64)];
        vm
    }

    #[test]
    fn text_is_escaped() {
        fn check(input: &str, expect: &str) {
            assert_eq!(escape(input), expect);
        }
        check("plain", "plain");
        check("db,prod=1 \"ü\"", "db,prod=1 &quot;ü&quot;");
        check("<a & 'b'>", "&lt;a &amp; &apos;b&apos;&gt;");
        check("&amp;", "&amp;amp;");
        check("a\tb\r\n", "a&#9;b&#13;&#10;");
        check("😀", "😀");
    }

    #[test]
    fn names_are_checked() {
        fn check(name: &str, expect: Option<&str>) {
            assert_eq!(check_name(name).err().map(|e| e.to_string()).as_deref(), expect, "{name:?}");
        }
        check("kvmetry-lab-0001", None);
        check("db,prod=1 \"ü\"", None);
        check(" ", None);
        check(&"x".repeat(MAX_NAME), None);
        check("", Some("a VM's name must have 1 to 200 bytes, not 0"));
        check(&"ü".repeat(101), Some("a VM's name must have 1 to 200 bytes, not 202"));
        check("a/b", Some("a VM's name must not contain '/': \"a/b\""));
        check("a\nb", Some("a VM's name must not contain '\\n': \"a\\nb\""));
        check("a\u{7f}", Some("a VM's name must not contain '\\u{7f}': \"a\\u{7f}\""));
    }

    #[test]
    fn uuids_tell_labs_and_names_apart() {
        let (lab, other) = (lab_digits("lab"), lab_digits("other"));
        let one = uuid(&lab, "a");
        assert_eq!(one, uuid(&lab, "a"));
        assert_eq!(uuid_prefix("123456"), "6b766d6c-6162-8123-a456-");
        assert_eq!(one.len(), 36);
        assert!(one.starts_with(UUID_TAG) && one.starts_with(&uuid_prefix(&lab)));
        assert_eq!(one.as_bytes()[19], b'a', "the variant of RFC 9562");
        assert_ne!(one, uuid(&lab, "b"));
        assert!(!uuid(&other, "a").starts_with(&uuid_prefix(&lab)));
        let mut all: Vec<_> = (0..5000).map(|n| uuid(&lab, &format!("kvmetry-lab-{n:04}"))).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 5000);
    }

    #[test]
    fn definition_holds_what_the_vm_says() {
        fn check(vm: &LabVm, present: &[&str], absent: &[&str]) {
            let xml = xml(vm);
            for part in present {
                assert!(xml.contains(part), "{part} is not in {xml}");
            }
            for part in absent {
                assert!(!xml.contains(part), "{part} is in {xml}");
            }
        }
        let plain = vm("db,prod=1 \"<ü>\"");
        check(
            &plain,
            &[
                "<domain type='qemu'>",
                "<name>db,prod=1 &quot;&lt;ü&gt;&quot;</name>",
                &format!("<uuid>{}</uuid>", plain.uuid),
                "<kernel>/lab/a&amp;b.elf</kernel>",
                "<cmdline>lab net-kib=0</cmdline>",
                "<source bridge='br&lt;0&gt;'/><port isolated='yes'/>",
                "<interface type='ethernet'>",
                "<driver name='qemu' type='qcow2' cache='unsafe'/><source file='/lab/it&apos;s/vda.qcow2'/>",
                "<driver name='qemu' type='raw' cache='unsafe'/><source file='/lab/it&apos;s/vdb.raw'/><target dev='vdb' bus='virtio'/>",
                "<stats period='5'/>",
            ],
            &[],
        );
        let mut other = vm("x");
        other.domain = Domain::Kvm;
        other.balloon_period = 0;
        other.net_kib = 1 << 20;
        other.disks.clear();
        other.extra_devices = "<rng model='virtio'/>".into();
        check(
            &other,
            &[
                "<domain type='kvm'>",
                "net-kib=1048576<",
                "<rng model='virtio'/>",
                "<memballoon model='virtio'></memballoon>",
            ],
            &["<stats", "<disk"],
        );
    }

    #[test]
    fn addresses_differ() {
        let (a, b) = (vm("a"), vm("b"));
        let macs = [&a.nics[0].mac, &a.nics[1].mac, &b.nics[0].mac, &b.nics[1].mac];
        for (i, mac) in macs.iter().enumerate() {
            assert_eq!(mac.len(), 17);
            assert!(mac.starts_with("52:"));
            assert!(!macs[..i].contains(mac), "{mac} twice");
        }
    }
}
